"""From patches back to the voxels of the volume they were made of."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from hf_mu2.explain.blocks import find_body, lay_blocks
from hf_mu2.explain.evidence import as_nifti, rank_slices
from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.volume_mu2 import load_volume

BLOCK = (4, 8, 8)
PROCESSORS = {
    "default": {"spacing": (3.0, 2.5, 2.5), "max_frames": 4},
    "cropped": {"spacing": (3.0, 1.0, 1.0), "max_frames": 4},
    "squeezed in depth": {"spacing": (1.0, 2.5, 2.5), "max_frames": 2},
    "official": {"mode": "official", "max_frames": 2, "intensity": "percentile"},
}


def image_processor(form):
    return Mu2ImageProcessor(size={"height": 32, "width": 32}, num_slices=8, **PROCESSORS[form])


def volume_with(hot, shape=(14, 40, 44), orientation="RAS"):
    """Soft tissue in air, brighter in one box; off the origin, stored in an orientation."""
    _, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    array = np.where(x**2 + y**2 < 0.8, 40, -1000).astype(np.int16)
    array[hot] = 900
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = -31, 17, 250
    image = nib.Nifti1Image(array.transpose(2, 1, 0), affine)
    codes = axcodes2ornt(tuple(orientation))
    return image.as_reoriented(ornt_transform(io_orientation(affine), codes))


def block_means(pixels, grid):
    """Mean of the first window in each block."""
    slices = pixels.reshape(-1, 32, 32)
    means = slices.reshape(-1, 4, 4, 8, 4, 8).mean(axis=(1, 3, 5))
    return means[: grid.shape[0]]


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS"])
@pytest.mark.parametrize("form", PROCESSORS)
def test_a_map_of_what_the_model_saw_lies_where_the_volume_is_bright(form, orientation):
    hot = np.s_[8:13, 13:17, 22:30]  # more than the half per cent that the published form cuts off
    volume = load_volume(volume_with(hot, orientation=orientation))
    processor = image_processor(form)
    grid = lay_blocks(volume, processor, BLOCK)
    pixels = processor(volume, return_tensors="np")["pixel_values"][0]
    bright = block_means(np.where(pixels > 0.8 * pixels.max(), pixels, 0), grid)
    heat = grid.to_volume(bright)
    assert heat.shape == volume.array.shape
    centre = [np.average(axis, weights=heat) for axis in np.indices(heat.shape)]
    expected = [10, 14.5, 25.5]
    block_voxels = [1 / np.abs(np.diff(places[:2]))[0] for places in grid.places]
    assert all(abs(a - b) < 0.5 * size for a, b, size in zip(centre, expected, block_voxels))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR"])
def test_maps_have_shape_and_affine_of_the_file(orientation):
    image = volume_with(np.s_[0:2, 0:2, 0:2], orientation=orientation)
    volume = load_volume(image)
    heat = np.random.default_rng(0).normal(size=volume.array.shape).astype(np.float32)
    written = as_nifti(heat, volume)
    assert written.shape == image.shape
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-4)
    # What is stored where the volume is brightest must be what the map holds there.
    reread = load_volume(written, check_hu=False, clamp=False)
    np.testing.assert_allclose(reread.array, heat, atol=2e-4)


@pytest.mark.parametrize("form", PROCESSORS)
def test_gathering_a_mask_is_the_transpose_of_laying_out_a_map(form):
    volume = load_volume(volume_with(np.s_[0:2, 0:2, 0:2]))
    grid = lay_blocks(volume, image_processor(form), BLOCK)
    rng = np.random.default_rng(0)
    blocks, mask = rng.normal(size=grid.shape), rng.random(volume.array.shape) < 0.2
    heat = grid.to_volume(blocks)
    assert (heat * mask).sum() == pytest.approx((blocks * grid.gather(mask)).sum(), rel=1e-4)
    np.testing.assert_allclose(grid.profile(blocks), heat.sum(axis=(1, 2)), rtol=1e-3, atol=1e-2)


def test_what_the_model_never_saw_stays_without_heat():
    volume = load_volume(volume_with(np.s_[0:2, 0:2, 0:2]))
    grid = lay_blocks(volume, image_processor("cropped"), BLOCK)  # 32 of 80 mm
    heat = grid.to_volume(np.ones(grid.shape))
    seen = heat > 0.99
    assert seen[:, 14:26, 16:28].all() and not heat[:, :8].any() and not heat[:, :, :8].any()
    assert seen.any(axis=(1, 2)).all()  # in depth everything is seen


def test_a_constant_map_stays_constant_up_to_the_border():
    volume = load_volume(volume_with(np.s_[0:2, 0:2, 0:2]))
    grid = lay_blocks(volume, image_processor("default"), BLOCK)
    heat = grid.to_volume(np.full(grid.shape, 2.5))
    assert heat[:, 4:-4, 6:-6] == pytest.approx(2.5)


def test_the_share_of_a_block_counts_its_voxels():
    volume = load_volume(volume_with(np.s_[0:2, 0:2, 0:2]))
    grid = lay_blocks(volume, image_processor("default"), BLOCK)
    everything = grid.share(np.ones(volume.array.shape, bool))
    np.testing.assert_allclose(everything, 1, rtol=1e-6)  # no block is larger than the volume
    half = np.zeros(volume.array.shape, bool)
    half[:, :, :22] = True
    shares = grid.share(half)
    np.testing.assert_allclose(shares[..., 0], 1, rtol=1e-6)
    assert not shares[..., -1].any()


def test_the_body_holds_the_air_inside_and_not_the_air_around():
    array = np.full((3, 40, 40), -1000, np.int16)
    array[:, 8:32, 8:32] = 40
    array[:, 16:24, 16:24] = -900  # lung
    body = find_body(load_volume(array, spacing=(3.0, 2.0, 2.0)))
    assert body[:, 8:32, 8:32].all() and body.sum() == 3 * 24 * 24


def test_key_slices_are_ranked_and_at_least_a_patch_apart():
    volume = load_volume(volume_with(np.s_[0:2, 0:2, 0:2]))
    grid = lay_blocks(volume, image_processor("default"), BLOCK)
    blocks = np.zeros(grid.shape, np.float32)
    blocks[0, 1, 1], blocks[2, 2, 2], blocks[1, 0, 0] = 1.0, 3.0, -9.0
    first, second, *rest = rank_slices(grid, blocks)
    places = grid.places[0]
    assert abs(places[first] - 2) < 0.2 and abs(places[second] - 0) < 0.6
    chosen = places[[first, second, *rest]]
    assert all(abs(a - b) >= 1 for i, a in enumerate(chosen) for b in chosen[:i])
    assert rank_slices(grid, np.full(grid.shape, -1.0)) == []
