"""Which slices of a volume a video shows, how large its frames are, in which order their patches go, and its time.

All of it is arithmetic on numbers and arrays, in the rules of Qwen2.5-VL's and Qwen3-VL's own processors in
transformers (`qwen2_vl/video_processing_qwen2_vl.py`, `qwen3_vl/video_processing_qwen3_vl.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

COVERAGES = ("even", "stride")


@dataclass(frozen=True)
class Group:
    """Slices that make one video.

    Args:
        slices (`tuple[int, ...]`): Indices along the depth of the resampled volume, ascending.
        distance (`float`): From one slice to the next, in slices of the resampled volume; a mean for even coverage,
            whose slices are off by half a slice at most.
    """

    slices: tuple[int, ...]
    distance: float


def choose_groups(
    depth: int, num_slices: int, coverage: str, stride: int = 1, around: Sequence[float] | None = None
) -> list[Group]:
    """Choose the slices of each video of a volume.

    Args:
        depth (`int`): Slices of the resampled volume.
        num_slices (`int`): Slices of a group, fewer where the volume has fewer; odd numbers are fine.
        coverage (`str`): `"even"` cuts the volume into `num_slices` equal slabs and takes the middle of each, one
            group; `"stride"` takes every `stride`-th slice of the whole volume, in as many groups as that needs.
        stride (`int`): Step between slices, for `"stride"` and for `around`.
        around (`Sequence[float]`, *optional*): Instead, one group with each of these slices in its middle, moved as
            far as the ends of the volume ask for.
    """
    if around is not None:
        length = min(num_slices, (depth - 1) // stride + 1)
        reach = (length - 1) * stride
        firsts = [
            min(max(round(middle) - length // 2 * stride, 0), depth - 1 - reach) for middle in sorted(around)
        ]
        return [Group(tuple(range(first, first + reach + 1, stride)), float(stride)) for first in firsts]
    if coverage == "even":
        count = min(num_slices, depth)
        return [Group(tuple(math.floor((i + 0.5) * depth / count) for i in range(count)), depth / count)]
    taken = range(0, depth, stride)
    return [
        Group(tuple(taken[first : first + num_slices]), float(stride))
        for first in range(0, len(taken), num_slices)
    ]


def seconds_per_step(distance_mm: float, seconds_per_mm: float, slices_per_step: int = 2) -> float:
    """Return `second_per_grid_ts`, the time from one pair of slices to the next: whole seconds, at least one.

    Qwen2.5-VL places step i at `floor(i * tokens_per_second * second_per_grid_ts)`. Whole seconds come through that
    unharmed: releases of transformers before September 2026 cut the seconds themselves to integers, a batch cast to
    bfloat16 rounds fractions, and products with fractions fall below the next integer. So positions are exactly linear
    in z within a video; between videos they are so to half a second, `1 / (2 * seconds_per_mm)` mm.
    """
    return float(max(1, round(seconds_per_mm * slices_per_step * distance_mm)))


def frame_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Fit a frame to multiples of `factor` pixels within bounds on its area: `smart_resize` of Qwen2-VL.

    Raises:
        ValueError: if one side is more than 200 times the other.
    """
    if max(height, width) / min(height, width) > 200:
        raise ValueError(
            f"The sides of a slice must differ by a factor of at most 200, got {height} x {width} pixels. Check the "
            "spacing of the volume and of the processor."
        )
    fitted = [round(side / factor) * factor for side in (height, width)]
    if math.prod(fitted) > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        fitted = [max(factor, math.floor(side / scale / factor) * factor) for side in (height, width)]
    elif math.prod(fitted) < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        fitted = [math.ceil(side * scale / factor) * factor for side in (height, width)]
    return fitted[0], fitted[1]


def resize_frames(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize frames (n, channels, height, width) in [0, 1] as the stock processors do: bicubic with antialiasing."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    resized = F.interpolate(frames, size, mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp_(0, 1)


def patchify(
    frames: torch.Tensor, patch_size: int, temporal_patch_size: int, merge_size: int
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Lay out a video as the vision tower reads it: steps, then windows of merged patches, then patches in a window.

    Args:
        frames (`torch.Tensor` of shape `(n, channels, height, width)`): Sides are multiples of
            `patch_size * merge_size`. The last frame is repeated until `temporal_patch_size` divides their number.

    Returns:
        Patches `(t * h * w, channels * temporal_patch_size * patch_size**2)`, and the grid (t, h, w).
    """
    missing = -len(frames) % temporal_patch_size
    frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    count, channels, height, width = frames.shape
    grid = count // temporal_patch_size, height // patch_size, width // patch_size
    patches = frames.reshape(
        grid[0],
        temporal_patch_size,
        channels,
        grid[1] // merge_size,
        merge_size,
        patch_size,
        grid[2] // merge_size,
        merge_size,
        patch_size,
    )
    patches = patches.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return patches.reshape(math.prod(grid), -1), grid


__all__ = [
    "COVERAGES",
    "Group",
    "choose_groups",
    "frame_size",
    "patchify",
    "resize_frames",
    "seconds_per_step",
]
