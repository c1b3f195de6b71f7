"""A reference says what a file does not: geometry, rescale, series, channel, the file inside an archive."""

import io
import json
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.volume_mu2 import Volume, VolumeError, load_volume, source_path, volume_reference
from tests.model.analytic_body import as_nifti, sample_body
from tests.paths import shared_data_or_skip

SPACING = (5.0, 8.0, 8.0)


@pytest.fixture(scope="module")
def image() -> nib.Nifti1Image:
    return as_nifti(*sample_body((8.0, 8.0, 5.0)), codes="LPS")


@pytest.fixture
def path(tmp_path, image) -> Path:
    nib.save(image, tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def blank_copy(path: Path, image: nib.Nifti1Image, intercept: float, header_slope: float = 1.0) -> Path:
    """Write a file as CT-RATE v1 has them: float32, stored values without rescale, an identity for a header."""
    stored = (np.asanyarray(image.dataobj) - intercept).astype(np.float32)
    blank = nib.Nifti1Image(stored, np.eye(4))
    blank.header.set_slope_inter(header_slope, 0.0)
    nib.save(blank, path)
    return path


def same_hu(volume: Volume, expected: Volume) -> None:
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_allclose(volume.affine[:3, :3], expected.affine[:3, :3], atol=1e-4)


def test_a_reference_is_compact_sorted_json_and_equal_references_are_equal_texts(path):
    text = volume_reference(path, spacing=(5, 8, 8), orientation="LPS")
    assert text == volume_reference(str(path), orientation="LPS", spacing=np.array([5.0, 8.0, 8.0]))
    assert text.startswith('{"orientation":"LPS","path":"')
    assert set(json.loads(text)) == {"path", "spacing", "orientation"}


def test_a_plain_reference_is_the_path(path):
    for source in (volume_reference(path), {"bytes": None, "path": volume_reference(path)}):
        same_hu(load_volume(source), load_volume(path))
        assert source_path(source) == str(path)


def test_geometry_and_rescale_of_a_reference_make_a_blank_file_the_same_volume(tmp_path, path, image):
    for intercept in (-1024.0, -8192.0):
        blank = blank_copy(tmp_path / "v1.nii.gz", image, intercept)
        text = volume_reference(blank, spacing=SPACING, orientation="LPS", rescale=(1, intercept))
        volume = load_volume(text)
        same_hu(volume, load_volume(path))
        assert "rescale given by the reference, the header's left out" in volume.provenance["steps"]


def test_a_rescale_is_never_applied_on_top_of_the_header_s(tmp_path, path, image):
    carried = nib.Nifti1Image((np.asanyarray(image.dataobj) + 1024).astype(np.uint16), image.affine)
    carried.header.set_slope_inter(1, -1024)
    nib.save(carried, tmp_path / "carried.nii.gz")
    same_hu(load_volume(tmp_path / "carried.nii.gz"), load_volume(path))
    same_hu(load_volume(volume_reference(tmp_path / "carried.nii.gz", rescale=(1, -1024))), load_volume(path))


def test_what_the_caller_says_wins(path):
    text = volume_reference(path, spacing=(4, 8, 8))
    assert load_volume(text).spacing[0] == pytest.approx(4)
    assert load_volume(text, spacing=(3, 8, 8)).spacing[0] == pytest.approx(3)


def test_a_channel_of_a_4d_file(tmp_path, path, image):
    first = np.asanyarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.stack([first, first - 5], -1), image.affine), tmp_path / "4d.nii.gz")
    np.testing.assert_array_equal(
        load_volume(volume_reference(tmp_path / "4d.nii.gz", channel=1)).array, load_volume(path).array - 5
    )


@pytest.mark.parametrize(("mode", "ending"), [("w", ".nii.gz"), ("w:gz", ".nii")])
def test_a_member_of_an_archive(tmp_path, path, image, mode, ending):
    nib.save(image, tmp_path / f"ct{ending}")
    with tarfile.open(tmp_path / "cases.tar", mode) as archive:
        archive.addfile(tarfile.TarInfo("CASE_1"), io.BytesIO())
        archive.add(tmp_path / f"ct{ending}", f"CASE_2/ct{ending}")
    same_hu(
        load_volume(volume_reference(tmp_path / "cases.tar", member=f"CASE_2/ct{ending}")), load_volume(path)
    )
    with pytest.raises(VolumeError, match="no file `CASE_3/ct"):
        load_volume(volume_reference(tmp_path / "cases.tar", member=f"CASE_3/ct{ending}"))
    with pytest.raises(VolumeError, match="is none or is damaged"):
        load_volume(volume_reference(path, member="ct.nii"))


def test_relative_paths_are_those_of_the_working_directory(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    same_hu(load_volume(volume_reference("ct.nii.gz")), load_volume(path))


def test_the_processor_takes_references(tmp_path, path, image):
    blank = blank_copy(tmp_path / "v1.nii.gz", image, -1024)
    text = volume_reference(blank, spacing=SPACING, orientation="LPS", rescale=(1, -1024))
    processor = Mu2ImageProcessor(size={"height": 32, "width": 32}, num_slices=8, spacing=(8, 12, 12))
    both = processor([text, str(path), text], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(both[0], both[1], atol=1e-6)
    np.testing.assert_array_equal(both[0], both[2])


def test_a_dataset_of_references_stays_readable_as_volumes(path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"images": [[volume_reference(path)]]})
    raw = rows.cast_column("images", datasets.List(datasets.Nifti(decode=False)))[0]["images"][0]
    same_hu(load_volume(raw), load_volume(path))


def test_what_is_no_reference_is_refused(path):
    with pytest.raises(VolumeError, match="is not"):
        load_volume('{"path": ')
    with pytest.raises(VolumeError, match="has `path`"):
        load_volume('{"file": "ct.nii.gz"}')
    with pytest.raises(VolumeError, match="nothing is at"):
        load_volume(volume_reference("absent.tar", member="ct.nii.gz"))
    with pytest.raises(ValueError, match="needs `spacing`"):
        volume_reference(path, orientation="LPS")
    with pytest.raises(ValueError, match="three numbers"):
        volume_reference(path, spacing=(1, 2))
    with pytest.raises(ValueError, match="two numbers"):
        volume_reference(path, rescale=(1,))


def test_a_dicom_source_keeps_its_own_rescale():
    folder = shared_data_or_skip("ct", "dicom")
    series = next(path for path in sorted(folder.iterdir()) if path.is_dir())
    with pytest.raises(VolumeError, match=r"states its own|series"):
        load_volume(volume_reference(series, rescale=(1, 0)))


def test_real_ct_rate_files_of_both_versions_give_the_same_hu(tmp_path):
    fixed = shared_data_or_skip("ct", "chest_dxA0001_a_2.nii.gz")
    image = nib.load(fixed)
    codes = "".join(nib.aff2axcodes(image.affine))
    expected = load_volume(fixed)
    blank = blank_copy(tmp_path / "v1.nii.gz", image, -1024)
    same_hu(
        load_volume(volume_reference(blank, spacing=expected.spacing, orientation=codes, rescale=(1, -1024))),
        expected,
    )
