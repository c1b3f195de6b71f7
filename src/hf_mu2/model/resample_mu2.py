"""Resample a volume onto a grid in one pass over its voxels: separable, banded, exact at voxel centres."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .volume_mu2 import Volume

_BLOCKS = (8, 8, 16)  # grid voxels per band: the fastest of 8..128 along depth, height and width


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a grid lie in a volume, along (depth, height, width).

    Args:
        start (`tuple`): Position of the first grid voxel's centre, in voxels of the volume.
        step (`tuple`): Distance between grid voxels, in voxels of the volume.
        shape (`tuple`): Number of grid voxels.
    """

    start: tuple[float, float, float]
    step: tuple[float, float, float]
    shape: tuple[int, int, int]

    def affine(self, volume: Volume) -> np.ndarray:
        """Return the 4 x 4 map from grid indices (x, y, z) to RAS mm."""
        to_volume = np.diag([*self.step[::-1], 1.0])
        to_volume[:3, 3] = self.start[::-1]
        return volume.affine @ to_volume


def plan_grid(volume: Volume, spacing: Sequence[float], size: Sequence[int], max_slices: int) -> Grid:
    """Lay a grid of `spacing` mm (z, y, x) over a volume.

    In depth it covers the volume; where that takes more than `max_slices`, the slices are spread evenly. In plane it
    has `size` (height, width) voxels around the centre of the field of view, moved only as far as needed to hold the
    body (the table left out) when the field of view is larger than the grid.
    """
    step = [mm / own for mm, own in zip(spacing, volume.spacing)]
    depth = volume.array.shape[0]
    num_slices = max(1, round(depth / step[0]))
    if num_slices > max_slices:
        num_slices, step[0] = max_slices, depth / max_slices
    shape = (num_slices, *size)
    centre = [(n - 1) / 2 for n in volume.array.shape]
    for axis in (1, 2):
        reach = shape[axis] * step[axis] / 2
        if volume.array.shape[axis] > 2 * reach:
            low, high = _body_extent(volume, axis)
            if high - low > 2 * reach:
                centre[axis] = (low + high) / 2
            else:
                centre[axis] = min(max(centre[axis], high - reach), low + reach)
    start = [c - s * (n - 1) / 2 for c, s, n in zip(centre, step, shape)]
    return Grid(tuple(start), tuple(step), shape)


def _body_extent(volume: Volume, axis: int) -> tuple[float, float]:
    """Return where the body begins and ends along an in-plane axis, in voxels.

    The body is the longest run of the tissue profile: the table is a second, shorter run below a gap of mattress.
    """
    steps = [max(1, round(mm / own)) for mm, own in zip((10.0, 4.0, 4.0), volume.spacing)]
    tissue = volume.array[:: steps[0], :: steps[1], :: steps[2]] > -500
    profile = tissue.mean(axis=(0, 3 - axis))
    edges = np.flatnonzero(
        np.diff(np.concatenate([[False], profile > 0.1 * profile.max(), [False]]).astype(np.int8))
    )
    if not len(edges):
        return 0.0, volume.array.shape[axis] - 1.0
    runs = edges.reshape(-1, 2)  # first index, one past the last
    first, end = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    return (first - 0.5) * steps[axis], (end - 0.5) * steps[axis]


def resample(
    array: np.ndarray, grid: Grid, antialias: bool, fill: float = -1024.0, out: np.ndarray | None = None
) -> np.ndarray:
    """Interpolate `array` (depth, height, width) on a grid, trilinear, with a triangle filter where it gets coarser.

    Only voxels that reach the grid are touched, one slice at a time while it is in cache: in plane first, depth last.
    Views with negative strides are read in memory order. Grid voxels outside the array get `fill`.

    Args:
        array (`np.ndarray` of shape `(depth, height, width)`): Never changed.
        grid (`Grid`): Where to sample.
        antialias (`bool`): Widen the interpolation kernel by the step along axes that get coarser.
        fill (`float`): Value outside the array.
        out (`np.ndarray` of shape `grid.shape`, *optional*): C-contiguous float32 memory for the result.
    """
    out = np.empty(grid.shape, np.float32) if out is None else out
    start, step = list(grid.start), list(grid.step)
    for axis in range(3):
        if array.strides[axis] < 0:
            array = np.flip(array, axis)
            start[axis], step[axis] = array.shape[axis] - 1 - start[axis], -step[axis]
    bands = [
        list(_bands(array.shape[axis], start[axis], step[axis], grid.shape[axis], antialias, _BLOCKS[axis]))
        for axis in range(3)
    ]
    to_columns = [np.ascontiguousarray(band.weights.T) for band in bands[2]]
    if not all(bands):
        out[...] = fill
        return out
    source = [slice(min(b.source.start for b in axis), max(b.source.stop for b in axis)) for axis in bands]
    target = [slice(axis[0].target.start, axis[-1].target.stop) for axis in bands]
    lengths = [t.stop - t.start for t in target]
    planes = np.empty((source[0].stop - source[0].start, *lengths[1:]), np.float32)
    array = array[source[0], source[1], source[2]]
    voxels = np.empty(array.shape[1:], np.float32)
    rows = np.empty((lengths[1], array.shape[2]), np.float32)
    for plane, stored in zip(planes, array):
        np.copyto(voxels, stored)  # int16 to float32
        for band in bands[1]:
            np.matmul(
                band.weights, voxels[_shift(band.source, source[1])], out=rows[_shift(band.target, target[1])]
            )
        for band, weights in zip(bands[2], to_columns):
            columns = rows[:, _shift(band.source, source[2])]
            np.matmul(columns, weights, out=plane[:, _shift(band.target, target[2])])
    is_inside = lengths[1:] == list(grid.shape[1:])
    if not is_inside or lengths[0] < grid.shape[0]:
        out[...] = fill
    planes = planes.reshape(len(planes), -1)
    for band in bands[0]:
        near = planes[_shift(band.source, source[0])]
        if is_inside:
            np.matmul(band.weights, near, out=out[band.target].reshape(-1, near.shape[1]))
        else:
            out[band.target, target[1], target[2]] = (band.weights @ near).reshape(-1, *lengths[1:])
    return out


@dataclass(frozen=True)
class _Band:
    """A block of the interpolation matrix of one axis: `target` grid voxels come from `source` voxels."""

    target: slice
    source: slice
    weights: np.ndarray


def _bands(
    length: int, start: float, step: float, count: int, antialias: bool, block: int = 32
) -> Iterator[_Band]:
    """Cut the interpolation matrix of one axis into blocks small enough that few of their weights are zero."""
    positions = start + step * np.arange(count)
    inside = np.flatnonzero((positions >= -0.5 - 1e-6) & (positions <= length - 0.5 + 1e-6))
    radius = max(1.0, abs(step)) if antialias else 1.0
    for first in range(0, len(inside), block):
        target = inside[first : first + block]
        at = positions[target]
        low = max(0, math.ceil(at.min() - radius))
        high = min(length, math.floor(at.max() + radius) + 1)
        offset = np.arange(low, high) - at[:, None]
        weights = np.maximum(0.0, 1.0 - np.abs(offset) / radius)
        # A wide triangle on few voxels is off centre by up to .06 voxels; not where the border cuts it.
        is_whole = (at >= radius - 1) & (at <= length - radius)
        tilt = (weights * offset).sum(1) / np.maximum((weights * offset**2).sum(1), 1e-9)
        weights *= 1 - np.where(is_whole, tilt, 0.0)[:, None] * offset
        weights /= weights.sum(axis=1, keepdims=True)
        yield _Band(slice(int(target[0]), int(target[-1]) + 1), slice(low, high), weights.astype(np.float32))


def _shift(inner: slice, outer: slice) -> slice:
    return slice(inner.start - outer.start, inner.stop - outer.start)
