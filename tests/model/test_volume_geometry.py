"""Where voxels end up: orientation, affine, spacing."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.resample_mu2 import Grid, plan_grid, resample
from hf_mu2.model.volume_mu2 import OutOfDomainWarning, Volume, load_volume
from tests.model.analytic_body import FIELD_MM, LANDMARKS, ORIENTATIONS, as_nifti, sample_body

PROCESSOR = Mu2ImageProcessor(spacing=(4, 4, 4), size={"height": 80, "width": 80}, num_slices=8)


@pytest.fixture(scope="module")
def reference() -> tuple[np.ndarray, np.ndarray]:
    """The grid of a fine RAS sampling, and its affine."""
    return PROCESSOR.resample(as_nifti(*sample_body((2.0, 2.0, 2.0)), dtype="float32"))


def test_left_stays_left_in_all_48_orientations():
    voxels, affine = sample_body((16.0, 20.0, 7.0))
    expected = load_volume(as_nifti(voxels, affine))
    assert expected.provenance["orientation_on_disk"] == "RAS"
    for codes in ORIENTATIONS:
        volume = load_volume(as_nifti(voxels, affine, codes=codes))
        np.testing.assert_array_equal(volume.array, expected.array, err_msg=codes)
        np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4, err_msg=codes)
        assert volume.provenance["orientation_on_disk"] == codes


def test_array_axes_run_to_the_head_the_front_and_the_right():
    volume = load_volume(as_nifti(*sample_body((4.0, 4.0, 4.0)), codes="PIL"))
    for name, (x, y, z) in LANDMARKS.items():
        i, j, k, _ = np.linalg.inv(volume.affine) @ (x, y, z, 1)
        peak = volume.array[round(k), round(j), round(i)]
        assert peak > 500, name


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    counts=st.tuples(st.integers(75, 200), st.integers(75, 200), st.integers(26, 100)),
    codes=st.sampled_from(ORIENTATIONS),
    dtype=st.sampled_from(["int16", "uint16", "int32", "float32", "float64"]),
)
def test_the_same_anatomy_gives_the_same_grid_whatever_the_file(reference, counts, codes, dtype):
    expected, expected_affine = reference
    spacing = tuple(extent / count for extent, count in zip(FIELD_MM, counts))
    hu, affine = PROCESSOR.resample(as_nifti(*sample_body(spacing), dtype, codes))
    np.testing.assert_allclose(affine, expected_affine, atol=1e-3)
    body = expected > -500
    assert np.abs(hu - expected)[body].mean() <= 5
    for name, position in LANDMARKS.items():
        assert np.abs(landmark(hu, affine, position) - position).max() < 4.0, name  # one voxel


def landmark(hu: np.ndarray, affine: np.ndarray, near: tuple[float, float, float]) -> np.ndarray:
    """Return the centroid in mm of what is bright around a position."""
    i, j, k = np.round(np.linalg.inv(affine) @ (*near, 1))[:3].astype(int)
    box = tuple(slice(max(0, n - 4), n + 5) for n in (k, j, i))
    weights = np.maximum(hu[box] - 150, 0)
    where = np.stack(
        np.meshgrid(*(np.arange(s.start, s.start + n) for s, n in zip(box, weights.shape)), indexing="ij")
    )
    z, y, x = (where * weights).sum((1, 2, 3)) / weights.sum()
    return (affine @ (x, y, z, 1))[:3]


def test_oblique_axes_are_kept_with_a_warning():
    voxels, affine = sample_body((8.0, 8.0, 6.0))
    angle = np.radians(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3] = turn @ affine[:3]
    with pytest.warns(OutOfDomainWarning, match="oblique by 12.0 degrees"):
        volume = load_volume(nib.Nifti1Image(voxels.astype(np.int16), affine))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    assert "oblique by 12.0 degrees" in volume.provenance["steps"][0]


def test_given_spacing_corrects_the_header_and_keeps_the_orientation():
    volume = load_volume(as_nifti(*sample_body((8.0, 8.0, 5.0)), codes="LPS"), spacing=(2.5, 4.0, 4.0))
    np.testing.assert_allclose(volume.spacing, (2.5, 4.0, 4.0))
    np.testing.assert_allclose(np.abs(np.diag(volume.affine)[:3]), (4.0, 4.0, 2.5))


def test_a_linear_ramp_survives_any_resampling_exactly():
    z, y, x = np.meshgrid(np.arange(20.0), np.arange(30.0), np.arange(40.0), indexing="ij")
    ramp = (3 * z - 2 * y + x).astype(np.float32)
    for antialias in (False, True):
        for step in ((0.4, 1.7, 0.9), (2.3, 0.5, 3.1)):
            grid = Grid((6.1, 9.3, 12.7), step, (4, 6, 5))
            k, j, i = np.meshgrid(
                *(s + d * np.arange(n) for s, d, n in zip(grid.start, step, grid.shape)), indexing="ij"
            )
            np.testing.assert_allclose(resample(ramp, grid, antialias), 3 * k - 2 * j + i, atol=1e-3)


@given(flips=st.tuples(*[st.booleans()] * 3), start=st.floats(-4, 4), step=st.floats(0.3, 3))
@settings(max_examples=40, deadline=None)
def test_resampling_a_flipped_view_equals_resampling_its_copy(flips, start, step):
    array = np.random.default_rng(0).integers(-1000, 1000, (9, 11, 13)).astype(np.int16)
    view = np.flip(array, [axis for axis in range(3) if flips[axis]])
    grid = Grid((start,) * 3, (step,) * 3, (7, 8, 9))
    ours = resample(view, grid, antialias=True)
    np.testing.assert_allclose(ours, resample(np.ascontiguousarray(view), grid, antialias=True), atol=2e-3)


def test_plain_trilinear_agrees_with_scipy_and_leaves_air_outside():
    from scipy.ndimage import map_coordinates

    array = np.random.default_rng(1).normal(0, 500, (12, 14, 16)).astype(np.float32)
    grid = Grid((-2.0, 0.25, -1.3), (0.7, 0.6, 1.1), (30, 25, 20))
    where = np.meshgrid(
        *(s + d * np.arange(n) for s, d, n in zip(grid.start, grid.step, grid.shape)), indexing="ij"
    )
    expected = map_coordinates(array, [np.clip(w, 0, n - 1) for w, n in zip(where, array.shape)], order=1)
    inside = np.all([(w >= -0.5) & (w <= n - 0.5) for w, n in zip(where, array.shape)], axis=0)
    np.testing.assert_allclose(
        resample(array, grid, antialias=False), np.where(inside, expected, -1024), atol=1e-2
    )


def test_anti_aliasing_lowers_noise_where_the_grid_is_coarser():
    noise = np.random.default_rng(2).normal(0, 100, (16, 96, 96)).astype(np.float32)
    grid = Grid((0.0, 4.0, 4.0), (1.0, 2.5, 2.5), (16, 32, 32))
    plain, smooth = (resample(noise, grid, antialias).std() for antialias in (False, True))
    assert smooth < 0.6 * plain


def test_the_grid_moves_to_hold_an_off_centre_body_and_ignores_the_table():
    array = np.full((10, 200, 200), -1000, np.int16)
    array[:, 90:190, 20:120] = 40  # the body, off centre
    array[:, 5:8, :] = 300  # the table, below a gap
    volume = Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]), (2.0, 2.0, 2.0))
    grid = plan_grid(volume, (2.0, 2.0, 2.0), (120, 120), 64)
    low, high = np.array(grid.start[1:]), np.array(grid.start[1:]) + 119
    assert (low <= (92, 20)).all() and (high >= (187, 117)).all()
    centred = plan_grid(volume, (2.0, 2.0, 2.0), (200, 200), 64)
    assert centred.start[1:] == (0.0, 0.0)


def test_the_grid_affine_leads_back_to_the_original_voxels():
    volume = load_volume(as_nifti(*sample_body((4.0, 4.0, 5.0)), codes="LPS"))
    grid = plan_grid(volume, (3.0, 2.5, 2.5), (64, 64), 256)
    to_volume = np.linalg.inv(volume.affine) @ grid.affine(volume)
    corner = to_volume @ (0, 0, 0, 1)
    np.testing.assert_allclose(corner[:3][::-1], grid.start, atol=1e-9)
