"""PhantomCT: synthetic CT of chest or abdomen with known findings, and the reports that follow from them.

Reads: a folder of `write_benchmark`, `write_phantoms` or `write_pairs`: `<split>/metadata.jsonl` and the volumes beside
it; the masks of the findings in `<root>_masks`.

Licence: CC0-1.0, no patient data is involved. Research use, not a medical device.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_mu2.files import PARTIAL

from .corpus import CorpusError, CorpusInfo, Drops, inside
from .phantom.questions import ask_questions
from .study import FINDING_LABELS, SPLITS, make_study

INFO = CorpusInfo(
    name="phantom_ct",
    title="PhantomCT",
    licence="cc0-1.0",
    terms="Anything: the studies are computed, no patient is in them.",
    url="",
    citation="",
    egress=True,
    redistributable=True,
    regions=("chest", "abdomen", "pelvis"),
    split_policy="By seed: each split of the benchmark has its own range of seeds, and a seed is a patient.",
)
_COLUMNS = (
    "study_id",
    "patient_id",
    "images_file_names",
    "findings",
    "impression",
    "labels",
    "region",
    "metadata",
)


def read_studies(root: Path, drops: Drops) -> Iterator[dict[str, Any]]:
    """Yield the studies of every split that is there, in the order they were written.

    `metadata` keeps what was drawn ([`~hf_mu2.data.phantom.Phantom.truth`]), which study of a pair it is, the
    labels of an abdomen, and as `mask` the path of the masks where they are at hand.

    Raises:
        CorpusError: if no split is there, a row is not JSON or lacks a column, a path leaves `root`, or a patient is
            in two splits.
    """
    splits = [split for split in SPLITS if (root / split / "metadata.jsonl").is_file()]
    if not splits:
        raise CorpusError(
            f"A PhantomCT folder holds `train/metadata.jsonl` or that of another split, found none under `{root}`. "
            "Write one with `write_benchmark`."
        )
    split_of: dict[str, str] = {}
    seen: set[str] = set()
    for split in splits:
        named: set[str] = set()
        for row in _rows(root, split):
            named.update(row["images_file_names"])
            study_id, patient_id = row["study_id"], row["patient_id"]
            if split_of.setdefault(patient_id, split) != split:
                raise CorpusError(
                    f"A patient is in one split, `{patient_id}` is in {split_of[patient_id]} and {split} of `{root}`. "
                    "Write the splits from seeds that do not overlap, as `write_benchmark` does."
                )
            volumes = [inside(root, Path(split) / name) for name in row["images_file_names"]]
            if study_id in seen:
                drops.drop("the study id was there before", study_id)
            elif not all(volume.is_file() for volume in volumes):
                drops.drop("the volume is missing", study_id)
            else:
                seen.add(study_id)
                yield _study(row, split, volumes, root, drops)
        for path in sorted((root / split).glob("*.nii.gz")):
            if path.name not in named and not path.name.startswith(PARTIAL):
                drops.drop("volume without report", path.name.removesuffix(".nii.gz"))


def _rows(root: Path, split: str) -> Iterator[dict[str, Any]]:
    path = inside(root, Path(split) / "metadata.jsonl")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                missing = [column for column in _COLUMNS if column not in row]
            except (ValueError, TypeError) as error:
                raise CorpusError(
                    f"Each line of `metadata.jsonl` is a JSON object, line {number} of `{path}` is not. "
                    "Write the folder again: it continues where it stopped."
                ) from error
            if missing:
                raise CorpusError(
                    f"A row of PhantomCT has {', '.join(_COLUMNS)}, line {number} of `{path}` lacks {missing}. "
                    "Write the folder again with this version of the package."
                )
            yield row


def _study(row: dict[str, Any], split: str, volumes: list[Path], root: Path, drops: Drops) -> dict[str, Any]:
    metadata = json.loads(row["metadata"])
    is_chest = set(row["labels"]) == set(FINDING_LABELS)
    if not is_chest:
        metadata["labels"] = row["labels"]
    masks = Path(f"{root}_masks") / split / volumes[0].name
    if masks.is_file():
        metadata["mask"] = str(masks)
    else:
        drops.note("no masks beside the folder", row["study_id"])
    return make_study(
        row["study_id"],
        corpus=INFO.name,
        split=split,
        egress=INFO.egress,
        patient_id=row["patient_id"],
        images=[str(volume) for volume in volumes],
        findings=row["findings"],
        impression=row["impression"],
        labels=row["labels"] if is_chest else None,
        questions=ask_questions(row["study_id"], metadata) if "findings" in metadata else (),
        region=row["region"],
        metadata=metadata,
    )
