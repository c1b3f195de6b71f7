"""A report in the formats that people and clinical systems read.

Reads: a [`Report`], the volume's source, key slices and pictures of them.
Writes: `report.pdf`, `report_sr.dcm`, `report_pdf.dcm`, `report_fhir_r4.json`, `report_fhir_r5.json`.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hf_mu2.files import replace_file, replacing
from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.dicom_sr import encapsulate_pdf, make_structured_report, source_headers
from hf_mu2.reporting.document import make_document, refuse_synthetic
from hf_mu2.reporting.fhir import make_diagnostic_report
from hf_mu2.reporting.pdf import render_pdf
from hf_mu2.reporting.report import Report

# What each is called in messages; those of clinical systems refuse what a synthetic checkpoint says.
FORMATS = {
    "pdf": "PDF",
    "dicom-sr": "DICOM structured report",
    "dicom-pdf": "DICOM encapsulated PDF",
    "fhir-r4": "FHIR R4 report",
    "fhir-r5": "FHIR R5 report",
}


def check_formats(formats: Sequence[str]) -> None:
    """Refuse a format that is none.

    Raises:
        ValueError: naming those there are.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(
            f"A format is one of {', '.join(FORMATS)}, got `{unknown[0]}`. Check the spelling of `--also`."
        )


def write_formats(
    report: Report,
    formats: Sequence[str],
    out: str | Path,
    source: str | Path,
    *,
    series: str | None = None,
    key_slices: Sequence[int] = (),
    pictures: Sequence[tuple[Image.Image, str]] = (),
    font: str | Path | None = None,
    allow_demo: bool = False,
) -> dict[str, Path]:
    """Write a report in each of the formats and return the files.

    Args:
        source (`str` or `Path`): Where the volume came from; DICOM formats reference its series, and FHIR names patient
            and study when it is DICOM.
        key_slices (`Sequence[int]`): Axial slices of `report.volume` that the findings rest on.
        pictures (`Sequence[tuple[Image, str]]`): Key slices with captions, for the PDF.
        font (`str` or `Path`, *optional*): TrueType file for other letters than Western European ones.
        allow_demo (`bool`): Make files for clinical systems even of what a checkpoint trained on synthetic CT says.

    Raises:
        ValueError: if a format is none, the source cannot be referenced, or the checkpoint knows synthetic CT only.
            Nothing is written then.
    """
    check_formats(formats)
    for name in formats:
        if name != "pdf" and not allow_demo:
            refuse_synthetic(report, FORMATS[name])
    document, out = make_document(report), Path(out)
    is_dicom = report.run["volume"]["source"] == "dicom"
    needs_headers = any(name.startswith("dicom") for name in formats)
    headers = source_headers(source, series) if needs_headers or (is_dicom and "fhir" in str(formats)) else []
    instances = slices_to_instances(report.volume, key_slices) if is_dicom else []
    depth, height, width = report.volume.array.shape
    spacing = " x ".join(f"{mm:.2f}" for mm in reversed(report.volume.spacing))
    facts = [("Volume", f"{width} x {height} x {depth} voxels of {spacing} mm")]
    pdf = render_pdf(document, pictures, facts, font)
    files = {name: out / file for name, file in _FILES.items() if name in formats}
    out.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        if name == "pdf":
            replace_file(path, pdf)
        elif name.startswith("fhir"):
            replace_file(path, make_diagnostic_report(document, name[-2:].upper(), headers, pdf))
        else:
            made = (
                make_structured_report(document, headers, instances)
                if name == "dicom-sr"
                else encapsulate_pdf(document, headers, pdf)
            )
            with replacing(path) as partial:
                made.save_as(partial, enforce_file_format=True)
    return files


_FILES = {
    "pdf": "report.pdf",
    "dicom-sr": "report_sr.dcm",
    "dicom-pdf": "report_pdf.dcm",
    "fhir-r4": "report_fhir_r4.json",
    "fhir-r5": "report_fhir_r5.json",
}


def slices_to_instances(volume: Volume, key_slices: Sequence[int]) -> list[int]:
    """Map axial slices of a canonical volume to the instances of its series, which are sorted along their normal.

    Empty where the series was not acquired in axial slices: an axial slice is then no instance.
    """
    towards = volume.provenance["orientation_on_disk"][2]
    last = volume.array.shape[0] - 1
    if towards == "S":
        return list(key_slices)
    return [last - z for z in key_slices] if towards == "I" else []
