"""Checking volumes: every one is opened once, what is wrong is told with what to do, and a kill loses nothing."""

import csv
import json
import shutil
import tarfile

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.data.check import _CheckTask, _Part, check_volume, check_volumes
from hf_mu2.data.work_list import write_plan
from hf_mu2.model.volume_mu2 import volume_reference
from tests.data.killed_runs import KilledRuns
from tests.data.volume_rows import write_rows
from tests.model.analytic_body import as_nifti, sample_body

pytest.importorskip("datatrove")


def check_file(path, region="") -> dict:
    return check_volume({"source": str(path), "study_id": "s", "image": 0, "region": region})


def kinds(record: dict) -> list[tuple[str, str]]:
    return [(defect["severity"], defect["defect"]) for defect in record["defects"]]


@pytest.fixture(scope="module")
def body():
    return sample_body((8.0, 8.0, 5.0))


def test_a_sound_volume_has_its_geometry_and_region_written_down(tmp_path, body):
    nib.save(as_nifti(*body, codes="LPS"), tmp_path / "ct.nii.gz")
    record = check_file(tmp_path / "ct.nii.gz", region="chest")
    assert record["defects"] == [] and record["body_region"] == "chest"
    assert record["shape"] == [32, 40, 40] and record["spacing_mm"] == [5, 8, 8]
    assert record["orientation_on_disk"] == "LPS"


def test_each_kind_of_defect_has_its_class_and_an_advice(tmp_path, body):
    voxels, affine = body
    whole = as_nifti(voxels, affine)
    nib.save(whole, tmp_path / "ct.nii.gz")
    content = (tmp_path / "ct.nii.gz").read_bytes()

    def save(name: str, array: np.ndarray, matrix: np.ndarray = affine) -> None:
        nib.save(nib.Nifti1Image(array, matrix), tmp_path / name)

    (tmp_path / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    (tmp_path / "pointer.nii.gz").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n" + b" " * 99
    )
    (tmp_path / "text.nii.gz").write_text("no volume" * 50)
    save("grey.nii.gz", np.clip((voxels + 1000) / 8, 0, 255).astype(np.uint8))
    save("flat.nii.gz", voxels[:, :, 0].astype(np.int16))
    save("many.nii.gz", np.stack([voxels] * 2, -1).astype(np.int16))
    save("nan.nii.gz", np.where(voxels > 0, np.nan, voxels).astype(np.float32))
    save("blank.nii.gz", voxels.astype(np.int16), np.diag([0.001, 8, 5, 1.0]))
    with tarfile.open(tmp_path / "cases.tar", "w") as archive:
        archive.add(tmp_path / "ct.nii.gz", "a/ct.nii.gz")
    expected = {
        "absent.nii.gz": "missing file",
        "cut.nii.gz": "damaged file",
        "pointer.nii.gz": "git-LFS pointer",
        "text.nii.gz": "not a volume",
        "grey.nii.gz": "not HU",
        "flat.nii.gz": "not one volume",
        "many.nii.gz": "not one volume",
        "nan.nii.gz": "not finite",
        "blank.nii.gz": "spacing",
    }
    for name, kind in expected.items():
        (defect,) = check_file(tmp_path / name)["defects"]
        assert (defect["severity"], defect["defect"]) == ("error", kind), defect
        assert defect["message"] and defect["advice"], name
    absent = volume_reference(tmp_path / "cases.tar", member="b/ct.nii.gz")
    assert kinds(check_file(absent)) == [("error", "missing file")]
    twice = volume_reference(tmp_path / "ct.nii.gz", rescale=(1, -1024))
    assert kinds(check_file(twice)) == [("error", "rescaled twice")]


def test_what_is_readable_but_unusual_is_a_warning(tmp_path, body):
    voxels, _ = body
    thick = np.diag([8.0, 8.0, 10.0, 1.0])
    nib.save(as_nifti(voxels[:, :, ::2], thick), tmp_path / "thick.nii.gz")
    record = check_file(tmp_path / "thick.nii.gz", region="head")
    assert kinds(record) == [("warning", "thick slices"), ("warning", "other region")]
    assert record["body_region"] == "chest"
    assert kinds(check_file(tmp_path / "thick.nii.gz", region="chest+abdomen")) == [
        ("warning", "thick slices")
    ]


def test_the_table_names_study_and_image_in_the_order_of_the_rows(tmp_path):
    rows = write_rows(tmp_path / "volumes", 5, damaged=(1, 3))
    rows[4]["images"] += [rows[3]["images"][0], str(tmp_path / "absent.nii.gz")]
    done = check_volumes(rows, tmp_path / "out")
    assert (done.num_volumes, done.num_errors) == (6, 3)
    assert done.defects == (("error", "damaged file", 2), ("error", "missing file", 1))
    with (tmp_path / "out" / "defects.csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [(row["study_id"], row["image"]) for row in table] == [
        ("study_1", "0"),
        ("study_3", "0"),
        ("study_4", "2"),
    ]
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert (
        "6 volumes opened, 3 without a remark" in summary
        and "| error | damaged file | 2 | study_1 |" in summary
    )


def test_an_interrupted_task_goes_on_after_its_last_whole_line(tmp_path, monkeypatch):
    from hf_mu2.data import check

    rows = write_rows(tmp_path / "volumes", 4)
    plan = write_plan(rows, tmp_path / "out" / ".plan", check.VOLUMES_PER_TASK)
    _CheckTask(plan)(None, 0, 1)
    part = _Part(plan, 0)
    whole = part.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    part.path.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # the head, two volumes and half a line
    opened = []

    def count(volume):
        opened.append(volume["study_id"])
        return check_volume(volume)

    monkeypatch.setattr(check, "check_volume", count)
    check_volumes(rows, tmp_path / "out")
    assert opened == ["study_2", "study_3"]
    assert part.path.read_bytes() == whole


def test_a_file_that_changed_is_opened_again(tmp_path):
    rows = write_rows(tmp_path / "volumes", 2, damaged=(1,))
    assert check_volumes(rows, tmp_path / "out").num_errors == 1
    shutil.copy(rows[0]["images"][0], rows[1]["images"][0])
    assert check_volumes(rows, tmp_path / "out").num_errors == 0


def snapshot(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("volumes.jsonl", "defects.csv", "summary.md")}


def check_rows(rows, out, workers) -> None:
    check_volumes(rows, out, workers=workers)


def many_rows(folder) -> list[dict]:
    rows = write_rows(folder, 8, damaged=(2,))
    links = []
    for index in range(160):
        link = folder / f"link{index}.nii.gz"
        link.hardlink_to(rows[index % 8]["images"][0])
        links.append({"study_id": f"study_{index}", "images": [str(link)]})
    return links


def test_a_killed_check_goes_on_and_ends_in_the_same_bytes(tmp_path):
    killed = KilledRuns(check_rows, many_rows(tmp_path / "volumes"), tmp_path / "out", 1, "parts/*.jsonl")
    killed.kill(2)
    assert snapshot(killed.finish()) == snapshot(killed.undisturbed)
    with (tmp_path / "out" / "volumes.jsonl").open() as lines:
        assert [json.loads(line)["study_id"] for line in lines] == [f"study_{index}" for index in range(160)]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(1, 20), (2, 6)])
def test_many_kills_at_random_moments_end_in_the_same_bytes(tmp_path, workers, kills):
    """A part of the records exists from the first volume on: from then on a kill comes during a write."""
    killed = KilledRuns(
        check_rows, many_rows(tmp_path / "volumes"), tmp_path / "out", workers, "parts/*.jsonl"
    )
    writing = killed.kill(kills)
    assert workers > 1 or writing >= kills // 4  # a write takes milliseconds, and two workers share the cores
    assert snapshot(killed.finish()) == snapshot(killed.undisturbed)
