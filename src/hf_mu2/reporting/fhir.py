"""A report as FHIR DiagnosticReport, R4 or R5, status preliminary.

Reads: a [`Document`], optionally the headers of the CT series it is about.
Writes: JSON. Findings and impression are contained Observations made by a contained Device, the model; the impression
is the conclusion too. With a DICOM source it names the patient and the study as the series does.
"""

import base64
from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5
from xml.sax.saxutils import escape

from hf_mu2 import __version__
from hf_mu2.reporting.document import Document

if TYPE_CHECKING:
    from pydicom import Dataset

# DiagnosticReport and what it contains here have the same fields in R4 and in its correction R4B.
_CLASSES = {"R4": "fhir.resources.R4B.diagnosticreport", "R5": "fhir.resources.diagnosticreport"}
_SECTIONS = {
    "Findings": ("59776-5", "Procedure findings Narrative"),
    "Impression": ("19005-8", "Radiology Imaging study [Impression] (narrative)"),
}
_LOINC, _DICOM = "http://loinc.org", "http://dicom.nema.org/resources/ontology/DCM"


def make_diagnostic_report(
    document: Document, release: str = "R4", headers: Sequence["Dataset"] = (), pdf: bytes | None = None
) -> str:
    """Write a DiagnosticReport as JSON, checked against the resource's definition.

    Args:
        release (`str`): `"R4"` or `"R5"`.
        headers (`Sequence[Dataset]`): Those of `dicom_sr.source_headers`; without them patient and study are left out.
        pdf (`bytes`, *optional*): The report as PDF, carried as its presented form.

    Raises:
        ValueError: for another release.
        ImportError: if fhir.resources is not installed.
    """
    if release not in _CLASSES:
        raise ValueError(
            f"`release` must be one of {', '.join(_CLASSES)}, got `{release}`. Pass one of them."
        )
    try:
        resource = import_module(_CLASSES[release]).DiagnosticReport
    except ImportError as error:
        raise ImportError('Writing FHIR needs fhir.resources: `pip install "hf_mu2[clinical]"`.') from error

    created = document.created.isoformat(timespec="seconds")
    contained: list[dict[str, Any]] = [_device(document, release)]
    report: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        "language": "en",
        "text": {"status": "generated", "div": _narrative(document)},
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{_uuid(document)}"}],
        "status": "preliminary",
        "category": [_concept("http://terminology.hl7.org/CodeSystem/v2-0074", "RAD", "Radiology")],
        "code": _concept(_LOINC, "18747-6", "CT Report"),
        "issued": created,
        "presentedForm": _forms(document, pdf),
    }
    if headers:
        patient, study = _patient(headers[0]), _study(headers, release)
        contained += [patient, study]
        report["subject"] = {"reference": "#patient"}
        report["study" if release == "R5" else "imagingStudy"] = [{"reference": "#study"}]
        if when := _date(headers[0].get("StudyDate")):
            report["effectiveDateTime"] = when
    observations = [_observation(document, *section, bool(headers)) for section in document.sections]
    contained += observations
    report["result"] = [{"reference": f"#{observation['id']}"} for observation in observations]
    if document.impression:
        report["conclusion"] = document.impression
    report["contained"] = contained
    return resource.model_validate(report).model_dump_json(indent=2) + "\n"


def _device(document: Document, release: str) -> dict[str, Any]:
    """Describe the model as the device that made the observations."""
    kind = _concept("http://snomed.info/sct", "706687001", "Software")
    releases: dict[str, dict[str, Any]] = {
        "R4": {"type": kind, "deviceName": [{"name": document.model, "type": "model-name"}]},
        "R5": {"type": [kind], "name": [{"value": document.model, "type": "user-friendly-name"}]},
    }
    return releases[release] | {
        "resourceType": "Device",
        "id": "model",
        "manufacturer": "hf_mu2",
        "modelNumber": document.model,
        "version": [{"value": document.revision}, {"value": f"hf_mu2 {__version__}"}],
        "note": [{"text": document.notice}],
    }


def _observation(document: Document, heading: str, text: str, has_patient: bool) -> dict[str, Any]:
    code, display = _SECTIONS[heading]
    observation: dict[str, Any] = {
        "resourceType": "Observation",
        "id": heading.lower(),
        "status": "preliminary",
        "code": _concept(_LOINC, code, display),
        "valueString": text,
        "device": {"reference": "#model"},
        "note": [{"text": text} for text in (document.notice, *document.warnings)],
    }
    return observation | ({"subject": {"reference": "#patient"}} if has_patient else {})


def _patient(header: "Dataset") -> dict[str, Any]:
    patient: dict[str, Any] = {"resourceType": "Patient", "id": "patient"}
    if header.get("PatientID"):
        patient["identifier"] = [{"value": str(header.PatientID)}]
    if header.get("PatientName"):
        name = header.PatientName
        given = [part for part in (name.given_name, name.middle_name) if part]
        parts = {"family": name.family_name, "given": given}
        patient["name"] = [{"text": str(name)} | {key: value for key, value in parts.items() if value}]
    if header.get("PatientSex") in ("M", "F", "O"):
        patient["gender"] = {"M": "male", "F": "female", "O": "other"}[header.PatientSex]
    if birth := _date(header.get("PatientBirthDate")):
        patient["birthDate"] = birth
    return patient


def _study(headers: Sequence["Dataset"], release: str) -> dict[str, Any]:
    first = headers[0]
    modality: Any = {"system": _DICOM, "code": "CT"}
    if release == "R5":
        modality = {"coding": [modality]}
    return {
        "resourceType": "ImagingStudy",
        "id": "study",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{first.StudyInstanceUID}"}],
        "status": "available",
        "subject": {"reference": "#patient"},
        "series": [
            {"uid": first.SeriesInstanceUID, "modality": modality, "numberOfInstances": len(headers)},
        ],
    }


def _date(value: str | None) -> str | None:
    """Write a DICOM date as FHIR does; what is no whole date is left out."""
    try:
        return datetime.strptime(str(value or ""), "%Y%m%d").date().isoformat()
    except ValueError:
        return None


def _forms(document: Document, pdf: bytes | None) -> list[dict[str, Any]]:
    plain = "\n\n".join([document.notice, *(f"{name}: {text}" for name, text in document.sections)])
    forms = [("text/plain; charset=utf-8", plain.encode()), *([("application/pdf", pdf)] if pdf else [])]
    return [
        {
            "contentType": kind,
            "data": base64.b64encode(data).decode(),
            "title": f"CT report {document.study_id}",
        }
        for kind, data in forms
    ]


def _narrative(document: Document) -> str:
    model = f"Written by {document.model}, revision {document.revision}. Not verified."
    parts = [f"<p><b>{escape(document.notice)}</b></p>"]
    parts += [f"<h2>{name}</h2><p>{escape(text)}</p>" for name, text in document.sections]
    parts += [f"<p>{escape(text)}</p>" for text in (*document.warnings, model)]
    return f'<div xmlns="http://www.w3.org/1999/xhtml">{"".join(parts)}</div>'


def _concept(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _uuid(document: Document) -> UUID:
    """Name the report by what it says, who wrote it and when."""
    facts = [document.study_id, document.model, document.revision, document.created.isoformat()]
    return uuid5(NAMESPACE_URL, "\n".join([*facts, *(text for _, text in document.sections)]))
