import json
import warnings

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.model.volume_mu2 import OutOfDomainWarning, load_volume
from hf_mu2.reporting import inference as inference_module
from hf_mu2.reporting import report as report_module
from hf_mu2.reporting.report import Request, content_id, find_volumes, report_volume, write_report
from tests.tiny import tiny_nifti

PATIENT = "DOE_JANE_1960"


@pytest.fixture
def volume_path(tmp_path):
    path = tmp_path / f"{PATIENT}.nii.gz"
    nib.save(tiny_nifti(), path)
    return path


def test_a_report_is_the_same_every_time(volume_path, reader):
    request = Request(max_new_tokens=8)
    first, second = (report_volume(volume_path, reader, request) for _ in range(2))
    assert first.text == second.text and first.study_id == second.study_id


def test_a_short_budget_is_told_from_an_ended_report(volume_path, reader):
    report = report_volume(volume_path, reader, Request(max_new_tokens=1))
    assert report.finish_reason in ("eos", "length")
    assert report_volume(volume_path, reader, Request(max_new_tokens=3)).finish_reason == "length"


def test_every_file_of_a_report_begins_with_the_notice(volume_path, reader, tmp_path):
    files = write_report(report_volume(volume_path, reader, Request(max_new_tokens=4)), tmp_path / "out")
    assert files["report"].read_text().splitlines()[0] == Mu2Config.notice
    record = json.loads(files["run"].read_text())
    assert next(iter(record)) == "notice" and record["notice"] == Mu2Config.notice
    assert {"study_id", "report", "finish_reason", "warnings", "command", "volume", "timings_s"} <= set(
        record
    )
    with Image.open(files["montage"]) as picture:
        assert picture.width > 1000


def test_no_output_names_the_patient(volume_path, reader, tmp_path):
    request = Request(
        question=f"What is wrong with {PATIENT}?",
        indication=f"{PATIENT}, cough",
        prior_report=f"{PATIENT} was well.",
        max_new_tokens=4,
    )
    files = write_report(report_volume(volume_path, reader, request), tmp_path / "out")
    record = json.loads(files["run"].read_text())
    record["report"] = ""  # what a model says is its own
    assert PATIENT not in json.dumps(record) and str(tmp_path) not in json.dumps(record)
    assert record["command"].startswith("hf-mu2 report VOLUME --model tiny-mu2 --question QUESTION")


def test_a_warning_about_the_volume_is_kept_without_its_name(tmp_path, reader):
    image = tiny_nifti(shape=(12, 40, 44), spacing=(9.0, 2.0, 2.0))
    nib.save(image, tmp_path / f"{PATIENT}.nii.gz")
    report = report_volume(tmp_path / f"{PATIENT}.nii.gz", reader, Request(max_new_tokens=2))
    assert any("VOLUME" in message and "9 mm" in message for message in report.warnings)
    assert not any(PATIENT in message for message in report.warnings)


def test_nothing_half_written_stays_behind(volume_path, reader, tmp_path):
    write_report(report_volume(volume_path, reader, Request(max_new_tokens=2)), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "montage.png",
        "report.txt",
        "run.json",
    ]


def test_the_study_id_follows_voxels_and_geometry_not_the_file(tmp_path):
    image = tiny_nifti()
    nib.save(image, tmp_path / "a.nii.gz")
    nib.save(image, tmp_path / "b.nii")
    moved = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine + np.diag([0.5, 0, 0, 0]))
    nib.save(moved, tmp_path / "c.nii")
    same, copy, other = (content_id(load_volume(tmp_path / name)) for name in ("a.nii.gz", "b.nii", "c.nii"))
    assert same == copy != other


def test_a_folder_stands_for_its_volumes_or_for_one_dicom_series(tmp_path):
    assert find_volumes(tmp_path) == [tmp_path]
    for name in ("b.nii", "a.nii.gz", ".partial_c.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_volumes(tmp_path)] == ["a.nii.gz", "b.nii"]
    assert find_volumes(tmp_path / "b.nii") == [tmp_path / "b.nii"]


def test_a_checkpoint_warns_outside_its_region(volume_path, reader, monkeypatch):
    monkeypatch.setattr(reader.model.config, "body_region", "chest")
    monkeypatch.setattr(report_module, "guess_body_region", lambda volume: "abdomen")
    report = report_volume(volume_path, reader, Request(max_new_tokens=2))
    assert any("Out of domain" in message and "abdomen" in message for message in report.warnings)
    monkeypatch.setattr(report_module, "guess_body_region", lambda volume: "chest")
    assert not any(
        "Out of domain" in m for m in report_volume(volume_path, reader, Request(max_new_tokens=2)).warnings
    )


def test_a_folder_named_by_a_dot_is_known_by_its_name(volume_path, reader, monkeypatch):
    def warn(source, **options):
        warnings.warn(f"`{source.name}` is unusual.", OutOfDomainWarning, stacklevel=1)
        return load_volume(volume_path)

    monkeypatch.setattr(inference_module, "load_volume", warn)
    monkeypatch.chdir(volume_path.parent)
    report = report_volume(".", reader, Request(max_new_tokens=2))
    assert report.warnings == ["`VOLUME` is unusual."]
    (volume_path.parent / "empty").mkdir()
    monkeypatch.chdir(volume_path.parent / "empty")
    assert find_volumes(".") == [volume_path.parent / "empty"]


def test_spacing_orientation_and_channel_reach_the_loader(tmp_path, reader):
    image = tiny_nifti()
    voxels = np.stack([np.asanyarray(image.dataobj)] * 2, axis=-1)
    nib.save(nib.Nifti1Image(voxels, None), tmp_path / "blank.nii.gz")
    given = {"channel": 1, "spacing": (3.0, 2.0, 2.0), "orientation": "LPS"}
    run = report_volume(tmp_path / "blank.nii.gz", reader, Request(**given, max_new_tokens=2)).run
    assert run["volume"]["spacing_mm"] == [3.0, 2.0, 2.0]
    assert run["volume"]["orientation_on_disk"] == "LPS"
    assert "--channel 1 --spacing 3.0 2.0 2.0 --orientation LPS" in run["command"]


def test_a_converted_checkpoint_says_that_its_own_prompt_is_another(volume_path, reader, monkeypatch):
    monkeypatch.setattr(reader.model.config, "conversion", {"kind": "mu2"}, raising=False)
    report = report_volume(volume_path, reader, Request(max_new_tokens=2))
    assert any("official_inputs" in message and "docs/convert.md" in message for message in report.warnings)
