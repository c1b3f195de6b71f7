"""AMOS-MM 2024: chest, abdomen and pelvis CT with findings per region and multiple-choice questions.

Reads: `report_generation_train_val.json` and `vqa_train_val.json`, or both fused as `dataset.json`; the volumes that
they name, in `imagesTr` and `imagesVa`.

AMOS-MM challenge of MICCAI 2024. CC BY-ND 4.0 according to its index; access after registration.
"""

import gzip
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

from hf_mu2.model.volume_mu2 import volume_reference

from .corpus import CorpusError, CorpusInfo, Drops, cut_validation, inside, required
from .json_records import JsonRecords, Span
from .study import make_study

INFO = CorpusInfo(
    name="amos_mm",
    title="AMOS-MM",
    licence="cc-by-nd-4.0",
    terms="Access after registration with the challenge; no derivatives may be shared.",
    url="https://era-ai-biomed.github.io/amos/",
    citation="Ji et al., AMOS: A Large-Scale Abdominal Multi-Organ Benchmark for Versatile Medical Image Segmentation, "
    "NeurIPS 2022; AMOS-MM challenge, MICCAI 2024.",
    egress=False,  # the terms one signs at registration are not public
    redistributable=False,
    regions=("chest", "abdomen", "pelvis"),
    split_policy="The official validation part is the test split: the reports of the official test part are hidden. "
    "Validation is cut from the training part. No patient is named, so a study is a patient; training studies with "
    "equal findings stay together, and those with the findings of a test study are left out.",
)
REPORTS, QUESTIONS, FUSED = "report_generation_train_val.json", "vqa_train_val.json", "dataset.json"
REGIONS = ("chest", "abdomen", "pelvis")
DROP_IDS = frozenset(
    f"amos_{number}"
    for number in (
        *(5073, 5120, 5173, 5397, 5414, 5437, 5514, 5547, 5588),
        *(5640, 5654, 5677, 5687, 5721, 5871, 5950, 6016),
    )
)  # left out by mishgon/cotomka because they broke its reader; `data check` tells which of them break ours


def read_studies(
    root: Path,
    drops: Drops,
    *,
    validation_share: float = 0.05,
    seed: int = 0,
    channel: int | None = 1,
    drop_ids: Collection[str] = (),
) -> Iterator[dict[str, Any]]:
    """Yield the studies, the test split first, in the order of the index.

    Args:
        validation_share (`float`): Share of the training part that becomes the validation split.
        channel (`int`, *optional*): Which volume of a 4-D file to take. The challenge's public solution takes the
            second when it trains and the first in its later preparation script. The first bytes of every file are
            read to find 4-D ones; with `None` no file is touched, and a 4-D one is refused when it is loaded.
        drop_ids (`Collection[str]`): Studies to leave out, e.g. `DROP_IDS`.

    Raises:
        CorpusError: if an index is missing, damaged or lacks a key, or a path leaves `root`.
    """
    with ExitStack() as stack:
        reports = stack.enter_context(JsonRecords(required(root, REPORTS, FUSED)))
        is_fused = reports.path.name == FUSED
        asked = reports if is_fused else stack.enter_context(JsonRecords(required(root, QUESTIONS)))
        studies = _index(reports, drops)
        questions = {} if is_fused else _index(asked, Drops())
        test_findings: set[str] = set()
        for part, split in (("validation", "test"), ("training", "train")):
            for study_id, span in studies.get(part, {}).items():
                if study_id in drop_ids:
                    drops.drop("in `drop_ids`", study_id)
                    continue
                if part == "training" and study_id in studies.get("validation", {}):
                    drops.drop("listed in both parts, kept in test", study_id)
                    continue
                try:
                    record = reports.read(span)
                    other = questions.get(part, {}).get(study_id)
                    qa = _labels(asked.read(other) if other else record, study_id).get("qa", [])
                except UnicodeDecodeError:
                    drops.drop("text is not UTF-8", study_id)
                    continue
                report = _report(record, study_id)
                sections = _sections(report)
                pairs = _questions(qa, study_id, drops)
                findings = "\n".join(text for _, text in sections)
                key = (
                    sha256(" ".join(findings.lower().split()).encode()).hexdigest() if findings else study_id
                )
                if not sections and not pairs:
                    drops.drop("no findings and no questions", study_id)
                    continue
                if split == "test":
                    test_findings.add(key)
                elif key in test_findings:
                    drops.drop("training study with the findings of a test study", study_id)
                    continue
                image = _image(root, record["image"], study_id, channel, drops)
                if image is None:
                    continue
                yield make_study(
                    study_id,
                    corpus=INFO.name,
                    split=split if split == "test" else cut_validation(key, validation_share, seed),
                    egress=INFO.egress,
                    images=[image],
                    findings=findings,
                    impression=_impression(report),
                    sections=sections,
                    questions=pairs,
                    region="+".join(name for name, _ in sections),
                    metadata=_numbers(record.get("meta") or {}),
                )
    _count_leftovers(root, studies, drops)


def _index(records: JsonRecords, drops: Drops) -> dict[str, dict[str, Span]]:
    """Map the parts of an index to their studies and where each record lies."""
    parts: dict[str, dict[str, Span]] = {}
    for part, span, _ in records.places():
        image = records.read(span, errors="replace").get("image")
        if not isinstance(image, str):
            raise CorpusError(
                f"Every record of `{records.path.name}` names its `image`, one of `{part}` does not. Pass the file "
                "as the challenge distributes it."
            )
        study_id = image.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".nii")
        known = parts.setdefault(part, {})
        if study_id in known:
            drops.drop("listed twice, the first is kept", study_id)
        elif part not in ("training", "validation"):
            drops.drop("official test part: its report is hidden", study_id)
        known.setdefault(study_id, span)
    if not parts.keys() & {"training", "validation"}:
        raise CorpusError(
            f"`{records.path.name}` lists studies under `training` and `validation`, found {sorted(parts)}. Pass the "
            "file as the challenge distributes it."
        )
    return parts


def _labels(record: Mapping[str, Any], study_id: str) -> Mapping[str, Any]:
    labels = record.get("labels")
    if not isinstance(labels, dict):
        raise CorpusError(
            f"A record of AMOS-MM holds `labels`, that of `{study_id}` holds {sorted(record)}. Pass the files as the "
            "challenge distributes them."
        )
    return labels


def _report(record: Mapping[str, Any], study_id: str) -> Mapping[str, Any]:
    report = _labels(record, study_id).get("report")
    if not isinstance(report, dict) or not isinstance(report.get("findings"), dict):
        raise CorpusError(
            f"A record of AMOS-MM holds `labels.report.findings` per region, that of `{study_id}` does not. Pass the "
            "files as the challenge distributes them."
        )
    return report


def _sections(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the findings of every region that has any."""
    texts = [(region, str(report["findings"].get(region) or "").strip()) for region in REGIONS]
    return [(region, text) for region, text in texts if text]


def _impression(report: Mapping[str, Any]) -> str:
    """Return the impression, which the index gives as one text, per region, or not at all."""
    impression = report.get("impressions") or report.get("impression") or ""
    if isinstance(impression, dict):
        impression = [impression.get(region) or "" for region in REGIONS]
    lines = impression if isinstance(impression, list) else [impression]
    flat = [part for line in lines for part in (line if isinstance(line, list) else [line])]
    return "\n".join(text for text in (str(part).strip() for part in flat) if text)


def _questions(items: Sequence[Mapping[str, Any]], study_id: str, drops: Drops) -> list[dict[str, Any]]:
    """Replace the letter of each answer by the text of its option."""
    pairs = []
    for item in items:
        options = {letter: str(text).strip() for letter, text in (item.get("options") or {}).items()}
        answer = str(item.get("answer") or "").strip()
        answer = options.get(answer.rstrip(".").upper(), answer)
        question = str(item.get("question") or "").strip()
        if not question or not answer or (options and answer not in options.values()):
            drops.note("question left out: no text, or its answer is none of its options", study_id)
            continue
        kind = str(item.get("type") or "")
        pairs.append(
            {"question": question, "options": list(options.values()), "answer": answer, "kind": kind}
        )
    return pairs


def _image(root: Path, name: str, study_id: str, channel: int | None, drops: Drops) -> str | None:
    path = inside(root, name)
    if not path.is_file():
        drops.drop("report without volume", study_id)
        return None
    num_volumes = 1 if channel is None else _num_volumes(path)
    if channel is None or num_volumes == 1:
        return str(path)
    if channel >= num_volumes:
        drops.drop("4-D without the volume asked for", study_id)
        return None
    drops.note(f"4-D: volume {channel} taken, counted from 0", study_id)
    return volume_reference(path, channel=channel)


def _num_volumes(path: Path) -> int:
    """Read how many volumes a NIfTI-1 header announces; 1 where it cannot be read, which loading will explain."""
    try:
        with path.open("rb") as stream:
            is_gzip = stream.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_gzip else path.open("rb") as stream:
            head = stream.read(56)
    except (OSError, EOFError, zlib.error):
        return 1
    if len(head) < 56:
        return 1
    order = "<" if struct.unpack_from("<i", head)[0] == 348 else ">"
    num_axes, *shape = struct.unpack_from(f"{order}8h", head, 40)
    return max(1, shape[3]) if num_axes >= 4 else 1


def _numbers(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what is a number or a list of numbers: nothing that could name a person."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float)

    return {
        key: value
        for key, value in meta.items()
        if is_number(value) or (isinstance(value, list) and all(map(is_number, value)))
    }


def _count_leftovers(root: Path, studies: Mapping[str, Mapping[str, Span]], drops: Drops) -> None:
    """Count the volumes on disk that no study uses."""
    for part, folder in (("training", "imagesTr"), ("validation", "imagesVa")):
        for path in sorted((root / folder).glob("*.nii.gz")):
            study_id = path.name.removesuffix(".nii.gz")
            if study_id in studies.get(part, {}):
                continue
            if part == "training" and study_id in studies.get("validation", {}):
                drops.note("volume in both archives, that of the validation part is used", study_id)
            else:
                drops.drop("volume without report", study_id)
