"""A corpus of one's own: a table of studies beside NIfTI files, DICOM folders or DICOM zips.

Reads: `metadata.csv` (or .tsv, .jsonl, .parquet; packed with gzip or not), or one per split as `train/metadata.csv`,
and the volumes that it names.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_mu2.model.volume_mu2 import volume_reference
from hf_mu2.tables import ENDINGS, read_rows

from .corpus import CorpusError, CorpusInfo, Drops, cut_parts, inside
from .sections import split_sections
from .study import FINDING_LABELS, REGIONS, SPLITS, TEXTS, make_study

INFO = CorpusInfo(
    name="folder",
    title="A folder of one's own",
    licence="other",
    terms="Whatever holds for your data. Nothing in it may leave this machine unless you pass `egress=True`.",
    url="",
    citation="",
    egress=False,
    redistributable=False,
    regions=REGIONS,
    split_policy="The column `split`, or the folders of the tables; otherwise cut by a hash of the patient, a tenth "
    "for validation and a tenth for test.",
)
VOLUME_COLUMNS = ("volume", "volumes", "images", "images_file_names", "file_name")
_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_VOLUME_ENDINGS = (".nii.gz", ".nii", ".zip")
_LABELS = {label.lower(): label for label in FINDING_LABELS}
_TOLD = {"report", "findings", "impression", "questions", "labels", *_LABELS}


def read_studies(
    root: Path,
    drops: Drops,
    *,
    table: str | None = None,
    keep: Sequence[str] = (),
    egress: bool = False,
    validation_share: float = 0.1,
    test_share: float = 0.1,
) -> Iterator[dict[str, Any]]:
    """Yield the studies in the order of the table.

    Args:
        table (`str`, *optional*): The table under `root`; `metadata.*`, or the only table there, when not given.
        keep (`Sequence[str]`): Other columns to carry along in `metadata`. None are by default: they may name patients.
        egress (`bool`): Whether the text may leave this machine, e.g. to a judge behind an API.
        validation_share, test_share (`float`): Shares of the patients, where the table says no split.

    Raises:
        CorpusError: if there is no table, a column is missing or odd, a path leaves `root`, or a patient is in two
            splits.
    """
    split_of: dict[str, str] = {}
    used: set[Path] = set()
    for path, folder_split in _find_tables(root, table):
        for number, cells in enumerate(read_rows(path), 1):
            row = {column.strip().lower(): value for column, value in cells.items() if value is not None}
            where = f"row {number} of `{path.name}`"
            if not set(map(str.lower, map(str.strip, cells))) & _TOLD:
                raise CorpusError(
                    f"A table of studies has a report (`report`, `findings` or `impression`), `questions` or labels, "
                    f"{where} has {list(cells)[:40]}. Rename the columns."
                )
            names = _volume_names(row, path, where)
            study_id = _cell(row, "study_id") or _stem(names)
            if not study_id:
                raise CorpusError(
                    f"A table of studies has the column `study_id` or one of {', '.join(VOLUME_COLUMNS)}, {where} has "
                    f"{list(cells)[:40]}. Rename the columns."
                )
            patient_id = _cell(row, "patient_id") or study_id
            split = _split(row, folder_split, patient_id, validation_share, test_share, where)
            if split_of.setdefault(patient_id, split) != split:
                raise CorpusError(
                    f"A patient is in one split, the one of study `{study_id}` ({where}) is in {split_of[patient_id]} "
                    f"and {split}. Move the studies of a patient together."
                )
            paths = [inside(root, path.parent / name) for name in names or _look_up(path.parent, study_id)]
            used.update(paths)
            texts = _texts(row)
            labels, questions = _labels(row, study_id, where, drops), _parsed(row.get("questions")) or []
            if any(not found.exists() for found in paths):
                drops.drop("report without volume", study_id)
            elif not any(texts.values()) and not questions and not labels:
                drops.drop("volume without report, questions and labels", study_id)
            else:
                if not paths:
                    drops.note("without a volume, text only", study_id)
                sections = texts.pop("sections")
                yield make_study(
                    study_id,
                    corpus=INFO.name,
                    patient_id=patient_id,
                    split=split,
                    egress=egress,
                    images=[_reference(found, row) for found in paths],
                    **texts,
                    sections=sections,
                    labels=labels,
                    questions=questions,
                    region=_cell(row, "region").lower(),
                    metadata={column: row[column.lower()] for column in keep if column.lower() in row},
                )
    for path in sorted(root.rglob("*")):
        if path.name.lower().endswith(_VOLUME_ENDINGS) and path.resolve() not in used:
            drops.drop("volume that no row names", _stem([path.name]))


def _find_tables(root: Path, name: str | None) -> list[tuple[Path, str]]:
    """Return the tables and the split that the folder of each stands for, `""` for one in the root."""
    if name is not None:
        path = inside(root, name)
        if not path.is_file():
            raise CorpusError(f"`table` must be a file under `{root}`, got `{name}`. Check the name.")
        return [(path, "")]
    found = (
        [path for path in sorted(root.iterdir()) if path.name.lower().endswith(ENDINGS)]
        if root.is_dir()
        else []
    )
    named = [path for path in found if path.name.startswith("metadata.")] or found
    if len(named) == 1:
        return [(named[0], "")]
    in_splits = [
        (path, _SPLIT_OF[folder.name])
        for folder in (sorted(root.iterdir()) if root.is_dir() else ())
        if folder.is_dir() and folder.name in _SPLIT_OF
        for path in sorted(folder.glob("metadata.*"))
        if path.name.endswith(ENDINGS)
    ]
    if named or not in_splits:
        raise CorpusError(
            f"A folder of studies has one table, `metadata.csv` (or {', '.join(ENDINGS[2:])}), found "
            f"{[path.name for path in named[:12]] or 'none'} in `{root}`. Name it with `table`, or write one."
        )
    return in_splits


def _volume_names(row: Mapping[str, Any], path: Path, where: str) -> list[str]:
    """Return the paths in the volume column: a list, or text with `;` between several."""
    given = [row[column] for column in VOLUME_COLUMNS if row.get(column)]
    if len(given) > 1:
        raise CorpusError(
            f"Volumes are named in one of {', '.join(VOLUME_COLUMNS)}, {where} uses {len(given)}. Keep one."
        )
    names = given[0] if given else []
    if isinstance(names, str):
        names = names.split(";")
    return [str(name["path"] if isinstance(name, dict) else name).strip() for name in names]


def _look_up(folder: Path, study_id: str) -> list[str]:
    """Find the volume of a study that the table does not name: `<study_id>.nii.gz`, .nii, .zip or a DICOM folder."""
    candidates = [f"{study_id}{ending}" for ending in (*_VOLUME_ENDINGS, "")]
    return [name for name in candidates if (folder / name).exists()][:1]


def _cell(row: Mapping[str, Any], column: str) -> str:
    """Return a cell as text, `""` for one that is missing; 0 is a value."""
    return str(row.get(column, "")).strip()


def _stem(names: Sequence[str]) -> str:
    """Return the name of the first volume without folder and ending."""
    name = names[0].rstrip("/").rsplit("/", 1)[-1] if names else ""
    ending = next((ending for ending in _VOLUME_ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def _split(
    row: Mapping[str, Any],
    folder_split: str,
    patient_id: str,
    validation_share: float,
    test_share: float,
    where: str,
) -> str:
    word = (_cell(row, "split") or folder_split).lower()
    if not word:
        return cut_parts(patient_id, validation_share, test_share)
    if word not in _SPLIT_OF:
        raise CorpusError(
            f"`split` is one of {', '.join(SPLITS)}, got `{word}` in {where}. Use one of these words."
        )
    return _SPLIT_OF[word]


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return findings, impression, indication and technique, and the other sections of a `report` column."""
    texts: dict[str, Any] = {name: _cell(row, name) for name in TEXTS}
    parsed = dict(split_sections(_cell(row, "report")))
    if "report" in parsed:  # no headings: all of it is findings
        parsed = {"findings": _cell(row, "report")}
    parsed.setdefault("indication", parsed.pop("history", ""))
    for name in TEXTS:
        texts[name] = texts[name] or parsed.pop(name, "")
    return texts | {"sections": [(name, text) for name, text in parsed.items() if name not in TEXTS and text]}


def _labels(row: Mapping[str, Any], study_id: str, where: str, drops: Drops) -> dict[str, int | None]:
    """Return the finding labels, one column each or as one object `labels`; an empty cell is unknown."""
    given = _parsed(row.get("labels")) or {}
    if not isinstance(given, dict):
        raise CorpusError(
            f'`labels` is an object such as {{"Emphysema": 1}}, got {type(given).__name__} in {where}. Write one, or '
            "a column per label."
        )
    given = {
        **{name.lower(): value for name, value in given.items()},
        **{name: row[name] for name in _LABELS if name in row},
    }
    if set(given) - set(_LABELS):
        drops.note("labels that are none of the 18 left out", study_id)
    labels: dict[str, int | None] = {}
    for name in given.keys() & _LABELS.keys():
        cell = str(given[name]).strip().lower()
        if cell in ("", "none", "nan"):
            continue
        if cell not in _LABEL_WORDS:
            raise CorpusError(
                f"A label is 1, 0 or empty, got `{cell[:20]}` for `{_LABELS[name]}` in {where}. Threshold it first."
            )
        labels[_LABELS[name]] = _LABEL_WORDS[cell]
    return labels


_LABEL_WORDS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}


def _parsed(cell: Any) -> Any:
    """Read a cell of csv that holds JSON; JSON lines and Parquet have parsed it already."""
    if not isinstance(cell, str) or not cell.strip():
        return cell or None
    try:
        return json.loads(cell)
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"`labels` and `questions` hold JSON in a csv, one does not ({error}). Mend it."
        ) from None


def _reference(path: Path, row: Mapping[str, Any]) -> str:
    """Return the path, with the series or channel that the row asks for."""
    series, channel = _cell(row, "series"), _cell(row, "channel")
    if not series and not channel:
        return str(path)
    return volume_reference(
        path,
        series=int(series) if series.isdecimal() else series or None,
        channel=int(channel) if channel.isdecimal() else None,
    )
