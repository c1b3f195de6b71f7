"""A report as DICOM: a Comprehensive Structured Report and an encapsulated PDF that reference the source series.

Reads: a [`Document`], the headers of the CT series it is about.
Writes: DICOM data sets, marked unverified and preliminary. They name the patient as the series does.

The structured report follows TID 2000, Basic Diagnostic Imaging Report (DICOM PS3.16).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

from hf_mu2 import __version__
from hf_mu2.model.volume_dicom_mu2 import series_headers
from hf_mu2.reporting.document import Document

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

MANUFACTURER = "hf_mu2"
SERIES_NUMBER = 9000  # behind those of scanners and workstations


def source_headers(source: str | Path, series: str | None = None) -> list["Dataset"]:
    """Read the headers of the series that a report is about, without pixels, in the order of its slices.

    What they must hold of patient and study, and lack or misspell, is there but empty; text is Unicode.

    Raises:
        ValueError: if the source is not DICOM, or a header lacks what names its study, or names its patient or study in
            a way that DICOM does not allow. The message holds none of it.
    """
    path = Path(source)
    if path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(
            f"A DICOM report references the series it was made from, `{path}` is NIfTI, which has lost its names. Pass "
            "the DICOM folder or zip, or choose another format, e.g. `--also pdf`."
        )
    headers = series_headers(path, series)
    needed = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    missing = sorted({tag for header in headers for tag in needed if not header.get(tag)})
    if missing:
        raise ValueError(
            f"A DICOM report references study, series and slices by UID, `{path}` lacks {', '.join(missing)}. Export "
            "the series again."
        )
    for header in headers:
        _settle(header)
    return headers


def _settle(header: "Dataset") -> None:
    """Make what a document takes over of patient and study valid: required tags there, text in Unicode.

    Raises:
        ValueError: where a wrong value names the patient or the study, which nobody may guess.
    """
    for tag in _PATIENT_AND_STUDY:
        value = header.get(tag) or ""
        is_valid = _is_valid(tag, value)
        if not is_valid and tag in _NAMING:
            raise ValueError(
                f"A DICOM report names patient and study as its series does, whose {tag} is no valid value. Export the "
                "series again, or choose another format, e.g. `--also pdf`."
            )
        setattr(header, tag, str(value) if is_valid else "")
    header.SpecificCharacterSet = "ISO_IR 192"


def _is_valid(tag: str, value: Any) -> bool:
    """Say whether a value is one that its tag may have (DICOM PS3.5, section 6.2)."""
    from pydicom.config import RAISE
    from pydicom.datadict import dictionary_VR
    from pydicom.multival import MultiValue
    from pydicom.valuerep import DA, TM, validate_value

    text, kind = str(value), dictionary_VR(tag)
    if isinstance(value, MultiValue) or not text.isprintable():
        return False
    try:
        validate_value(kind, text, RAISE)
        if kind in ("DA", "TM"):
            (DA if kind == "DA" else TM)(text)  # months and hours that there are
    except ValueError:
        return False
    return tag != "PatientSex" or text in ("", "M", "F", "O")


def make_structured_report(
    document: Document, headers: Sequence["Dataset"], key_slices: Sequence[int] = ()
) -> "Dataset":
    """Make a Comprehensive SR: language, observer (the model), comments, findings and impression.

    Args:
        headers (`Sequence[Dataset]`): Those of [`source_headers`]; all are recorded as evidence.
        key_slices (`Sequence[int]`): Indices into `headers` that the findings are inferred from.

    Raises:
        ImportError: if highdicom is not installed.
    """
    try:
        import highdicom as hd
        from highdicom import sr
        from pydicom.sr.codedict import codes
    except ImportError as error:
        raise ImportError(
            'Writing a structured report needs highdicom: `pip install "hf_mu2[clinical]"`.'
        ) from error

    def content(value: Any, *children: Any) -> Any:
        if children:
            value.ContentSequence = [child for group in children for child in group]
        return value

    contains, inferred = sr.RelationshipTypeValues.CONTAINS, sr.RelationshipTypeValues.INFERRED_FROM
    images = [
        sr.ImageContentItem(
            codes.DCM.SourceImage,
            headers[z].SOPClassUID,
            headers[z].SOPInstanceUID,
            relationship_type=inferred,
        )
        for z in key_slices
    ]
    names = {
        "Findings": (codes.DCM.Findings, codes.DCM.Finding, images),
        "Impression": (codes.DCM.Impressions, codes.DCM.Impression, []),
    }
    sections = []
    for heading, text in document.sections:
        section, element, evidence = names[heading]
        item = content(sr.TextContentItem(element, text, contains), *([evidence] if evidence else []))
        sections.append(content(sr.ContainerContentItem(section, relationship_type=contains), [item]))
    model = sr.ObserverContext(
        codes.DCM.Device,
        sr.DeviceObserverIdentifyingAttributes(
            uid=_uid(document.model, document.revision),
            name=document.model,
            manufacturer_name=MANUFACTURER,
            model_name=f"{MANUFACTURER} {__version__}",
            serial_number=document.revision,
        ),
    )
    comments = [
        sr.TextContentItem(codes.DCM.Comment, text, contains)
        for text in (document.notice, *document.warnings)
    ]
    language = sr.LanguageOfContentItemAndDescendants(sr.CodedConcept("en", "RFC5646", "English"))
    root = content(
        sr.ContainerContentItem(sr.CodedConcept("18747-6", "LN", "CT Report"), template_id="2000"),
        language,
        model,
        comments,
        sections,
    )
    report = sr.ComprehensiveSR(
        evidence=headers,
        content=root,
        series_instance_uid=_uid(*_facts(document, headers), "sr series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=_uid(*_facts(document, headers), "sr"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        institution_name=None,
        contributing_equipment=[_equipment(hd, document)],
    )
    _sign(report, document, "AI report, unverified")
    return report


def encapsulate_pdf(document: Document, headers: Sequence["Dataset"], pdf: bytes) -> "Dataset":
    """Wrap a PDF as an Encapsulated PDF instance of the source study (DICOM PS3.3 A.45.1).

    Raises:
        ImportError: if pydicom is not installed.
    """
    try:
        from pydicom import Dataset
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, EncapsulatedPDFStorage, ExplicitVRLittleEndian
    except ImportError as error:
        raise ImportError('Writing DICOM needs pydicom: `pip install "hf_mu2[clinical]"`.') from error

    first = headers[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
    meta.MediaStorageSOPInstanceUID = _uid(*_facts(document, headers), "pdf")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    report = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    report.SOPClassUID, report.SOPInstanceUID = EncapsulatedPDFStorage, meta.MediaStorageSOPInstanceUID
    for tag in _PATIENT_AND_STUDY:
        setattr(report, tag, first[tag].value)
    if "SpecificCharacterSet" in first:
        report.SpecificCharacterSet = first.SpecificCharacterSet
    report.Modality, report.ConversionType = "DOC", "WSD"
    report.SeriesInstanceUID = _uid(*_facts(document, headers), "pdf series")
    report.SeriesNumber, report.InstanceNumber = SERIES_NUMBER + 1, 1
    report.Manufacturer, report.ManufacturerModelName = MANUFACTURER, document.model[:64]
    report.SoftwareVersions, report.DeviceSerialNumber = __version__, document.revision[:64]
    report.ContentDate, report.ContentTime = _date(document), _time(document)
    report.AcquisitionDateTime = ""
    report.BurnedInAnnotation = "YES"  # the study's name by content, no patient
    report.DocumentTitle = f"CT report {document.study_id}"
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = "18747-6", "LN", "CT Report"
    report.ConceptNameCodeSequence = [title]
    report.SourceInstanceSequence = [_reference(Dataset, header) for header in headers]
    report.MIMETypeOfEncapsulatedDocument = "application/pdf"
    report.EncapsulatedDocumentLength = len(pdf)
    report.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    _sign(report, document, "AI report as PDF, unverified")
    return report


_NAMING = ("PatientName", "PatientID", "StudyInstanceUID")
_PATIENT_AND_STUDY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip


def _sign(report: "Dataset", document: Document, description: str) -> None:
    """Name series and time of a data set."""
    report.SeriesDescription = description
    report.InstanceCreationDate = report.SeriesDate = _date(document)
    report.InstanceCreationTime = report.SeriesTime = _time(document)
    report.TimezoneOffsetFromUTC = document.created.strftime("%z") or "+0000"


def _reference(dataset: Any, header: "Dataset") -> "Dataset":
    item = dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item


def _equipment(hd: Any, document: Document) -> Any:
    from pydicom.sr.codedict import codes

    return hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=document.model[:64],
        software_versions=f"{MANUFACTURER} {__version__}",
        device_serial_number=document.revision[:64],
        contribution_datetime=document.created.replace(tzinfo=None),
    )


def _facts(document: Document, headers: Sequence["Dataset"]) -> tuple[str, ...]:
    return (
        headers[0].SeriesInstanceUID,
        document.model,
        document.revision,
        document.created.isoformat(),
        *(text for _, text in document.sections),
    )


def _uid(*facts: str) -> "UID":
    """Derive a UID under 2.25 from what it names: the same document gets the same one."""
    from pydicom.uid import UID

    return UID(f"2.25.{uuid5(NAMESPACE_OID, chr(31).join(facts)).int}")


def _date(document: Document) -> str:
    return document.created.strftime("%Y%m%d")


def _time(document: Document) -> str:
    return document.created.strftime("%H%M%S")
