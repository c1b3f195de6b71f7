"""AbdomenAtlas 3.0 Mini (RadGPT): abdominal CT with five kinds of report and some seventy measurements per study.

Reads: `AbdomenAtlas3.0MiniWithMeta.csv`, the lists in `TrainTestIDS`, and the volumes: folders `BDMAP_<number>` holding
`ct.nii.gz`, or the shards `AbdomenAtlas3_images_*_BDMAP_<first>_BDMAP_<last>.tar[.gz]`; under the root or `image_only`.

Data CC BY-NC-SA 4.0, from 17 public sets with terms of their own.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_mu2.model.volume_mu2 import volume_reference

from .corpus import CorpusError, CorpusInfo, Drops, cut_validation, inside, required
from .csv_index import CsvIndex
from .study import make_study

INFO = CorpusInfo(
    name="abdomen_atlas",
    title="AbdomenAtlas 3.0 Mini",
    licence="cc-by-nc-sa-4.0",
    terms="Open download, not for commercial use. The volumes come from 17 public sets whose own terms, some of which "
    "forbid redistribution, still hold.",
    url="https://huggingface.co/datasets/AbdomenAtlas/AbdomenAtlas3.0Mini",
    citation="Bassi et al., RadGPT: Constructing 3D Image-Text Tumor Datasets, ICCV 2025.",
    egress=True,
    redistributable=False,
    regions=("abdomen",),
    split_policy="The published lists: IID (default) or OOD, train and test. Validation is cut from the train list. No "
    "patient is named, so a study is a patient. AMOS, LiTS, BTCV, AbdomenCT-1K and TotalSegmentator are among the "
    "sources: expect overlap with corpora and benchmarks made from them, AMOS-MM included.",
)
TABLES = (
    "AbdomenAtlas3.0MiniWithMeta.csv",
    "AbdomenAtlas3.0.csv",
)  # the second is the name of older downloads
KEY = "BDMAP ID"
REPORTS = {
    "narrative": "narrative report",
    "structured": "structured report",
    "fusion narrative": "fusion narrative report",
    "fusion structured": "fusion structured report",
    "radiologist note": "radiologist note",
}
LISTS = ("IID", "OOD")
FIRST_RSNA = 5196  # ids from here on come from the RSNA abdominal trauma set: few tumours

_ID = re.compile(r"BDMAP_(\d{8})")
_SHARD = re.compile(r".*_BDMAP_(\d{8})_BDMAP_(\d{8})\.tar(\.gz)?")
_IMPRESSION = re.compile(r"\bIMPRESSIONS?\s*:|^\s*(?i:impressions?)\s*:", re.MULTILINE)
_FINDINGS = re.compile(r"\A\s*findings\s*:\s*", re.IGNORECASE)


def read_studies(
    root: Path,
    drops: Drops,
    *,
    report: str = "narrative",
    lists: str = "IID",
    validation_share: float = 0.05,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yield the studies in the order of the table.

    Args:
        report (`str`): Which text becomes findings and impression. `"structured"` is a template filled from masks,
            `"narrative"` a language model's rewording of it; `"fusion structured"` and `"fusion narrative"` merge in
            the `"radiologist note"` and exist, like it, for few studies.
        lists (`str`): `"IID"` or `"OOD"`, the published lists that say what is train and what is test.
        validation_share (`float`): Share of the train list that becomes the validation split.

    Raises:
        CorpusError: if the table or a list is missing, lacks a column or is not UTF-8, or a path leaves `root`.
    """
    if report not in REPORTS or lists not in LISTS:
        raise CorpusError(
            f"`report` is one of {', '.join(REPORTS)} and `lists` one of {', '.join(LISTS)}, got {report!r} and "
            f"{lists!r}. Pass one of them."
        )
    train, test = (_read_list(root, f"{lists}_{part}.csv", drops) for part in ("train", "test"))
    shards = _shards(root)
    with CsvIndex(required(root, *TABLES), KEY, [REPORTS[report]], _study_id, drops) as table:
        for study_id in table:
            row, *again = table.rows(study_id)
            for _ in again:
                drops.drop("listed twice, the first is kept", study_id)
            text = row[REPORTS[report]]
            if study_id not in train and study_id not in test:
                drops.drop(f"in neither {lists} list", study_id)
            elif _is_blank(text):
                drops.drop(f"no {REPORTS[report]}", study_id)
            elif (image := _image(root, study_id, shards, drops)) is None:
                drops.drop("report without volume", study_id)
            else:
                if study_id in train and study_id in test:
                    drops.note("in the train and the test list, kept in test", study_id)
                findings, impression = _split(text)
                yield make_study(
                    study_id,
                    corpus=INFO.name,
                    split="test" if study_id in test else cut_validation(study_id, validation_share, seed),
                    egress=INFO.egress,
                    images=[image],
                    findings=findings,
                    impression=impression,
                    region="abdomen",
                    metadata=_metadata(row) | {"report": report, "lineage": _lineage(study_id)},
                )
        for folder in sorted({*root.glob("BDMAP_*/ct.nii.gz"), *root.glob("image_only/BDMAP_*/ct.nii.gz")}):
            if folder.parent.name not in table:
                drops.drop("volume without report", folder.parent.name)


def _read_list(root: Path, name: str, drops: Drops) -> set[str]:
    with CsvIndex(required(root, f"TrainTestIDS/{name}"), KEY, [], _study_id, drops) as ids:
        return set(ids)


def _study_id(cell: str) -> str | None:
    return cell.strip() if _ID.fullmatch(cell.strip()) else None


def _shards(root: Path) -> list[tuple[range, Path]]:
    """Return which studies each shard holds, as its name says; uncompressed shards come first."""
    found = []
    for path in sorted((*root.glob("*.tar*"), *root.glob("image_only/*.tar*"))):
        if match := _SHARD.fullmatch(path.name):
            found.append((match[3] is not None, range(int(match[1]), int(match[2]) + 1), path))
    return [(ids, inside(root, path.relative_to(root))) for _, ids, path in sorted(found, key=lambda f: f[0])]


def _image(root: Path, study_id: str, shards: list[tuple[range, Path]], drops: Drops) -> str | None:
    for name in (f"{study_id}/ct.nii.gz", f"image_only/{study_id}/ct.nii.gz"):
        if (root / name).exists():
            return str(inside(root, name))
    number = int(study_id.removeprefix("BDMAP_"))
    for ids, path in shards:
        if number in ids:
            if path.suffix == ".gz":
                drops.note("in a compressed shard, read from its start for every volume", study_id)
            return volume_reference(path, member=f"{study_id}/ct.nii.gz")
    return None


def _is_blank(cell: str) -> bool:
    return cell.strip().lower() in ("", "nan")


def _split(text: str) -> tuple[str, str]:
    """Split a report at its last heading "IMPRESSION:", if it has one; headings themselves are left out."""
    headings = list(_IMPRESSION.finditer(text))
    findings, impression = (
        (text[: headings[-1].start()], text[headings[-1].end() :]) if headings else (text, "")
    )
    return _FINDINGS.sub("", findings, count=1).strip(), impression.strip()


def _metadata(row: dict[str, str]) -> dict[str, Any]:
    """Return every measured or recorded value under its column's name, numbers as numbers, blanks left out."""
    columns = set(row) - {KEY, *REPORTS.values()}
    return {column: _value(row[column]) for column in sorted(columns) if not _is_blank(row[column])}


def _value(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell.strip()


def _lineage(study_id: str) -> str:
    is_rsna = int(study_id.removeprefix("BDMAP_")) >= FIRST_RSNA
    return "RSNA abdominal trauma" if is_rsna else "16 other public sets"
