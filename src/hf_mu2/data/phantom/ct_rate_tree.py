"""Write PhantomCT studies as the tree of CT-RATE, in both of its versions, with its tables and its oddities.

Reads: nothing; every study is computed from its seed.
Writes: `dataset/` as on the Hub: volumes, reports, labels, metadata, no_chest lists and questions.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_mu2.files import replace_text

from ..nifti import save_nifti
from ..prompts import report_prompt
from ..study import FINDING_LABELS
from .generate import Phantom, make_phantom

if TYPE_CHECKING:
    import nibabel as nib

REPORT_COLUMNS = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
LABEL_COLUMNS = ("VolumeName", *FINDING_LABELS)
SPACINGS = ((5.0, 2.5, 2.5), (3.0, 2.5, 2.5))  # the reconstructions of every scan

_COLUMNS = """
VolumeName Manufacturer SeriesDescription ManufacturerModelName PatientSex PatientAge ReconstructionDiameter
DistanceSourceToDetector DistanceSourceToPatient GantryDetectorTilt TableHeight RotationDirection ExposureTime
XRayTubeCurrent Exposure FilterType GeneratorPower FocalSpots ConvolutionKernel PatientPosition RevolutionTime
SingleCollimationWidth TotalCollimationWidth TableSpeed TableFeedPerRotation SpiralPitchFactor
DataCollectionCenterPatient ReconstructionTargetCenterPatient ExposureModulationType CTDIvol ImagePositionPatient
ImageOrientationPatient SliceLocation SamplesPerPixel PhotometricInterpretation Rows Columns XYSpacing
RescaleIntercept RescaleSlope RescaleType NumberofSlices ZSpacing StudyDate
"""
METADATA_COLUMNS = tuple(_COLUMNS.split())
_SCANNERS = (  # manufacturer, model, intercept, sharp and soft kernel, as the real table pairs them
    ("Philips", "iCT 256", -1024, ("YA", "B")),
    ("Siemens Healthineers", "SOMATOM go.All", -8192, ("['Br60f', '3']", "['Br40f', '3']")),
)


@dataclass(frozen=True)
class _Scan:
    name: str
    seed: int
    scanner: tuple[str, str, int, tuple[str, str]]
    is_chest: bool
    has_impression: bool


def write_ct_rate_tree(
    out: str | Path,
    *,
    num_train: int = 3,
    num_valid: int = 2,
    seed: int = 0,
    versions: Sequence[str] = ("fixed", "v1"),
    spacings: Sequence[Sequence[float]] = SPACINGS,
    difficulty: str = "standard",
    valid_word: str | None = None,
) -> Path:
    """Write patients `1` to `num_train` and `num_valid` of each part as a CT-RATE tree; return `out`.

    Every second patient has two scans, every scan one reconstruction per spacing, every second scan an intercept of
    -8192 as the real Siemens Healthineers rows have. Every third scan has the impression "Not given.". One more
    patient per part is on the no_chest list.

    Args:
        out (`str` or `Path`): The folder to hold `dataset`.
        seed (`int`): Of the first scan; each scan has the next one.
        versions (`Sequence[str]`): `"fixed"` (int16 HU, LPS header) and `"v1"` (float32 stored values, blank header).
        spacings (`Sequence`): mm along (z, y, x), one per reconstruction; kernels alternate sharp and soft.
        valid_word (`str`, *optional*): One spelling of the official validation for every file, `"valid"` or
            `"validation"`; as on the Hub, where they are mixed, when not given. Volumes are named `valid_*` always.
    """
    out = Path(out)
    for part, num_patients in (("train", num_train), ("valid", num_valid)):
        scans = list(_scans(part, num_patients, seed))
        seed += len(scans)
        _write_part(out / "dataset", part, scans, versions, spacings, difficulty, valid_word)
    return out


def _scans(part: str, num_patients: int, seed: int) -> Iterator[_Scan]:
    """Plan the scans of a part; the last patient's is no chest."""
    index = 0
    for patient in range(1, num_patients + 2):
        for letter in "ab" if patient % 2 == 0 else "a":
            yield _Scan(
                f"{part}_{patient}_{letter}",
                seed + index,
                _SCANNERS[index % 2],
                patient <= num_patients,
                index % 3 != 2,
            )
            index += 1


def _write_part(
    base: Path,
    part: str,
    scans: Sequence[_Scan],
    versions: Sequence[str],
    spacings: Sequence[Sequence[float]],
    difficulty: str,
    valid_word: str | None,
) -> None:
    folder_word = valid_word if part == "valid" and valid_word else part
    table_word = "validation" if part == "valid" and not valid_word else folder_word
    reports, labels, metadata, questions, not_chest = [], [], [], [], []
    for scan in scans:
        for number, spacing in enumerate(spacings, 1):
            phantom = make_phantom(scan.seed, spacing=spacing, orientation="LPS", difficulty=difficulty)
            name = f"{scan.name}_{number}.nii.gz"
            image = phantom.nifti()
            for version in versions:
                folder = base / (f"{folder_word}_fixed" if version == "fixed" else folder_word)
                stored = image if version == "fixed" else v1_image(image, scan.scanner[2])
                save_nifti(stored, folder / scan.name.rsplit("_", 1)[0] / scan.name / name)
            reports.append(_report_row(name, phantom, scan))
            labels.append([name, *phantom.labels.values()])
            metadata.append(_metadata_row(name, image, phantom, scan, number))
            questions += _questions(name, phantom)
            not_chest += [] if scan.is_chest else [name]
    questions.append(
        {"id": f"article_{part}_0", "conversations": _conversation("What is a CT?", "X-rays.", "")}
    )
    write_table(base / f"radiology_text_reports/{table_word}_reports.csv", REPORT_COLUMNS, reports)
    write_table(base / f"multi_abnormality_labels/{folder_word}_predicted_labels.csv", LABEL_COLUMNS, labels)
    write_table(base / f"metadata/{table_word}_metadata.csv", METADATA_COLUMNS, metadata)
    replace_text(base / f"metadata/no_chest_{folder_word}.txt", "".join(f"{name}\n" for name in not_chest))
    replace_text(base / f"vqa/{folder_word}_vqa.json", json.dumps(questions, indent=1, ensure_ascii=False))


def v1_image(image: "nib.Nifti1Image", intercept: float) -> "nib.Nifti1Image":
    """Make the v1 file of a fixed one: the same voxels as stored values in float32, under a blank header."""
    import nibabel as nib

    stored = np.asanyarray(image.dataobj).astype(np.float32) - np.float32(intercept)
    return nib.Nifti1Image(stored, np.eye(4))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a csv as pandas does: quotes where needed, nothing for what is missing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    replace_text(path, text.getvalue())


def _report_row(name: str, phantom: Phantom, scan: _Scan) -> list[str]:
    impression = phantom.report.impression if scan.has_impression else "Not given."
    return [name, "Not given.", "Non-contrast chest CT.", phantom.report.findings, impression]


def _metadata_row(
    name: str, image: "nib.Nifti1Image", phantom: Phantom, scan: _Scan, number: int
) -> list[str | int | float]:
    maker, model, intercept, kernels = scan.scanner
    columns, rows, slices = image.shape
    depth_mm, height_mm, width_mm = phantom.spacing
    x, y, z = image.affine[:3, 3]
    values: dict[str, str | int | float] = {
        "VolumeName": name,
        "Manufacturer": maker,
        "SeriesDescription": "Thorax",
        "ManufacturerModelName": model,
        "PatientSex": "FM"[scan.seed % 2],
        "PatientAge": f"{30 + scan.seed % 50:03d}Y",
        "ReconstructionDiameter": round(columns * width_mm, 1),
        "GantryDetectorTilt": 0,
        "ConvolutionKernel": kernels[(number - 1) % 2],
        "PatientPosition": "HFS",
        "ImagePositionPatient": str([round(float(mm), 4) for mm in (-x, -y, z)]),  # DICOM counts in LPS
        "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
        "SliceLocation": round(float(z), 4),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": columns,
        "XYSpacing": str([height_mm, width_mm]),
        "RescaleIntercept": intercept,
        "RescaleSlope": 1,
        "NumberofSlices": slices,
        "ZSpacing": depth_mm,
        "StudyDate": 20210101 + scan.seed % 28,
    }
    return [values.get(column, "") for column in METADATA_COLUMNS]


def _questions(name: str, phantom: Phantom) -> list[dict[str, Any]]:
    """Write the question items of a volume: the report, one label in a word, one among options."""
    label, present = list(phantom.labels.items())[len(phantom.report.findings) % len(FINDING_LABELS)]
    finding = label.lower()
    choice = f"Is there {finding}? (a) yes (b) no (c) cannot be told"
    turns = {
        "report_generation": (report_prompt(phantom.study_id, "chest"), phantom.report.text),
        "presence": (f"Does this CT show {finding}?", "Yes" if present else "No"),
        "multiple_choice": (choice, "(a) yes" if present else "(b) no"),
    }
    return [
        {"id": f"{kind}_{name}", "image": name, "conversations": _conversation(*turn, kind)}
        for kind, turn in turns.items()
    ]


def _conversation(question: str, answer: str, kind: str) -> list[dict[str, str]]:
    mark = kind if kind in ("report_generation", "multiple_choice") else "short_answer"
    asked = {"from": "human", "type": kind, "value": f"<image>\n{question}<{mark}>"}
    return [asked, {"from": "gpt", "value": answer}]
