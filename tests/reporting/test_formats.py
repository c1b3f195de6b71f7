"""Clinical formats say what the report says, name the model, reference the series, and refuse what they cannot."""

import json
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from hf_mu2.reporting.document import make_document
from hf_mu2.reporting.fhir import make_diagnostic_report
from hf_mu2.reporting.formats import FORMATS, slices_to_instances, write_formats
from hf_mu2.reporting.pdf import render_pdf
from hf_mu2.reporting.report import Report, Request, report_volume
from tests.model.test_volume_dicom import PATIENT, write_series

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
pytest.importorskip("fhir.resources")
pdfium = pytest.importorskip("pypdfium2")

TEXT = "Findings: A nodule of 4 mm in the left lower lobe. No effusion.\nImpression: Nodule, left lower lobe."
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STUDY = {
    "StudyInstanceUID": "1.2.3.4",
    "StudyDate": "20250131",
    "PatientSex": "F",
    "PatientBirthDate": "19500203",
    "FrameOfReferenceUID": "1.2.3.4.5",
}


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dicom")
    write_series(folder, tags=STUDY)
    return folder


@pytest.fixture(scope="module")
def report(series, reader) -> Report:
    return replace(
        report_volume(series, reader, Request(max_new_tokens=2)), text=TEXT, warnings=["Thick slices."]
    )


def read_pdf(data: bytes) -> tuple[str, int]:
    with pdfium.PdfDocument(data) as document:
        pages = [document[index].get_textpage() for index in range(len(document))]
        return " ".join(" ".join(page.get_text_range().split()) for page in pages), len(pages)


def test_every_format_says_the_report_names_the_model_and_is_preliminary(report, series, tmp_path):
    files = write_formats(report, list(FORMATS), tmp_path, series, key_slices=[3])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files.values())
    revision, notice = report.run["model_revision"], report.notice

    said, _ = read_pdf(files["pdf"].read_bytes())
    structured = pydicom.dcmread(files["dicom-sr"])
    wrapped = pydicom.dcmread(files["dicom-pdf"])
    inside, _ = read_pdf(wrapped.EncapsulatedDocument[: wrapped.EncapsulatedDocumentLength])
    resources = {name: json.loads(files[name].read_text()) for name in ("fhir-r4", "fhir-r5")}
    for told in (said, inside, structured.to_json(), *map(json.dumps, resources.values())):
        for piece in (
            "left lower lobe. No effusion.",
            "Nodule, left lower lobe.",
            notice,
            revision,
            "Thick slices.",
        ):
            assert piece in told
    assert (structured.VerificationFlag, structured.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert {resource["status"] for resource in resources.values()} == {"preliminary"}


def test_dicom_formats_belong_to_the_study_and_reference_its_slices(report, series, tmp_path):
    files = write_formats(report, ["dicom-sr", "dicom-pdf"], tmp_path, series, key_slices=[3])
    slices = {header.SOPInstanceUID for path in series.iterdir() for header in [pydicom.dcmread(path)]}
    structured, wrapped = pydicom.dcmread(files["dicom-sr"]), pydicom.dcmread(files["dicom-pdf"])
    for made in (structured, wrapped):
        assert (made.StudyInstanceUID, made.PatientName, made.PatientID) == ("1.2.3.4", PATIENT, "ID-4711")
        assert made.SeriesInstanceUID not in slices
    evidence = structured.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert {item.ReferencedSOPInstanceUID for item in evidence.ReferencedSOPSequence} == slices
    assert {item.ReferencedSOPInstanceUID for item in wrapped.SourceInstanceSequence} == slices
    findings = next(
        item for item in structured.ContentSequence if item.ValueType == "CONTAINER"
    ).ContentSequence[0]
    key = findings.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    positions = {
        h.SOPInstanceUID: h.ImagePositionPatient[2] for p in series.iterdir() for h in [pydicom.dcmread(p)]
    }
    assert sorted(positions.values()).index(positions[key]) == 3


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="apt install dicom3tools")
def test_dicom_formats_pass_an_independent_check(report, series, tmp_path):
    files = write_formats(report, ["dicom-sr", "dicom-pdf"], tmp_path, series, key_slices=[3])
    for path in files.values():
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "Error" not in done.stderr, done.stderr


def test_key_slices_become_the_instances_they_show(report):
    volume = report.volume
    depth = volume.array.shape[0]
    turned = replace(volume, provenance=volume.provenance | {"orientation_on_disk": "LPI"})
    coronal = replace(volume, provenance=volume.provenance | {"orientation_on_disk": "LSA"})
    assert slices_to_instances(volume, [0, 2]) == [0, 2]
    assert slices_to_instances(turned, [0, 2]) == [depth - 1, depth - 3]
    assert slices_to_instances(coronal, [0, 2]) == []


def test_nifti_is_refused_where_a_series_is_referenced_and_nothing_is_written(report, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="is NIfTI"):
        write_formats(report, ["pdf", "dicom-sr"], out, tmp_path / "ct.nii.gz")
    assert not out.exists()


def test_a_series_without_uids_is_refused(report, tmp_path):
    write_series(tmp_path / "series", tags={"StudyInstanceUID": ""})
    with pytest.raises(ValueError, match="lacks StudyInstanceUID"):
        write_formats(report, ["dicom-pdf"], tmp_path / "out", tmp_path / "series")


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "pdf"])
def test_what_knows_synthetic_ct_only_enters_no_clinical_system_unasked(report, series, tmp_path, name):
    synthetic = replace(report, run=report.run | {"trained_on_synthetic_only": True})
    with pytest.raises(ValueError, match="synthetic CT only"):
        write_formats(synthetic, [name], tmp_path / "out", series)
    assert not (tmp_path / "out").exists()
    assert write_formats(synthetic, [name], tmp_path / "out", series, allow_demo=True)[name].exists()


def test_the_embedded_checkpoint_is_marked_as_synthetic():
    import hf_mu2

    config = json.loads((hf_mu2.embedded_checkpoint() / "config.json").read_text())
    assert config["trained_on_synthetic_only"] is True


def test_a_fhir_report_of_nifti_names_nobody(report):
    plain = json.loads(make_diagnostic_report(make_document(report, WHEN), "R4"))
    assert "subject" not in plain and "imagingStudy" not in plain
    assert {resource["resourceType"] for resource in plain["contained"]} == {"Device", "Observation"}


@pytest.mark.parametrize("release", ["R4", "R5"])
def test_a_fhir_report_of_dicom_names_patient_and_study(report, series, tmp_path, release):
    path = write_formats(report, [f"fhir-{release.lower()}"], tmp_path, series)[f"fhir-{release.lower()}"]
    made = json.loads(path.read_text())
    patient = next(r for r in made["contained"] if r["resourceType"] == "Patient")
    assert (patient["gender"], patient["birthDate"]) == ("female", "1950-02-03")
    assert patient["name"][0]["family"] == PATIENT.split("^")[0]
    assert made["effectiveDateTime"] == "2025-01-31" and "1.2.3.4" in path.read_text()


def test_every_contained_resource_is_referenced(report):
    """Rule dom-3 of FHIR, which the classes do not check."""
    only_impression = replace(report, text="Impression: Normal.")
    for each in (report, only_impression):
        made = make_diagnostic_report(make_document(each, WHEN), "R5")
        for resource in json.loads(made)["contained"]:
            assert f'"#{resource["id"]}"' in made


def test_the_same_document_gives_the_same_bytes(report):
    document = make_document(report, WHEN)
    assert render_pdf(document) == render_pdf(document)
    assert make_diagnostic_report(document) == make_diagnostic_report(document)


def test_a_long_report_runs_over_pages_and_loses_nothing(report):
    sentences = [f"Sentence number {index} stands here in full." for index in range(300)]
    document = make_document(replace(report, text="Findings: " + " ".join(sentences)), WHEN)
    picture = Image.new("RGB", (60, 60))
    said, pages = read_pdf(render_pdf(document, [(picture, f"Caption {index}") for index in range(5)]))
    assert pages > 2
    assert all(f"number {index} stands" in said for index in range(300)) and all(
        f"Caption {index}" in said for index in range(5)
    )


def test_letters_the_font_lacks_are_refused_by_code(report):
    document = make_document(replace(report, text="Findings: 肺に結節。"), WHEN)
    with pytest.raises(ValueError, match=r"U\+[0-9A-F]{4}"):
        render_pdf(document)


def test_markup_in_a_report_is_text(report):
    said, _ = read_pdf(render_pdf(make_document(replace(report, text="Findings: a <b>3 & 4</b> mm"), WHEN)))
    assert "a <b>3 & 4</b> mm" in said


def test_a_text_without_headings_is_findings_and_an_empty_one_is_refused(report):
    assert make_document(replace(report, text="All normal."), WHEN).findings == "All normal."
    with pytest.raises(ValueError, match="is empty"):
        make_document(replace(report, text=" "), WHEN)


@pytest.mark.parametrize(
    "text",
    [
        "TECHNIQUE: Low dose.\nFINDINGS: A nodule.\nIMPRESSION: Nodule.\nRECOMMENDATION: Biopsy soon.",
        "There is a mass.\nImpression: Mass.",
        "Findings: A nodule.\nFindings: An effusion.\nImpression: Mass.",
        "Findings: One.\n\nTwo.",
        "First paragraph.\n\nSecond paragraph.",
    ],
)
def test_no_word_of_a_report_is_lost(report, text):
    document = make_document(replace(report, text=text), WHEN)
    said = " ".join(part for section in document.sections for part in section).lower()
    assert set(text.lower().split()) - set(said.split()) <= {"findings:", "impression:", "recommendation:"}


def test_control_characters_are_left_out(report):
    document = make_document(replace(report, text="Findings: a\0\x0b\x1b b\nc.\nImpression: \7d."), WHEN)
    assert (document.findings, document.impression) == ("a b\nc.", "d.")


def with_tags(folder: Path, **tags) -> Path:
    """Write a series whose slices have these tags, valid or not."""
    for path in write_series(folder, tags=STUDY | {"SpecificCharacterSet": "ISO_IR 192"}):
        header = pydicom.dcmread(path)
        for name, value in tags.items():
            with pydicom.config.disable_value_validation():
                setattr(header, name, value)
        header.save_as(path)
    return folder


def test_patients_of_other_scripts_keep_their_names_and_odd_values_are_emptied(report, tmp_path):
    odd = {"PatientSex": "female", "PatientBirthDate": "19509999", "StudyDate": "20251345"}
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    folder = with_tags(tmp_path / "x", PatientName=name, SpecificCharacterSet=["", "ISO 2022 IR 87"], **odd)
    files = write_formats(report, ["dicom-sr", "dicom-pdf", "fhir-r5"], tmp_path, folder)
    for kind in ("dicom-sr", "dicom-pdf"):
        made = pydicom.dcmread(files[kind])
        assert str(made.PatientName) == name
        assert (made.PatientSex, made.PatientBirthDate, made.StudyDate) == ("", "", "")
    patient = next(
        one for one in json.loads(files["fhir-r5"].read_text())["contained"] if one["id"] == "patient"
    )
    assert "birthDate" not in patient and "gender" not in patient


@pytest.mark.parametrize("tags", [{"PatientID": "Doe" * 30}, {"PatientName": ["Doe^Jane", "Roe^Jane"]}])
def test_what_names_a_patient_wrongly_is_refused_without_the_name(report, tmp_path, tags):
    folder = with_tags(tmp_path / "x", **tags)
    with pytest.raises(ValueError, match=next(iter(tags))) as refused:
        write_formats(report, ["dicom-sr"], tmp_path, folder)
    assert "Doe" not in str(refused.value)


def test_the_command_writes_formats_beside_the_report(cli, series, tmp_path):
    options = ("--allow-demo", "--max-new-tokens", 24)
    result = cli("report", series, "--out", tmp_path, "--also", "pdf", "--also", "dicom-sr", *options)
    assert result.code == 0, result.err
    assert {"report.pdf", "report_sr.dcm"} < {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("options", "message"), [(("--also", "docx"), "one of pdf"), (("--also", "pdf"), "--out")]
)
def test_the_command_refuses_formats_it_cannot_write(cli, checkpoint, series, options, message):
    result = cli("report", series, "--model", checkpoint, *options)
    assert result.code == 2 and message in result.err


def test_the_impression_of_a_second_model_replaces_the_first(cli, series):
    result = cli("report", series, "--impression-model", "embedded", "--max-new-tokens", 24, "--json")
    assert result.code == 0, result.err
    made = json.loads(result.out)
    assert made["impression_model"] == "mu2-phantom" and made["impression_model_revision"]
    assert made["report"].startswith("Findings: ") and made["report"].count("Impression:") == 1


def test_a_volume_whose_format_is_refused_does_not_stop_the_others(cli, volumes, checkpoint, tmp_path):
    """DICOM formats of NIfTI files: each is refused, and each still has its report."""
    options = ("--also", "dicom-sr", "--max-new-tokens", 4, "--allow-demo", "--model", checkpoint)
    result = cli("report", volumes, "--out", tmp_path / "out", *options)
    assert result.code == 2 and "5 of 5 volumes" in result.err
    assert len(list((tmp_path / "out").glob("*/report.txt"))) == 4  # the fifth is broken
