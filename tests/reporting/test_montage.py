import numpy as np
import pytest

from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting import montage
from hf_mu2.reporting.montage import GAP, HEADER, NUM_AXIAL, TILE, WINDOWS, draw_montage, window_hu

CORONAL, SAGITTAL = NUM_AXIAL, NUM_AXIAL + 1
BONE_ROW = list(WINDOWS).index("Bone")


def make_volume(shape=(40, 64, 64), spacing=(3.0, 2.0, 2.0)) -> Volume:
    """A block of soft tissue in air."""
    array = np.full(shape, -1000, dtype=np.int16)
    array[tuple(slice(size // 8, size - size // 8) for size in shape)] = 40
    return Volume(array, np.diag([*reversed(spacing), 1.0]), spacing, {})


def tile_of(picture, row: int, column: int) -> np.ndarray:
    left, top = GAP + column * (TILE + GAP), HEADER + row * (TILE + GAP)
    return np.asarray(picture.convert("L").crop((left, top, left + TILE, top + TILE)))


def centre_of_difference(volume: Volume, marked: Volume, column: int) -> tuple[float, float]:
    """Where (down, right) in a bone-window tile a mark shows; the labels, equal in both, cancel out."""
    plain = tile_of(draw_montage(volume, "notice"), BONE_ROW, column).astype(int)
    changed = tile_of(draw_montage(marked, "notice"), BONE_ROW, column).astype(int) - plain
    rows, columns = np.nonzero(changed > 20)
    return rows.mean() / TILE, columns.mean() / TILE


def mark(volume: Volume, where: tuple[slice, ...]) -> Volume:
    array = volume.array.copy()
    array[where] = 1500
    return Volume(array, volume.affine, volume.spacing, {})


EVERYWHERE = slice(8, -8)


@pytest.mark.parametrize("column", [0, CORONAL])
def test_the_patients_right_is_on_the_left_of_the_picture(column):
    volume = make_volume()
    right = mark(volume, (EVERYWHERE, EVERYWHERE, slice(44, 52)))
    assert centre_of_difference(volume, right, column)[1] < 0.4


def test_the_front_of_the_patient_is_at_the_top_of_axial_slices():
    volume = make_volume()
    front = mark(volume, (EVERYWHERE, slice(44, 52), EVERYWHERE))
    assert centre_of_difference(volume, front, 0)[0] < 0.4


@pytest.mark.parametrize("column", [CORONAL, SAGITTAL])
def test_the_head_is_at_the_top_of_coronal_and_sagittal_slices(column):
    volume = make_volume()
    head = mark(volume, (slice(28, 33), EVERYWHERE, EVERYWHERE))
    assert centre_of_difference(volume, head, column)[0] < 0.4


def test_slices_keep_their_proportions_whatever_the_spacing():
    coarse = make_volume((20, 64, 64), (6.0, 2.0, 2.0))
    fine = make_volume((40, 64, 64), (3.0, 2.0, 2.0))
    tissue = [(tile_of(draw_montage(v, "n"), 1, CORONAL)[:200] > 100).sum() for v in (coarse, fine)]
    assert tissue[0] == pytest.approx(tissue[1], rel=0.08)


def test_windows_map_their_borders_to_black_and_white():
    grey = window_hu(np.array([-2000.0, -160.0, 40.0, 240.0, 3000.0]), level=40.0, width=400.0)
    assert grey.tolist() == [0, 0, 127, 255, 255]


@pytest.mark.parametrize("shape", [(1, 32, 32), (300, 16, 16)])
def test_a_single_slice_and_a_long_volume_are_drawn(shape):
    picture = draw_montage(make_volume(shape), "notice")
    assert picture.size == (GAP + (TILE + GAP) * 6, HEADER + (TILE + GAP) * 3)


def test_air_alone_is_drawn():
    volume = Volume(np.full((4, 8, 8), -1000, dtype=np.int16), np.eye(4), (1.0, 1.0, 1.0), {})
    assert draw_montage(volume, "notice").size[0] > 0


def test_positions_are_millimetres_of_the_scanner():
    volume = make_volume()
    affine = volume.affine.copy()
    affine[2, 3] = -500.0
    moved = Volume(volume.array, affine, volume.spacing, {})
    assert montage._position(moved, 2, 10) == "z -470 mm"
