"""OpenI, the Indiana University chest X-ray collection: 3,955 reports, text only.

Reads: `NLMCXR_reports.tgz` as it is, its extracted `ecgen-radiology/*.xml`, or Kaggle's `indiana_reports.csv`.

Kohli and Rosenman 2013; Demner-Fushman et al., JAMIA 2016, doi 10.1093/jamia/ocv080. CC BY-NC-ND 4.0, as every one of
its XML files says, so it is not in the public domain. The pictures are radiographs and no CT: they are left alone.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .corpus import CorpusError, CorpusInfo, Drops, cut_parts, required
from .csv_index import CsvIndex
from .study import make_study

INFO = CorpusInfo(
    name="openi",
    title="OpenI (Indiana University chest X-rays)",
    licence="cc-by-nc-nd-4.0",
    terms="Free to download. Non-commercial use with attribution; no derivatives may be shared.",
    url="https://openi.nlm.nih.gov/",
    citation="Demner-Fushman et al., Preparing a collection of radiology examinations for distribution and retrieval, "
    "JAMIA 2016, doi 10.1093/jamia/ocv080.",
    egress=True,  # public text; a judge reads it and shares nothing
    redistributable=False,
    regions=("chest",),
    split_policy="No official split and no patients: reports are split by a hash of their findings (of the impression "
    "where there are none), so that equal findings are never in two splits.",
)
TGZ, FOLDER, TABLE = "NLMCXR_reports.tgz", "ecgen-radiology", "indiana_reports.csv"
_TABLE_TEXTS = ("findings", "impression", "indication", "comparison")


def read_studies(
    root: Path,
    drops: Drops,
    *,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    marker: str = "XXXX",
) -> Iterator[dict[str, Any]]:
    """Yield the reports by number.

    Args:
        root (`Path`): The archive, or a folder that holds one of the three forms.
        marker (`str`): What to write for `XXXX`, which stands where a name, date or number was taken out; `""` leaves
            it out. 1,486 findings have it, some in the place of a plain word.

    Raises:
        CorpusError: if none of the three forms is there, or the table lacks a column or is not UTF-8.
    """
    path = root if root.is_file() else required(root, TGZ, FOLDER, TABLE)
    if path.suffix == ".csv":
        reports = _read_table(path, drops)
    else:
        reports = _read_folder(path, drops) if path.is_dir() else _read_archive(path, drops)
    for number, report in reports:
        study_id = f"CXR{number}"
        texts: dict[str, Any] = {name: _mark(report[name], marker) for name in _TABLE_TEXTS}
        if not texts["findings"] and not texts["impression"]:
            drops.drop("without findings and impression", study_id)
            continue
        if "XXXX" in "".join(report[name] for name in _TABLE_TEXTS):
            drops.note("with XXXX, where something was taken out", study_id)
        comparison = texts.pop("comparison")
        key = " ".join(re.findall(r"\w+", (report["findings"] or report["impression"]).lower()))
        yield make_study(
            study_id,
            corpus=INFO.name,
            split=cut_parts(key, validation_share, test_share, seed),
            egress=INFO.egress,
            **texts,
            sections=[("comparison", comparison)] if comparison else [],
            region="chest",
            metadata={
                "mesh": report["mesh"],
                "mesh_automatic": report["mesh_automatic"],
                "modality": "radiograph",
            },
        )


def _mark(text: str, marker: str) -> str:
    return " ".join(text.replace("XXXX", marker).split())


def _read_archive(path: Path, drops: Drops) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Read the tgz once from front to back: its files are sorted as text, `10.xml` before `2.xml`."""
    reports: dict[int, Mapping[str, Any]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name.endswith(".xml") else None
                if stream is not None:
                    _add(reports, Path(member.name).stem, stream.read(), drops)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CorpusError(
            f"OpenI is read from a gzipped tar archive, `{path.name}` is damaged or none ({type(error).__name__}). "
            "Download it again."
        ) from error
    yield from sorted(reports.items())


def _read_folder(folder: Path, drops: Drops) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reports: dict[int, Mapping[str, Any]] = {}
    for path in folder.glob("*.xml"):
        if not path.resolve().is_relative_to(folder.resolve()):
            drops.drop("a link out of the folder", path.stem)
        else:
            _add(reports, path.stem, path.read_bytes(), drops)
    yield from sorted(reports.items())


def _add(reports: dict[int, Mapping[str, Any]], stem: str, content: bytes, drops: Drops) -> None:
    try:
        tree = ElementTree.fromstring(content)
    except ElementTree.ParseError:
        drops.drop("not well-formed XML in UTF-8", stem)
        return
    identity = tree.find("uId")
    number = "" if identity is None else identity.get("id", "").removeprefix("CXR")
    if not number.isdecimal():
        drops.drop("XML without a `uId`", stem)
    elif int(number) in reports:
        raise CorpusError(
            f"A report comes once, `CXR{number}` comes again in `{stem}.xml`. Remove one of the two files."
        )
    else:
        texts = {
            node.get("Label", "").lower(): "".join(node.itertext()).strip()
            for node in tree.iter("AbstractText")
        }
        reports[int(number)] = {name: texts.get(name, "") for name in _TABLE_TEXTS} | {
            "mesh": [node.text for node in tree.iterfind("MeSH/major")],
            "mesh_automatic": [node.text for node in tree.iterfind("MeSH/automatic")],
        }


def _read_table(path: Path, drops: Drops) -> Iterator[tuple[int, Mapping[str, Any]]]:
    def number(cell: str) -> str | None:
        return cell.strip() if cell.strip().isdecimal() else None

    with CsvIndex(path, "uid", (*_TABLE_TEXTS, "MeSH", "Problems"), number, drops) as table:
        for uid in sorted(table, key=int):
            row, *again = table.rows(uid)
            if again:
                raise CorpusError(
                    f"A report comes once, `uid` {uid} comes {1 + len(again)} times in `{path.name}`. Keep one row."
                )
            yield (
                int(uid),
                {
                    **{name: row[name].strip() for name in _TABLE_TEXTS},
                    "mesh": [term for term in row["MeSH"].split(";") if term],
                    "mesh_automatic": [term for term in row["Problems"].split(";") if term],
                },
            )
