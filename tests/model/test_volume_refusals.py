"""What is refused, each with a message that says the rule, what arrived and what to do."""

import gzip
import io
import struct
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from hf_mu2.model.volume_mu2 import OutOfDomainWarning, VolumeError, guess_body_region, load_volume
from tests.model.analytic_body import as_nifti, sample_body


@pytest.fixture(scope="module")
def body() -> tuple[np.ndarray, np.ndarray]:
    return sample_body((8.0, 8.0, 5.0))


def nifti(voxels: np.ndarray, affine: np.ndarray | None = None) -> nib.Nifti1Image:
    return nib.Nifti1Image(
        voxels, np.diag([8.0, 8.0, 5.0, 1.0]) if affine is None else affine, dtype=voxels.dtype
    )


def test_rgb_is_refused():
    voxels = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(VolumeError, match="is RGB"):
        load_volume(nifti(voxels))


def test_complex_voxels_and_masks_are_refused(body):
    with pytest.raises(VolumeError, match="complex64"):
        load_volume(nifti(body[0].astype(np.complex64)))
    with pytest.raises(VolumeError, match="bool"):
        load_volume(body[0] > 0, spacing=(5, 8, 8))


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "gif"])
def test_picture_files_are_refused_as_2d(tmp_path, kind):
    path = tmp_path / f"slice.{kind}"
    Image.new("L", (8, 8)).save(path)
    with pytest.raises(VolumeError, match=r"`slice.*` is a 2-D"):
        load_volume(path)


def test_2d_niftis_and_arrays_are_refused(body):
    with pytest.raises(VolumeError, match="is 2-D with shape"):
        load_volume(nifti(body[0][:, :, 0].astype(np.int16)))
    with pytest.raises(VolumeError, match="has 3 axes"):
        load_volume(body[0][0], spacing=(5, 8, 8))


def test_4d_needs_a_channel_unless_it_holds_one_volume(body):
    voxels, affine = body
    twice = np.stack([voxels, voxels[::-1]], axis=-1).astype(np.int16)
    with pytest.raises(VolumeError, match=r"channel=0.*channel=1"):
        load_volume(nifti(twice, affine))
    with pytest.raises(VolumeError, match=r"must be in 0\.\.1"):
        load_volume(nifti(twice, affine), channel=2)
    second = load_volume(nifti(twice, affine), channel=1)
    np.testing.assert_array_equal(second.array, twice[..., 1].transpose(2, 1, 0))
    single = load_volume(nifti(twice[..., :1], affine))
    np.testing.assert_array_equal(single.array, twice[..., 0].transpose(2, 1, 0))
    arrays = twice.transpose(3, 2, 1, 0)
    np.testing.assert_array_equal(load_volume(arrays, spacing=(5, 8, 8), channel=1).array, second.array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused(body, bad):
    voxels = body[0].astype(np.float32)
    voxels[3, 4, 5] = bad
    with pytest.raises(VolumeError, match="NaN or infinite"):
        load_volume(nifti(voxels))


def test_8_bit_grey_levels_are_refused(body):
    grey = np.interp(body[0], (-1000, 1000), (0, 255)).astype(np.uint8)
    with pytest.raises(VolumeError, match="8-bit grey levels"):
        load_volume(nifti(grey))


def test_values_already_normalised_are_refused(body):
    with pytest.raises(VolumeError, match="normalised"):
        load_volume(nifti((body[0] / 1000).astype(np.float32)))


def test_an_mr_is_refused(body):
    with pytest.raises(VolumeError, match="an MR"):
        load_volume(nifti((body[0] + 1000).clip(0) * 0.5 - 20))


def test_a_missing_rescale_is_refused_with_and_without_scanner_padding(body):
    stored = (body[0] + 1024).astype(np.int16)
    stored[20, 20, 20] = 3000
    with pytest.raises(VolumeError, match=r"intercept .* was not applied"):
        load_volume(nifti(stored))
    stored[:3] = -2000
    with pytest.raises(VolumeError, match="rescale was not applied"):
        load_volume(nifti(stored))


def test_a_rescale_applied_twice_is_refused(body):
    twice = np.round(body[0] - 1024).astype(np.int16)
    with pytest.raises(VolumeError, match="applied twice"):
        load_volume(nifti(twice))


def test_scanner_padding_is_no_reason_to_refuse(body):
    voxels = body[0].copy()
    voxels[:3] = -3024
    volume = load_volume(nifti(voxels.astype(np.int16)))
    assert volume.array.min() == -1024
    assert "lowest was -3024" in volume.provenance["steps"][0]
    assert load_volume(nifti(voxels.astype(np.int16)), clamp=False).array.min() == -3024


def test_air_alone_is_refused_and_check_hu_says_so_and_helps(body):
    noise = np.random.default_rng(0).normal(-1000, 10, (8, 8, 8)).astype(np.float32)
    with pytest.raises(VolumeError, match=r"no body.*check_hu=False"):
        load_volume(noise, spacing=(5, 8, 8))
    assert load_volume(noise, spacing=(5, 8, 8), check_hu=False).array.shape == (8, 8, 8)


def blank(image: nib.Nifti1Image) -> bytes:
    """Unset sform and qform, as some exporters do."""
    content = bytearray(image.to_bytes())
    content[252:256] = struct.pack("<hh", 0, 0)
    return bytes(content)


def test_a_blank_header_needs_a_given_spacing(body):
    content = blank(as_nifti(*body))
    with pytest.raises(VolumeError, match=r"sform and qform are unset.*spacing=\(z, y, x\)"):
        load_volume(content)
    with pytest.warns(OutOfDomainWarning, match="left and right may be swapped"):
        volume = load_volume(content, spacing=(5, 8, 8))
    assert volume.spacing == (5, 8, 8)
    stated = load_volume(content, spacing=(5, 8, 8), orientation="LPS")
    np.testing.assert_array_equal(stated.array, volume.array[:, ::-1, ::-1])


def test_an_identity_affine_on_a_ct_matrix_counts_as_blank():
    voxels = np.full((512, 512, 2), -1000, np.int16)
    voxels[100:400, 100:400] = 40
    with pytest.raises(VolumeError, match="identity affine"):
        load_volume(nifti(voxels, np.eye(4)))
    assert load_volume(nifti(voxels, np.eye(4)), spacing=(1, 0.7, 0.7), orientation="RAS").spacing == (
        1,
        0.7,
        0.7,
    )


@pytest.mark.parametrize(
    "spacing", [(0.0, 1, 1), (-2, 1, 1), (np.nan, 1, 1), (1000, 1, 1), (1, 0.001, 1), (1, 1)]
)
def test_absurd_spacing_is_refused(body, spacing):
    with pytest.raises(VolumeError, match=r"between 0.05 and 25 mm"):
        load_volume(body[0].transpose(2, 1, 0), spacing=spacing)


def test_absurd_spacing_in_a_header_is_refused_whatever_its_unit(body):
    with pytest.raises(VolumeError, match=r"0\.0008.*other units"):
        load_volume(nifti(body[0].astype(np.int16), np.diag([0.0008, 0.0008, 0.005, 1])))


def test_a_sheared_affine_is_refused_as_a_tilted_gantry(body):
    affine = body[1].copy()
    affine[1, 2] = 5.0 * np.tan(np.radians(18.5))
    with pytest.raises(VolumeError, match=r"18.5 degrees: a tilted gantry"):
        load_volume(nifti(body[0].astype(np.int16), affine))


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_truncated_gzip_is_refused(tmp_path, body, keep):
    content = gzip.compress(as_nifti(*body).to_bytes(), 1)
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(VolumeError, match=r"`ct.nii.gz` ends early"):
        load_volume(path)
    with pytest.raises(VolumeError, match=r"`ct.nii.gz` ends early"):
        load_volume(nib.load(path))


def test_a_gzip_with_flipped_bits_is_refused(body):
    content = bytearray(gzip.compress(as_nifti(*body).to_bytes(), 1))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(VolumeError, match="damaged"):
        load_volume(bytes(content))


def test_a_truncated_plain_nifti_is_refused(body):
    with pytest.raises(VolumeError, match="was cut off"):
        load_volume(as_nifti(*body).to_bytes()[:-100])


def test_a_git_lfs_pointer_is_refused(tmp_path):
    path = tmp_path / "ct.nii.gz"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9309722\n")
    with pytest.raises(VolumeError, match=r"git-LFS pointer.*git lfs pull"):
        load_volume(path)


def test_a_header_that_announces_a_bomb_is_refused_before_memory_is_taken(body):
    content = bytearray(as_nifti(*body).to_bytes())
    content[42:48] = struct.pack("<hhh", 30000, 30000, 30000)
    with pytest.raises(VolumeError, match=r"27,000,000,000.*decompression bomb"):
        load_volume(gzip.compress(bytes(content)))


def test_a_stream_longer_than_its_header_is_refused(body):
    content = as_nifti(*body).to_bytes()
    with pytest.raises(VolumeError, match="goes on after"):
        load_volume(gzip.compress(content + b"\0" * 5_000_000))
    with pytest.raises(VolumeError, match="goes on after"):
        load_volume(content + b"\0")


def test_a_zip_bomb_is_refused():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", b"\0" * 10_000_000)
    with pytest.raises(VolumeError, match="unpack"):
        load_volume(packed.getvalue(), max_voxels=1_000_000)


def test_files_of_another_kind_and_missing_files_are_refused(tmp_path):
    (tmp_path / "notes.nii.gz").write_text("not a volume")
    with pytest.raises(VolumeError, match="is none of these"):
        load_volume(tmp_path / "notes.nii.gz")
    with pytest.raises(VolumeError, match="nothing is at"):
        load_volume(tmp_path / "absent.nii.gz")
    with pytest.raises(VolumeError, match="got float"):
        load_volume(1.0)
    with pytest.raises(VolumeError, match="`bytes` or `path`"):
        load_volume({"bytes": None, "path": None})


def test_an_array_without_spacing_is_refused(body):
    for source in (body[0], torch.from_numpy(body[0])):
        with pytest.raises(VolumeError, match=r"spacing=\(z, y, x\)"):
            load_volume(source)


def test_an_orientation_of_other_letters_is_refused(body):
    with pytest.raises(VolumeError, match="three letters"):
        load_volume(body[0], spacing=(5, 8, 8), orientation="LPX")


def test_thick_slices_warn(body):
    voxels, affine = sample_body((8.0, 8.0, 8.0))
    with pytest.warns(OutOfDomainWarning, match="slices 8 mm apart"):
        load_volume(as_nifti(voxels, affine))


def test_the_body_region_follows_from_the_lungs(body):
    voxels, affine = body
    assert guess_body_region(load_volume(as_nifti(voxels, affine))) == "chest"
    voxels = np.maximum(voxels, np.where(np.hypot(*np.indices((40, 40)) - 19.5) < 10, 40, -1000)[:, :, None])
    assert guess_body_region(load_volume(as_nifti(voxels, affine))) == "abdomen"
