"""M3D-Cap: 8-bit CT pictures of a teaching site with the description of each case.

Reads: `M3D_Cap.json`, `ct_case/<number>/text.txt` and `ct_quizze/<number>/text.txt`, and the volumes that
[`~hf_mu2.data.pictures.convert_pictures`] made from the folders of slices beside them.

Collected from Radiopaedia. The authors' card says Apache 2.0, the source does not: the dataset was taken down from the
Hub after a DMCA notice. Only for those who hold a copy and the rights to use it.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .corpus import CorpusError, CorpusInfo, Drops, inside, required
from .json_records import JsonRecords
from .pictures import MANIFEST, assumptions, convert_pictures, plane_of, window_of
from .study import make_study

INFO = CorpusInfo(
    name="m3d_cap",
    title="M3D-Cap",
    licence="other",
    terms="Images and text come from Radiopaedia, whose terms are CC BY-NC-SA with conditions of its own; the dataset "
    "was taken down from the Hub after a DMCA notice. Clear the rights with Radiopaedia before any use.",
    url="https://huggingface.co/datasets/GoodBaiBai88/M3D-Cap",
    citation="Bai et al., M3D: Advancing 3D Medical Image Analysis with Multi-Modal Large Language Models, 2024.",
    egress=False,
    redistributable=False,
    regions=(),
    split_policy="The published train, validation and test lists. A case is a patient; one listed in several goes to "
    "the last of them.",
)
INDEX = "M3D_Cap.json"
COLLECTIONS = ("ct_case", "ct_quizze")
SPLITS = ("train", "validation", "test")
NIFTI = "nifti"
MIN_CAPTION = 5  # letters below which the published preparation looks for another text


@dataclass
class _Case:
    """One case: its text, its split, and its axial series in the order of the index."""

    text: str
    split: str
    series: list[str] = field(default_factory=list)


def read_studies(
    root: Path, drops: Drops, *, volumes: str = NIFTI, all_series: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the cases that have an axial series, in the order of the index.

    Args:
        volumes (`str`): Folder under `root` that holds the converted pictures.
        all_series (`bool`): A study per axial series, all with the text of their case, instead of the first series
            of each case that is not a bone or lung window.

    Raises:
        CorpusError: if the index or the conversions are missing, or a path leaves `root`.
    """
    cases = _index(root, drops)
    if not (root / volumes / MANIFEST).exists():
        raise CorpusError(
            f"M3D-Cap holds 8-bit pictures, no volumes: convert them first, none lie under `{volumes}`. State the "
            "window and spacing to assume, e.g. `convert_m3d_cap(root, window=(40, 400), spacing=(5, 0.8, 0.8))`."
        )
    assumed = assumptions(inside(root, volumes))
    for name, case in cases.items():
        study_id = name.replace("/", "_")
        caption, source = _caption(inside(root, case.text), study_id, drops)
        if not caption:
            continue
        if not case.series:
            drops.drop("no axial series", study_id)
            continue
        plain = [series for series in case.series if window_of(PurePosixPath(series).name) is None]
        for series in case.series if all_series else [*plain, *case.series][:1]:
            path = inside(root, f"{volumes}/{series}.nii.gz")
            series_id = f"{study_id}_{PurePosixPath(series).name}" if all_series else study_id
            if not path.is_file():
                drops.drop("pictures not converted", series_id)
                continue
            drops.note("values and spacing assumed from pictures: not HU", series_id)
            yield make_study(
                series_id,
                corpus=INFO.name,
                split=case.split,
                egress=INFO.egress,
                patient_id=study_id,
                images=[str(path)],
                findings=caption,
                metadata={"series": series, "caption": source, "assumed": assumed},
            )
    listed = {series for case in cases.values() for series in case.series}
    for path in sorted((root / volumes).glob("*/*/*.nii.gz")):
        series = path.relative_to(root / volumes).as_posix().removesuffix(".nii.gz")
        if series not in listed:
            drops.drop("volume without report", series)


def convert_m3d_cap(
    root: str | Path,
    *,
    window: tuple[float, float],
    spacing: tuple[float, float, float],
    out: str = NIFTI,
    num_workers: int = 1,
) -> dict[str, str]:
    """Convert the axial pictures that the index lists; return why each series left out was.

    Args:
        window (`tuple`): Level and width in HU that pictures are assumed to show, where their name says no other.
        spacing (`tuple`): Assumed mm between slices, rows and columns. The pictures do not say.
    """
    root = Path(root)
    folders = [series for case in _index(root, Drops()).values() for series in case.series]
    return convert_pictures(root, folders, window=window, spacing=spacing, out=out, num_workers=num_workers)


def _index(root: Path, drops: Drops) -> dict[str, _Case]:
    """Return the cases by name, e.g. `ct_case/000007`, with the folders of their axial pictures."""
    cases: dict[str, _Case] = {}
    with JsonRecords(required(root, INDEX)) as records:
        for part, span, _ in records.places():
            if part not in SPLITS:  # subsets of the test list
                continue
            record = records.read(span, errors="replace")
            image, text = record.get("image"), record.get("text")
            if not isinstance(image, str) or not isinstance(text, str):
                raise CorpusError(
                    f"Every record of `{INDEX}` names `image` and `text`, one of `{part}` has {sorted(record)}. Pass "
                    "the file as its authors publish it."
                )
            series, text = _within(image).removesuffix(".npy"), _within(text)
            name = str(PurePosixPath(series).parent)
            case = cases.setdefault(name, _Case(text, part))
            if case.split != part:
                drops.note("listed in several splits, kept in the last", name)
                case.split = max(case.split, part, key=SPLITS.index)
            plane = plane_of(PurePosixPath(series).name)
            if plane != "axial":
                drops.note(f"series left out: {plane or 'unnamed plane'}", series)
            elif (folder := _folder(root, series)) in case.series:
                drops.note("series listed twice", series)
            else:
                case.series.append(folder)
    return cases


def _within(path: str) -> str:
    """Return a path of the index from its collection on: some copies put `M3D_Cap_npy/` in front."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    start = next((index for index, part in enumerate(parts) if part in COLLECTIONS), None)
    if start is None or ".." in parts[start:]:
        raise CorpusError(
            f"Paths of `{INDEX}` lie in {' or '.join(COLLECTIONS)}, got `{path}`. Pass the file as its authors "
            "publish it."
        )
    return "/".join(parts[start:])


def _folder(root: Path, series: str) -> str:
    """Return the folder of a series: the index spells it without the accents that folders keep."""
    if (root / series).is_dir():
        return series
    parent, name = series.rsplit("/", 1)
    for entry in sorted((root / parent).iterdir()) if (root / parent).is_dir() else ():
        if entry.is_dir() and _plain(entry.name) == name:
            return f"{parent}/{entry.name}"
    return series


def _plain(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", name) if unicodedata.category(c) != "Mn")


def _caption(path: Path, study_id: str, drops: Drops) -> tuple[str, str]:
    """Return the caption as the published preparation finds it, and which part of the text it is."""
    if not path.is_file():
        drops.drop("volume without report", study_id)
        return "", ""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        drops.drop("text is not UTF-8", study_id)
        return "", ""
    parts = {
        "findings": text.partition("study_findings:")[2],
        "discussion": text.partition("discussion:")[2],
        "text": text,
    }
    for source, part in parts.items():
        caption = " ".join(part.split())
        if len(caption.replace(" ", "")) >= MIN_CAPTION:
            return caption, source
    drops.drop("report without text", study_id)
    return "", ""
