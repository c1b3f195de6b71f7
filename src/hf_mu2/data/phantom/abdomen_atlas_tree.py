"""Write PhantomCT studies as an AbdomenAtlas 3.0 Mini archive: the same names, columns and ids, synthetic contents.

Writes: `AbdomenAtlas3.0MiniWithMeta.csv`, `TrainTestIDS`, and volumes as folders or as a tar shard in `image_only`.
"""

import csv
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from hf_mu2.files import replace_text, replacing

from ..abdomen_atlas import KEY, LISTS, REPORTS, TABLES
from .amos_mm_tree import write_volume
from .generate import Phantom

_ATTENUATION = "attenuation (hyperattenuating, isoattenuating, hypoattenuating)"


def _lesions(organ: str, kinds: Sequence[str], counted: Sequence[str], location: str) -> tuple[str, ...]:
    """Name the columns of an organ's lesions: volumes, numbers, diameters, places, attenuations, in that order."""
    return (
        *(f"total {organ} {kind} volume (cm^3)" for kind in kinds),
        *(f"number of {organ} {kind} instances" for kind in kinds),
        *(f"largest {organ} {kind} diameter (cm)" for kind in counted),
        *(f"largest {organ} {kind} location ({location})" for kind in counted),
        *(f"largest {organ} {kind} {_ATTENUATION}" for kind in counted),
    )


COLUMNS = (
    *(KEY, "spacing", "shape", "sex", "age", "scanner", "contrast"),
    "liver volume (cm^3)",
    *_lesions("liver", ("lesion", "tumor", "cyst"), ("lesion", "cyst", "tumor"), "1-8"),
    "pancreas volume (cm^3)",
    *_lesions(
        "pancreatic",
        ("lesion", "tumor", "PDAC", "cyst"),
        ("lesion", "cyst", "tumor", "PDAC"),
        "head, body, tail",
    ),
    "pancreatic tumor staging (T1-T4)",
    *("left kidney volume (cm^3)", "right kidney volume (cm^3)", "kidney volume (cm^3)"),
    *_lesions("kidney", ("lesion", "cyst", "tumor"), ("lesion", "cyst", "tumor"), "left, right"),
    "spleen volume (cm^3)",
    *("total colon lesion volume (cm^3)", "number of colon lesion instances"),
    *("largest colon lesion diameter (cm)", f"largest colon lesion {_ATTENUATION}"),
    *("total esophagus lesion volume (cm^3)", "number of esophagus lesion instances"),
    "largest esophagus lesion diameter (cm)",
    *("total uterus lesion volume (cm^3)", "number of uterus lesion instances"),
    "largest uterus lesion diameter (cm)",
    *("radiologist note", "structured report", "narrative report"),
    *("fusion structured report", "fusion narrative report"),
)
_MEASURED = {  # what the abdomen of PhantomCT draws, as the table names it
    "Liver lesion": ("liver lesion",),
    "Pancreatic lesion": ("pancreatic lesion",),
    "Renal cyst": ("kidney lesion", "kidney cyst"),
}


def write_abdomen_atlas_tree(
    root: str | Path, studies: Sequence[Phantom], *, num_test: int = 1, archive: str | None = None
) -> Path:
    """Write studies in the layout of AbdomenAtlas 3.0 Mini and return `root`.

    Every second study has a radiologist's note and with it the two fusion reports.

    Args:
        num_test (`int`): How many of the last studies go to the IID test list; they are the OOD train list, and the
            others its test list.
        archive (`str`, *optional*): `"tar"` or `"tar.gz"` for one shard in `image_only` instead of folders.
    """
    root = Path(root)
    ids = [f"BDMAP_{index + 1:08d}" for index in range(len(studies))]
    table = io.StringIO(newline="")
    rows = csv.DictWriter(table, COLUMNS)
    rows.writeheader()
    for index, (study_id, phantom) in enumerate(zip(ids, studies, strict=True)):
        write_volume(phantom, root / "image_only" / study_id / "ct.nii.gz")
        rows.writerow(_row(study_id, phantom, has_note=index % 2 == 0))
    replace_text(root / TABLES[0], table.getvalue())
    cut = len(ids) - num_test
    for name, (train, test) in zip(LISTS, ((ids[:cut], ids[cut:]), (ids[cut:], ids[:cut])), strict=True):
        for part, members in (("train", train), ("test", test)):
            replace_text(root / "TrainTestIDS" / f"{name}_{part}.csv", "\n".join([KEY, *members]) + "\n")
    if archive is not None:
        _archive(root / "image_only", ids, archive)
    return root


def _row(study_id: str, phantom: Phantom, has_note: bool) -> dict[str, str]:
    depth, height, width = phantom.volume.shape
    findings, impression = phantom.report.findings, phantom.report.impression
    structured = f"FINDINGS:\n{findings}\n\nIMPRESSION:\n{impression}"
    row = {
        KEY: study_id,
        "spacing": str(phantom.spacing[::-1]),
        "shape": str((width, height, depth)),
        REPORTS["structured"]: structured,
        REPORTS["narrative"]: f"{findings}\n\nIMPRESSION: {impression}",
    }
    for finding in phantom.findings:
        for name in _MEASURED.get(finding.label, ()):
            row[f"number of {name} instances"] = str(finding.count)
            if finding.size_mm is not None:
                row[f"largest {name} diameter (cm)"] = f"{finding.size_mm / 10:.1f}"
            if name.startswith("kidney") and finding.side in ("left", "right"):
                row[f"largest {name} location (left, right)"] = finding.side
    if has_note:
        note = impression
        row[REPORTS["radiologist note"]] = note
        row[REPORTS["fusion structured"]] = f"{structured}\nRadiologist: {note}"
        row[REPORTS["fusion narrative"]] = f"{findings} {note}\n\nIMPRESSION: {impression}"
    return row


def _archive(folder: Path, ids: Sequence[str], ending: str) -> None:
    """Move the volumes of a folder into the shard that holds all of `ids`."""
    shard = folder / f"AbdomenAtlas3_images_BDMAP_{ids[0]}_{ids[-1]}.{ending}"
    with replacing(shard) as partial, tarfile.open(partial, "w:gz" if ending == "tar.gz" else "w:") as tar:
        for study_id in ids:
            tar.add(folder / study_id / "ct.nii.gz", f"{study_id}/ct.nii.gz")
    for study_id in ids:
        (folder / study_id / "ct.nii.gz").unlink()
        (folder / study_id).rmdir()
