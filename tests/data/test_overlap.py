"""Volumes and reports that two corpora share."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.data import overlap
from hf_mu2.data.overlap import find_overlap, text_hash, voxel_hash
from hf_mu2.model.volume_mu2 import volume_reference
from tests.data.corpora import write_folder, write_table
from tests.tiny import tiny_array, tiny_nifti

REPORT = "There is a spiculated nodule of 12 mm in the right upper lobe and a small pleural effusion on the left side."


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[Path, Path]:
    """Two corpora: volume 2 of the first is volume `same` of the second, mirrored, as float with other padding."""
    first, second = write_folder(tmp_path / "a"), tmp_path / "b"
    second.mkdir()
    image = nib.load(first / "ct2.nii.gz")
    array = np.asarray(image.dataobj, dtype=np.float32)[::-1]
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 1.0, 1.0])), second / "same.nii")
    nib.save(tiny_nifti(40, (6, 16, 20)), second / "other.nii.gz")
    rows = [{"study_id": name, "split": "test", "report": f"A mass, {name}."} for name in ("same", "other")]
    return first, write_table(second, rows)


def test_a_volume_is_found_under_another_name_compression_orientation_and_spacing(corpora):
    found = find_overlap("folder", corpora[0], "folder", corpora[1])
    assert found["volumes"] == [{"a": ["s2 (train)"], "b": ["same (test)"]}]
    assert found["a"] == {"corpus": "folder", "volumes": 6, "reports": 0} and found["unreadable"] == {}


def test_the_hash_follows_hu_not_stored_values(tmp_path):
    array = tiny_array(0, (12, 40, 44)).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(array + np.int16(1024), np.eye(4)), tmp_path / "raw.nii")
    reference = volume_reference(
        tmp_path / "raw.nii", spacing=(1, 1, 1), orientation="RAS", rescale=(1, -1024)
    )
    assert voxel_hash(reference) == voxel_hash(str(tmp_path / "a.nii"))


def test_one_other_voxel_or_another_shape_is_another_volume(tmp_path):
    array = tiny_array(0, (12, 40, 44)).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "a.nii")
    changed = array.copy()
    changed[3, 4, 5] += 1
    nib.save(nib.Nifti1Image(changed, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "b.nii")
    nib.save(nib.Nifti1Image(array.reshape(22, 80, 12), np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "c.nii")
    assert len({voxel_hash(str(tmp_path / f"{name}.nii")) for name in "abc"}) == 3


def test_reports_are_compared_by_their_words(tmp_path):
    write_table(
        tmp_path / "a", [{"study_id": "a", "split": "train", "findings": REPORT, "impression": "Clear."}]
    )
    spoken = REPORT.upper().replace(" ", "\n").replace(".", "") + " clear"
    write_table(tmp_path / "b", [{"study_id": "b", "split": "test", "findings": spoken}])
    found = find_overlap("folder", tmp_path / "a", "folder", tmp_path / "b", read_volumes=False)
    assert found["reports"] == [{"a": ["a (train)"], "b": ["b (test)"]}]
    assert text_hash("No effusion.") is None and text_hash("No effusion.", min_words=2) is not None


def test_a_killed_search_continues_and_a_changed_file_is_read_again(corpora, tmp_path, monkeypatch):
    cache = tmp_path / "hashes.jsonl"
    expected = find_overlap("folder", corpora[0], "folder", corpora[1], cache=cache)
    lines = cache.read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    cache.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # killed while it wrote the sixth
    read = []
    monkeypatch.setattr(overlap, "voxel_hash", lambda entry: (read.append(entry), voxel_hash(entry))[1])
    assert find_overlap("folder", corpora[0], "folder", corpora[1], cache=cache) == expected
    assert len(read) == 3 and all(json.loads(line) for line in cache.read_text().splitlines())
    nib.save(tiny_nifti(50, (6, 16, 20)), corpora[0] / "ct2.nii.gz")
    assert find_overlap("folder", corpora[0], "folder", corpora[1], cache=cache)["volumes"] == []
    assert len(read) == 4


def test_what_cannot_be_read_is_told_and_the_rest_compared(corpora):
    (corpora[0] / "ct0.nii.gz").write_bytes(b"damaged")
    found = find_overlap("folder", corpora[0], "folder", corpora[1])
    assert list(found["unreadable"]) == ["a: s0 (train)"] and len(found["volumes"]) == 1


@pytest.mark.slow
def test_two_processes_find_the_same(corpora):
    alone = find_overlap("folder", corpora[0], "folder", corpora[1])
    assert find_overlap("folder", corpora[0], "folder", corpora[1], num_workers=2) == alone
