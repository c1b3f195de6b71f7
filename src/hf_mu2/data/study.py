"""The schema of a study row: what every corpus builder yields, and what every training view starts from."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Features

FINDING_LABELS: tuple[str, ...] = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
SPLITS = ("train", "validation", "test")
REGIONS = ("head", "neck", "chest", "abdomen", "pelvis", "spine", "limbs")
TEXTS = ("findings", "impression", "indication", "technique")


class StudyError(ValueError):
    """A study row breaks the schema."""


def make_study(
    study_id: str,
    *,
    corpus: str,
    split: str,
    egress: bool,
    patient_id: str | None = None,
    images: Sequence[str] = (),
    findings: str = "",
    impression: str = "",
    indication: str = "",
    technique: str = "",
    sections: Sequence[tuple[str, str]] = (),
    labels: Mapping[str, int | None] | None = None,
    questions: Sequence[Mapping[str, Any]] = (),
    region: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make a study row with every column of the schema.

    Args:
        study_id (`str`): Unique in its corpus. Never holds a path.
        corpus (`str`): Name of the builder, e.g. `"ct_rate"`.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        egress (`bool`): Whether the text may leave this machine, e.g. to a judge behind an API. `False` where a
            corpus's terms forbid it.
        patient_id (`str`, *optional*): Whose study it is; the study itself when the corpus names no patients.
        images (`Sequence[str]`): One entry per volume: a NIfTI path, a reference of
            [`~hf_mu2.model.volume_mu2.volume_reference`], a DICOM folder or a prepared volume. Empty for text alone.
        findings, impression, indication, technique (`str`): Report sections, `""` where there is none.
        sections (`Sequence[tuple[str, str]]`): Other named parts of the report in order, e.g. one per organ region.
        labels (`Mapping`, *optional*): 1 present, 0 absent, `None` unknown, for any of `FINDING_LABELS`.
        questions (`Sequence[Mapping]`): Question-answer pairs: `question`, `answer` and, where given, `options` (texts
            in order; `answer` is then one of them) and `kind`.
        region (`str`): Regions of the body joined by `+`, e.g. `"chest+abdomen"`; `""` when unknown.
        metadata (`Mapping`, *optional*): Anything else that JSON can hold; never patient names or dates of birth.

    Returns:
        `dict`: the row; `check_study` has passed.

    Raises:
        StudyError: if a field breaks the schema.
    """
    row = {
        "study_id": study_id,
        "patient_id": study_id if patient_id is None else patient_id,
        "corpus": corpus,
        "split": split,
        "images": list(images),
        "findings": findings,
        "impression": impression,
        "indication": indication,
        "technique": technique,
        "sections": [{"name": name, "text": text} for name, text in sections],
        "labels": dict.fromkeys(FINDING_LABELS) | dict(labels or {}),
        "questions": [{"options": [], "kind": ""} | dict(question) for question in questions],
        "region": region,
        "metadata": json.dumps(dict(metadata or {}), ensure_ascii=False, sort_keys=True),
        "egress": egress,
    }
    check_study(row)
    return row


def check_study(row: Mapping[str, Any]) -> None:
    """Check a row against the schema.

    Raises:
        StudyError: with the rule, the study id and what arrived. Report text is never quoted.
    """
    study_id = row.get("study_id")
    if not isinstance(study_id, str) or not study_id.strip() or "/" in study_id or "\\" in study_id:
        raise StudyError(
            f"`study_id` must be a name without slashes, got {study_id!r}. Name studies without their folder."
        )

    def refuse(rule: str, arrived: object, advice: str) -> None:
        raise StudyError(f"{rule}, got {arrived!r} in study `{study_id}`. {advice}")

    missing = sorted({*_COLUMNS} - set(row))
    if missing:
        refuse("A study row holds every column", f"no {missing}", "Build rows with `make_study`.")
    if not isinstance(row["patient_id"], str) or not row["patient_id"]:
        refuse("`patient_id` must be a name", row["patient_id"], "Use the study id where there is none.")
    if row["split"] not in SPLITS:
        refuse(f"`split` must be one of {SPLITS}", row["split"], "Map the corpus's own word to one of these.")
    if not isinstance(row["egress"], bool):
        refuse("`egress` must be True or False", row["egress"], "Say whether the text may leave the machine.")
    for name in TEXTS:
        if not isinstance(row[name], str):
            refuse(f"`{name}` must be text", type(row[name]).__name__, 'Use "" where there is none.')
    labels = row["labels"]
    if set(labels) != set(FINDING_LABELS):
        odd = sorted(set(labels) ^ set(FINDING_LABELS))
        refuse("`labels` has exactly the 18 finding labels", odd, "See `FINDING_LABELS` for the spelling.")
    unclear = {name: value for name, value in labels.items() if value not in (0, 1, None)}
    if unclear:
        refuse("A label is 1, 0 or None", unclear, "Threshold probabilities first.")
    if row["region"] and set(row["region"].split("+")) - set(REGIONS):
        refuse(f"`region` joins {REGIONS} by `+`", row["region"], 'Use "" where it is unknown.')
    for question in row["questions"]:
        options = question["options"]
        if not question.get("question") or not question.get("answer"):
            refuse("A question has a text and an answer", sorted(question), "Leave out unanswered questions.")
        if options and question["answer"] not in options:
            refuse("The answer is one of the options", f"{len(options)} others", "Give the option's text.")
    if not isinstance(row["metadata"], str) or not row["metadata"].startswith("{"):
        refuse("`metadata` is a JSON object as text", type(row["metadata"]).__name__, "Use `json.dumps`.")


def study_features(*, lazy_nifti: bool = True) -> "Features":
    """Return the `datasets.Features` of a study row.

    Args:
        lazy_nifti (`bool`): Decode `images` as `List(Nifti())`: nibabel images that read their header only. With
            `False` entries stay text, which is what references, DICOM folders and prepared volumes need.
    """
    from datasets import Features, List, Nifti, Value

    text = Value("string")
    columns: dict[str, Any] = dict.fromkeys(_COLUMNS, text)
    columns |= {
        "images": List(Nifti()) if lazy_nifti else List(text),
        "sections": List({"name": text, "text": text}),
        "labels": {label: Value("int8") for label in FINDING_LABELS},
        "questions": List({"question": text, "options": List(text), "answer": text, "kind": text}),
        "egress": Value("bool"),
    }
    return Features(columns)


_COLUMNS = (
    "study_id",
    "patient_id",
    "corpus",
    "split",
    "images",
    *TEXTS,
    "sections",
    "labels",
    "questions",
    "region",
    "metadata",
    "egress",
)
