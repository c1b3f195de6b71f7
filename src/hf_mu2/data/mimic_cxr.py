"""MIMIC-CXR: 227,835 chest radiograph reports, text only, for work on report text.

Reads: the tree of reports (`files/p10/p10000032/s50414267.txt`, or `p10/...`) or `mimic_cxr_sectioned.csv`, and
`mimic-cxr-2.0.0-split.csv`, packed or not.

Johnson et al., Scientific Data 2019, doi 10.1038/s41597-019-0322-0. PhysioNet Credentialed Health Data License 1.5.0:
the reports and what is derived from them stay with those who have signed, so no text may go to an API.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hf_mu2.tables import read_rows

from .corpus import CorpusError, CorpusInfo, Drops, cut_parts, inside, required
from .csv_index import CsvIndex
from .sections import split_sections
from .study import TEXTS, make_study

INFO = CorpusInfo(
    name="mimic_cxr",
    title="MIMIC-CXR",
    licence="other",
    terms="Credentialed access at PhysioNet under its data use agreement: no sharing, no third-party services, no "
    "attempt to identify anyone.",
    url="https://physionet.org/content/mimic-cxr/",
    citation="Johnson et al., MIMIC-CXR, a de-identified publicly available database of chest radiographs with "
    "free-text reports, Scientific Data 2019, doi 10.1038/s41597-019-0322-0.",
    egress=False,
    redistributable=False,
    regions=("chest",),
    split_policy="The official split, by patient. With `split_by='patient'` parts are cut by a hash of the patient.",
)
SPLIT, SECTIONED = "mimic-cxr-2.0.0-split.csv", "mimic_cxr_sectioned.csv"
_SPLIT_OF = {"train": "train", "validate": "validation", "test": "test"}
_REPORT = re.compile(r"p\d{2}/p(?P<patient>\d{8})/s(?P<study>\d{8})\.txt$")
_SECTIONS = ("findings", "impression", "last_paragraph", "comparison")


class _Place(NamedTuple):
    patient: str
    split: str


def read_studies(
    root: Path,
    drops: Drops,
    *,
    split_by: str = "official",
    validation_share: float = 0.02,
    test_share: float = 0.02,
) -> Iterator[dict[str, Any]]:
    """Yield the reports in the order of patient and study, or of the sectioned table.

    A report without findings and impression keeps its last paragraph among `sections`.

    Args:
        split_by (`str`): `"official"` needs the split table; `"patient"` needs the tree, and cuts `validation_share`
            and `test_share` by a hash of the patient.

    Raises:
        CorpusError: if reports or the split table are missing, or a table lacks a column or contradicts itself.
    """
    if split_by not in ("official", "patient"):
        raise CorpusError(f'`split_by` is "official" or "patient", got "{split_by}". Pass one of the two.')
    table = root / SECTIONED
    if split_by == "patient":
        if table.exists():
            raise CorpusError(
                f"`{SECTIONED}` names no patients, which `split_by='patient'` needs. Pass the tree of reports as the "
                "root, or add the official split table."
            )
        places = None
    else:
        places = _read_places(required(root, SPLIT, f"{SPLIT}.gz"), drops)
    reports = _read_table(table, drops) if table.exists() else _read_tree(root, drops)
    used: set[str] = set()
    for study, patient, sections in reports:
        study_id = f"s{study}"
        if places is None:
            place = _Place(patient, cut_parts(patient, validation_share, test_share))
        elif study not in places:
            drops.drop("report that the split table does not name", study_id)
            continue
        else:
            place = places[study]
            used.add(study)
        sections = {name: " ".join(text.split()) for name, text in sections.items() if text.strip()}
        sections["indication"] = sections.get("indication") or sections.get("history", "")
        if not sections.keys() & {"findings", "impression", "last_paragraph"}:
            drops.drop("without findings, impression and last paragraph", study_id)
            continue
        if not sections.keys() & {"findings", "impression"}:
            drops.note("without findings and impression, kept for its last paragraph", study_id)
        texts: dict[str, Any] = {name: sections.get(name, "") for name in TEXTS}
        yield make_study(
            study_id,
            corpus=INFO.name,
            patient_id=f"p{place.patient}",
            split=place.split,
            egress=INFO.egress,
            **texts,
            sections=[
                (name, text) for name, text in sections.items() if name not in (*TEXTS, "preamble", "history")
            ],
            region="chest",
            metadata={"modality": "radiograph"},
        )
    for study in sorted(set(places or ()) - used):
        drops.drop("named by the split table, no report", f"s{study}")


def _read_places(path: Path, drops: Drops) -> dict[str, _Place]:
    """Read who is in which split; the table has a row per picture, so a study comes several times."""
    places: dict[str, _Place] = {}
    for row in read_rows(path, ("study_id", "subject_id", "split")):
        study = row["study_id"]
        if row["split"] not in _SPLIT_OF:
            drops.drop("picture with a split that is none of train, validate and test", f"s{study}")
            continue
        place = _Place(row["subject_id"], _SPLIT_OF[row["split"]])
        if places.setdefault(study, place) != place:
            raise CorpusError(
                f"A study is in one split and of one patient, `s{study}` is in several in `{path.name}`. "
                "Download the file again."
            )
    return places


def _read_tree(root: Path, drops: Drops) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Read every report below `files`, or below the root itself."""
    folder = root / "files" if (root / "files").is_dir() else root
    groups = sorted(path for path in folder.glob("p[0-9][0-9]") if path.is_dir())
    if not groups:
        raise CorpusError(
            f"MIMIC-CXR needs `{SECTIONED}` or the reports as `files/p10/p10000032/s50414267.txt`, found neither under "
            f"`{root}`. Unpack `mimic-cxr-reports.zip` there."
        )
    for group in groups:
        for path in sorted(group.glob("p*/s*.txt")):
            match = _REPORT.search(path.as_posix())
            if match is None:
                drops.drop("text file whose name is not that of a report", path.stem)
                continue
            inside(root, path)
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                drops.drop("report that is not UTF-8", path.stem)
                continue
            yield match["study"], match["patient"], dict(split_sections(text))


def _read_table(path: Path, drops: Drops) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Read the table that `create_section_files.py` of the MIMIC-CXR repository writes."""

    def number(cell: str) -> str | None:
        return cell.removeprefix("s") if re.fullmatch(r"s?\d{8}", cell) else None

    with CsvIndex(path, "study", _SECTIONS, number, drops) as table:
        for study in table:
            row, *again = table.rows(study)
            if again:
                raise CorpusError(
                    f"A study comes once, `s{study}` comes {1 + len(again)} times in `{path.name}`. Keep one row."
                )
            yield study, "", {name: row[name] for name in _SECTIONS}
