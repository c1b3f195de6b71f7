"""The published preprocessing (`u2Transform`), reproduced for converted weights; not what we recommend.

It ignores spacing and orientation, scales each volume by its own percentiles (40 HU lands anywhere between .53 and .91)
and fills short scans with empty frames. Equal to MONAI's transforms to float32 rounding, without MONAI.
"""

import math

import numpy as np
import torch

from .volume_mu2 import Volume, VolumeError


def official_frames(
    volume: Volume, size: int, num_frames: int, num_slices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return frames (num_frames, num_slices, size, size) in [0, 1] and the affine of their stacked voxels to RAS mm.

    Args:
        volume ([`Volume`]): Loaded with `clamp=False`: the published pipeline sees scanner padding too.
        size (`int`): Height and width. The height axis holds the first disk axis (x), the width axis the second (y).
        num_frames, num_slices (`int`): The volume is padded or resized to their product in depth.
    """
    stored, affine = _disk_order(volume)
    low, high = np.percentile(stored, (0.5, 99.5))
    if high <= low:
        raise VolumeError(
            "Percentiles 0.5 and 99.5 must differ, this volume is constant. It holds no anatomy."
        )
    scaled = np.clip((stored - np.float32(low)) / np.float32(high - low), 0, 1)
    foreground = scaled > 0
    box = []
    for axis in range(3):
        hits = np.flatnonzero(foreground.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    scaled = scaled[tuple(box)]
    depth = num_frames * num_slices
    ratio = min(size / scaled.shape[0], size / scaled.shape[1])
    shape = [int(scaled.shape[0] * ratio), int(scaled.shape[1] * ratio), min(scaled.shape[2], depth)]
    affine = affine @ _translation([s.start for s in box])
    scale = np.eye(4)
    for axis, (old, new) in enumerate(zip(scaled.shape, shape)):
        scale[axis, axis] = (old - 1) / max(new - 1, 1)  # align_corners: first and last voxel centres stay
        scaled = np.moveaxis(np.tensordot(_resize_matrix(old, new), scaled, (1, axis)), 0, axis)
    frames = np.zeros((depth, size, size), np.float32)
    frames[: shape[2], : shape[0], : shape[1]] = scaled.transpose(2, 0, 1)
    to_disk = np.eye(4)[:, [1, 0, 2, 3]]  # frames are (z, x, y): their width is the second disk axis
    return frames.reshape(num_frames, num_slices, size, size), affine @ scale @ to_disk


def _disk_order(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Undo the canonical order: voxels along the axes (i, j, k) of the file, and their affine."""
    codes = volume.provenance["orientation_on_disk"]
    array, affine = volume.array.transpose(2, 1, 0), volume.affine.copy()
    for world, letters in enumerate(("RL", "AP", "SI")):
        if letters[1] in codes:
            array = np.flip(array, world)
            affine[:3, 3] += affine[:3, world] * (array.shape[world] - 1)
            affine[:3, world] *= -1
    order = [
        next(world for world, letters in enumerate(("RL", "AP", "SI")) if code in letters) for code in codes
    ]
    return array.transpose(order), affine[:, [*order, 3]]


def _translation(offset: list[int]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, 3] = offset
    return affine


def _resize_matrix(old: int, new: int) -> np.ndarray:
    """Return the (new, old) matrix of MONAI's anti-aliased resize: Gaussian with zero borders, then align_corners."""
    positions = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    matrix = np.maximum(0.0, 1.0 - np.abs(np.arange(old) - positions[:, None]))
    sigma = (old / new - 1) / 2
    if sigma > 0:
        tail = int(max(4 * sigma, 0.5) + 0.5)
        x = torch.arange(-tail, tail + 1, dtype=torch.float32)
        kernel = 0.5 * (
            ((x + 0.5) / (math.sqrt(2) * sigma)).erf() - ((x - 0.5) / (math.sqrt(2) * sigma)).erf()
        )
        offsets = np.arange(old)[:, None] - np.arange(old)
        blur = np.where(np.abs(offsets) <= tail, kernel.numpy()[np.clip(offsets + tail, 0, 2 * tail)], 0.0)
        matrix = matrix @ blur
    return matrix.astype(np.float32)
