"""Every way a volume may arrive gives the same voxels, and none is changed by it."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from hf_mu2.model import volume_mu2
from hf_mu2.model.volume_mu2 import Volume, load_volume
from tests.model.analytic_body import as_nifti, sample_body


@pytest.fixture(scope="module")
def image() -> nib.Nifti1Image:
    return as_nifti(*sample_body((8.0, 8.0, 5.0)), codes="LPS")


@pytest.fixture(scope="module")
def expected(image) -> Volume:
    return load_volume(image)


def same(volume: Volume, expected: Volume) -> None:
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)
    assert volume.array.dtype == expected.array.dtype


def test_path_bytes_dict_and_nibabel_image_are_the_same_volume(tmp_path, image, expected):
    plain, packed = tmp_path / "ct.nii", tmp_path / "ct.nii.gz"
    nib.save(image, plain)
    nib.save(image, packed)
    for path in (plain, packed):
        same(load_volume(path), expected)
        same(load_volume(str(path)), expected)
        same(load_volume(path.read_bytes()), expected)
        same(load_volume({"bytes": path.read_bytes(), "path": path.name}), expected)
        same(load_volume({"bytes": None, "path": str(path)}), expected)
        same(load_volume(nib.load(path)), expected)
    same(load_volume(f"gzip://ct.nii::{packed}"), expected)
    same(load_volume(nib.Nifti1Image.from_bytes(image.to_bytes())), expected)
    assert load_volume(expected) is expected


def test_a_datasets_nifti_column_gives_the_same_volume(tmp_path, image, expected):
    datasets = pytest.importorskip("datasets")
    nib.save(image, tmp_path / "ct.nii.gz")
    rows = datasets.Dataset.from_dict({"images": [[str(tmp_path / "ct.nii.gz")]]})
    decoded = rows.cast_column("images", datasets.List(datasets.Nifti()))[0]["images"][0]
    same(load_volume(decoded), expected)
    raw = rows.cast_column("images", datasets.List(datasets.Nifti(decode=False)))[0]["images"][0]
    same(load_volume(raw), expected)


def test_nifti_2_and_big_endian_files_are_read(image, expected):
    same(load_volume(nib.Nifti2Image.from_image(image).to_bytes()), expected)
    header = image.header.as_byteswapped()
    voxels = np.asarray(image.dataobj).astype(">i2")
    same(load_volume(header.binaryblock + b"\0" * 4 + voxels.tobytes(order="F")), expected)


def test_a_gzip_of_several_members_is_read_whole(image, expected):
    content = image.to_bytes()
    same(load_volume(gzip.compress(content[:5000]) + gzip.compress(content[5000:])), expected)


def test_python_zlib_reads_the_same_where_isal_is_missing(monkeypatch, image, expected):
    import zlib

    monkeypatch.setattr(volume_mu2, "inflate", zlib)
    same(load_volume(gzip.compress(image.to_bytes())), expected)


def test_arrays_and_tensors_are_taken_in_canonical_order(expected):
    array = np.ascontiguousarray(expected.array)
    for source in (array, torch.from_numpy(array)):
        volume = load_volume(source, spacing=(5, 8, 8))
        np.testing.assert_array_equal(volume.array, array)
        np.testing.assert_allclose(volume.affine, np.diag([8, 8, 5, 1]))
    half = load_volume(torch.from_numpy(array).bfloat16(), spacing=(5, 8, 8))
    assert half.array.dtype == np.float32


def test_int16_stays_int16_through_an_integral_rescale_and_not_through_another(image):
    voxels, affine = sample_body((8.0, 8.0, 5.0))
    assert load_volume(as_nifti(voxels, affine, "uint16")).array.dtype == np.int16
    assert load_volume(as_nifti(voxels, affine, "int32")).array.dtype == np.int16
    scaled = nib.Nifti1Image(voxels.astype(np.float64), affine)
    scaled.set_data_dtype(np.int16)  # nibabel chooses a slope that is not integral
    volume = load_volume(scaled.to_bytes())
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, voxels.transpose(2, 1, 0), atol=0.05)
    assert "rescaled" in volume.provenance["steps"][0]


def test_a_picture_is_one_slice_for_probes():
    volume = load_volume(Image.new("RGB", (30, 20), (255, 255, 255)))
    assert volume.array.shape == (1, 20, 30)
    np.testing.assert_allclose(volume.array, 1000)
    assert "not a CT" in volume.provenance["steps"][0]


def test_the_caller_s_voxels_are_never_changed():
    array = sample_body((8.0, 8.0, 5.0))[0].transpose(2, 1, 0)
    array[:, :2] = -3000  # padding, which is clamped in the volume
    for dtype in (np.int16, np.float32, np.float64):
        given = array.astype(dtype)
        before = given.copy()
        assert load_volume(given, spacing=(5, 8, 8)).array.min() == -1024
        load_volume(nib.Nifti1Image(given.transpose(2, 1, 0), np.diag([8, 8, 5, 1])))
        np.testing.assert_array_equal(given, before)


def test_provenance_is_json_and_tells_the_story_but_no_file_name(tmp_path, image):
    path = tmp_path / "Somebody_Private.nii.gz"
    nib.save(image, path)
    provenance = load_volume(path).provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["source"] == "nifti"
    assert "Private" not in json.dumps(provenance)  # files are often named after patients
    assert provenance["orientation_on_disk"] == "LPS"
    assert provenance["steps"] == ["reoriented LPS -> RAS"]
    assert provenance["spacing_mm"] == [5.0, 8.0, 8.0]
