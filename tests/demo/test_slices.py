"""Pictures of slices, and the volume a browser gets."""

import gzip
import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hf_mu2.demo import slices
from hf_mu2.demo.slices import browser_nifti, browser_steps, scale_heat, slice_png
from hf_mu2.model.volume_mu2 import Volume


def box(shape=(6, 20, 30), spacing=(5.0, 2.0, 2.0)):
    """Air with a bright box at the patient's right, front and top: RAS runs from left, back and bottom."""
    array = np.full(shape, -1000, np.int16)
    array[4:, 15:, 20:] = 1000
    return Volume(array, np.diag([*spacing[::-1], 1.0]), spacing)


def picture(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"), float)


def test_left_and_right_stand_as_radiologists_expect():
    axial = picture(slice_png(box(), "axial", 5, "Bone"))
    height, width = axial.shape
    assert axial[: height // 4, : width // 4].mean() > 200
    assert axial[height // 2 :, width // 2 :].mean() < 10
    coronal = picture(slice_png(box(), "coronal", 19, "Bone"))
    assert coronal[: coronal.shape[0] // 4, : coronal.shape[1] // 4].mean() > 150  # top is superior


def test_pictures_have_the_proportions_of_the_body():
    sagittal = picture(slice_png(box(), "sagittal", 0, "Lung"))
    assert sagittal.shape[1] / sagittal.shape[0] == pytest.approx((20 * 2.0) / (6 * 5.0), rel=0.02)


def test_presets_show_what_they_are_for():
    volume = Volume(np.full((2, 8, 8), 60, np.int16), np.eye(4), (1.0, 1.0, 1.0))
    shown = {preset: picture(slice_png(volume, "axial", 0, preset)).mean() for preset in slices.PRESETS}
    assert shown["Lung"] > 200 and 100 < shown["Abdomen"] < 160 and shown["Bone"] < shown["Mediastinum"]


def test_heat_is_drawn_where_it_is_and_as_strongly_as_asked():
    volume = box()
    heat = np.zeros(volume.array.shape, np.uint8)
    heat[5, :10, :15] = slices.FULL_HEAT
    plain = slice_png(volume, "axial", 5, "Lung")
    assert slice_png(volume, "axial", 5, "Lung", heat, 0.0) == plain
    weak, strong = (
        np.abs(picture(slice_png(volume, "axial", 5, "Lung", heat, opacity)) - picture(plain))
        for opacity in (0.3, 0.9)
    )
    assert strong.max() > weak.max() > 0
    height, width = strong.shape
    assert strong[: height // 3].max() == 0 and strong[height // 2 + 5 :, width // 2 + 5 :].mean() > 20


def test_a_slice_outside_the_volume_is_its_last_one_and_unknown_names_are_refused():
    assert slice_png(box(), "axial", 99, "Lung") == slice_png(box(), "axial", 5, "Lung")
    assert slice_png(box(), "axial", -5, "Lung") == slice_png(box(), "axial", 0, "Lung")
    for plane, preset in (("oblique", "Lung"), ("axial", "../../etc/passwd")):
        with pytest.raises(ValueError, match="A slice is one of"):
            slice_png(box(), plane, 0, preset)


def test_the_volume_for_the_browser_is_the_volume_and_says_nothing_else():
    volume = box()
    image = nib.Nifti1Image.from_bytes(gzip.decompress(browser_nifti(volume, volume.array)))
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), volume.array)
    np.testing.assert_allclose(image.affine, volume.affine)
    assert (
        image.header["descrip"] == b""
        and image.header["db_name"] == b""
        and len(image.header.extensions) == 0
    )


def test_a_large_volume_is_thinned_along_its_finest_axes_and_stays_in_place(monkeypatch):
    monkeypatch.setattr(slices, "BROWSER_VOXELS", 1000)
    volume = box()
    steps = browser_steps(volume)
    assert steps[0] == 1 and min(steps[1:]) > 1
    image = nib.Nifti1Image.from_bytes(gzip.decompress(browser_nifti(volume, volume.array)))
    assert np.prod(image.shape) <= 1000
    np.testing.assert_allclose(image.affine @ [1, 1, 1, 1], volume.affine @ [steps[2], steps[1], steps[0], 1])


def test_heat_is_scaled_to_its_own_maximum_and_what_speaks_against_is_left_out():
    scaled = scale_heat(np.array([[-3.0, 0.0, 1.0, 2.0]], np.float32))
    assert scaled.tolist() == [[0, 0, 128, 255]]
    assert not scale_heat(np.full((2, 2), -1.0, np.float32)).any()
