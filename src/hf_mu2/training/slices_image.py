"""CT volumes to patches of a Qwen-VL vision tower: HU, mm, groups of slices, windows to RGB, frames, patches.

Reads: volumes in any form `load_volume` takes, and both storage forms of `hf-mu2 data prepare`.
Writes: nothing.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from hf_mu2.model.resample_mu2 import Grid, resample
from hf_mu2.model.volume_mu2 import Volume, VolumeError, load_volume

from .slices_groups import (
    COVERAGES,
    Group,
    choose_groups,
    frame_size,
    patchify,
    resize_frames,
    seconds_per_step,
)

STORED_SPACING_MM = (1.5, 0.75, 0.75)  # z, y, x of the paper and of both storage forms
STORED_HU = 1000.0  # what the arrays of `preprocessed_numpy` were divided by


@dataclass(frozen=True)
class Layout:
    """What one group of slices costs and where it lies, known without reading a voxel.

    Args:
        group (`Group`): Its slices.
        grid (`tuple[int, int, int]`): (t, h, w) in patches.
        seconds (`float`): From one step to the next.
        times (`tuple[float, ...]`): Of each step, in seconds from the lowest slice of the volume.
    """

    group: Group
    grid: tuple[int, int, int]
    seconds: float
    times: tuple[float, ...]


@dataclass(frozen=True)
class SliceVideo:
    """One group of slices as the model reads it.

    Args:
        layout (`Layout`): Its size and place.
        patches (`torch.Tensor` of shape `(t * h * w, 3 * temporal_patch_size * patch_size**2)`): float32.
    """

    layout: Layout
    patches: torch.Tensor


class SliceImageProcessorKwargs(TypedDict, total=False):
    """Fields of [`SliceImageProcessor`], saved with it; each may be overridden in a call."""

    spacing: Sequence[float]
    num_slices: int
    coverage: str
    stride: int
    windows: Sequence[Sequence[float]]
    min_pixels: int
    max_pixels: int
    seconds_per_mm: float
    timestamps: bool
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    image_mean: Sequence[float]
    image_std: Sequence[float]
    array_spacing: Sequence[float] | None


class SliceImageProcessor(BaseImageProcessor):
    """Turn CT volumes into videos of axial slices, seen as on a viewer: the patient's front up, his right on the left.

    Args:
        spacing (`Sequence[float]`, defaults to `(1.5, 0.75, 0.75)`): Spacing (z, y, x) in mm that volumes are brought
            to, their whole field of view.
        num_slices (`int`, defaults to 10): Slices of a group, which is one video.
        coverage (`str`, defaults to `"even"`): `"even"` spreads one group over the volume, `"stride"` shows every
            `stride`-th slice in as many groups as that takes. [`slices_around`] names slices for one volume.
        stride (`int`, defaults to 1): See `coverage`.
        windows (`Sequence`, defaults to `((-1000, 1000),)`): (low, high) in HU, mapped to [0, 1]: one as grey, or three
            as red, green and blue.
        min_pixels, max_pixels (`int`): Bounds on the area of a frame, as in Qwen2.5-VL's video processor.
        seconds_per_mm (`float`, defaults to 2.0): Time that stands for a millimetre of z. With 2, slice distances that
            are multiples of 0.25 mm are told apart exactly.
        timestamps (`bool`, defaults to `False`): Qwen3-VL: time goes into the text, not into `second_per_grid_ts`.
        patch_size, temporal_patch_size, merge_size (`int`): Of the model's vision tower.
        image_mean, image_std (`Sequence[float]`): Of the RGB values its vision tower was trained on.
        array_spacing (`Sequence[float]`, *optional*): Spacing (z, y, x) of bare arrays, which are refused without.
    """

    model_input_names = ["pixel_values_videos", "video_grid_thw", "second_per_grid_ts"]
    valid_kwargs = SliceImageProcessorKwargs

    mode = "slices"
    spacing = STORED_SPACING_MM
    num_slices = 10
    coverage = "even"
    stride = 1
    windows = ((-1000.0, 1000.0),)
    min_pixels = 128 * 28 * 28
    max_pixels = 768 * 28 * 28
    seconds_per_mm = 2.0
    timestamps = False
    patch_size = 14
    temporal_patch_size = 2
    merge_size = 2
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    array_spacing = None

    def __init__(self, **kwargs: Any):
        unknown = sorted(
            set(kwargs) - set(self.valid_kwargs.__annotations__) - {"image_processor_type", "auto_map"}
        )
        if unknown:
            raise ValueError(
                f"Unknown option {', '.join(unknown)}. Slices take {', '.join(self.valid_kwargs.__annotations__)}."
            )
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        self._validate()

    def _validate(self) -> None:
        if len(self.spacing) != 3 or min(self.spacing) <= 0:
            raise ValueError(f"`spacing` is (z, y, x) in mm, three positive numbers, got {self.spacing}.")
        if self.coverage not in COVERAGES:
            raise ValueError(f"`coverage` is one of {', '.join(COVERAGES)}, got {self.coverage!r}.")
        if self.num_slices < 1 or self.stride < 1:
            raise ValueError(
                f"`num_slices` and `stride` are at least 1, got {self.num_slices} and {self.stride}."
            )
        if len(self.windows) not in (1, 3) or any(
            len(window) != 2 or window[0] >= window[1] for window in self.windows
        ):
            raise ValueError(
                f"`windows` is one (low, high) in HU with low < high, shown as grey, or three, shown as red, green and "
                f"blue, got {self.windows}."
            )
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"`min_pixels` is positive and at most `max_pixels`, got {self.min_pixels} and {self.max_pixels}."
            )
        if self.seconds_per_mm <= 0:
            raise ValueError(f"`seconds_per_mm` is positive, got {self.seconds_per_mm}.")

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Return volumes as they came: they are opened here, not by Pillow."""
        return image_url_or_urls

    def changed(self, **overrides: Any) -> "SliceImageProcessor":
        """Return this processor with some fields changed."""
        settings = {name: getattr(self, name) for name in self.valid_kwargs.__annotations__}
        return type(self)(**{**settings, **overrides})

    def load(self, source: Any) -> Volume:
        """Load any source of `load_volume`, or an array of the form `preprocessed_numpy`, which stays on disk."""
        path = source.get("path") if isinstance(source, dict) and source.get("bytes") is None else source
        if isinstance(path, (str, Path)) and str(path).endswith(".npy"):
            return _open_stored(Path(path))
        is_array = isinstance(source, (np.ndarray, torch.Tensor))
        return load_volume(source, spacing=self.array_spacing if is_array else None)

    def plan(self, source: Any) -> list[Layout]:
        """Lay out the groups of a volume, without resampling it."""
        source, around = _parse_around(source)
        volume = self.load(source)
        return self._lay_out(volume, self._grid(volume), around)

    def videos(self, source: Any) -> list[SliceVideo]:
        """Turn one volume into its videos, one per group of slices."""
        source, around = _parse_around(source)
        volume = self.load(source)
        grid = self._grid(volume)
        return [
            SliceVideo(layout, self._patches(volume, grid, layout))
            for layout in self._lay_out(volume, grid, around)
        ]

    def preprocess(self, images: Any, return_tensors: str | None = None, **overrides: Any) -> BatchFeature:
        """Preprocess volumes into one batch.

        Args:
            images: One source of `load_volume`, a list, or nested lists (flattened in order). An object that appears
                twice is processed once.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; tensors by default.
            overrides: Any field of the processor, for this call.

        Returns:
            `BatchFeature`: `pixel_values_videos` (patches of all videos, channels * frames * pixels of a patch) in
            float32, `video_grid_thw` (videos, 3) and, without `timestamps`, `second_per_grid_ts` (videos,).
        """
        volumes = self.videos_of(images, **overrides)
        return self.collate([video for videos in volumes for video in videos], return_tensors)

    def videos_of(self, images: Any, **overrides: Any) -> list[list[SliceVideo]]:
        """Turn volumes into lists of videos, in order; an object or path that appears twice is processed once."""
        if overrides:
            return self.changed(**overrides).videos_of(images)
        sources = flatten(images)
        if not sources:
            raise ValueError(
                "`images` holds no volume. Pass at least one, or no `images` at all for text alone."
            )
        done: dict[Any, list[SliceVideo]] = {}
        keys = [source if isinstance(source, str) else id(source) for source in sources]
        for key, source in zip(keys, sources):
            if key not in done:
                done[key] = self.videos(source)
        return [done[key] for key in keys]

    def collate(self, videos: list[SliceVideo], return_tensors: str | None = None) -> BatchFeature:
        """Lay videos out one after the other, as the model takes them."""
        batch = {
            "pixel_values_videos": torch.cat([video.patches for video in videos]),
            "video_grid_thw": torch.tensor([video.layout.grid for video in videos]),
        }
        if not self.timestamps:
            batch["second_per_grid_ts"] = torch.tensor([video.layout.seconds for video in videos])
        if return_tensors == "np":
            return BatchFeature({name: tensor.numpy() for name, tensor in batch.items()})
        return BatchFeature(batch)

    def _grid(self, volume: Volume) -> Grid:
        """Lay a grid of `spacing` over the whole field of view, centred; it is the stored one for stored volumes."""
        step = [mm / own for own, mm in zip(volume.spacing, self.spacing)]
        shape = [max(1, round(n / s)) for n, s in zip(volume.array.shape, step)]
        start = [(n - 1) / 2 - s * (m - 1) / 2 for n, s, m in zip(volume.array.shape, step, shape)]
        return Grid(
            (start[0], start[1], start[2]), (step[0], step[1], step[2]), (shape[0], shape[1], shape[2])
        )

    def _lay_out(self, volume: Volume, grid: Grid, around: Sequence[float] | None) -> list[Layout]:
        if around is not None:
            depth = volume.array.shape[0]
            if not around or min(around) < 0 or max(around) >= depth:
                raise VolumeError(
                    f"Slices are given as indices from 0 to {depth - 1}, lowest first, got {list(around)}. Name at "
                    "least one of them."
                )
            around = [(index - grid.start[0]) / grid.step[0] for index in around]
        groups = choose_groups(grid.shape[0], self.num_slices, self.coverage, self.stride, around)
        size = frame_size(
            *grid.shape[1:], self.patch_size * self.merge_size, self.min_pixels, self.max_pixels
        )
        return [self._layout(group, size) for group in groups]

    def _layout(self, group: Group, size: tuple[int, int]) -> Layout:
        z = [index * self.spacing[0] for index in group.slices]
        z += z[-1:] * (-len(z) % self.temporal_patch_size)  # the last slice is shown again
        steps = [z[i : i + self.temporal_patch_size] for i in range(0, len(z), self.temporal_patch_size)]
        return Layout(
            group,
            (len(steps), size[0] // self.patch_size, size[1] // self.patch_size),
            seconds_per_step(group.distance * self.spacing[0], self.seconds_per_mm, self.temporal_patch_size),
            tuple((step[0] + step[-1]) / 2 * self.seconds_per_mm for step in steps),
        )

    def _patches(self, volume: Volume, grid: Grid, layout: Layout) -> torch.Tensor:
        slices, plane = layout.group.slices, grid.shape[1:]
        hu = np.empty((len(slices), *plane), np.float32)
        for row, index in zip(hu, slices):  # ten of two hundred slices, so each by itself
            at = Grid((grid.start[0] + index * grid.step[0], *grid.start[1:]), grid.step, (1, *plane))
            resample(volume.array, at, antialias=True, out=row[None])
        hu *= volume.provenance.get("hu_per_unit", 1.0)
        picture = torch.from_numpy(hu).flip(1, 2)  # RAS rows run to the front, columns to the patient's right
        windowed = [((picture - low) / (high - low)).clamp_(0, 1) for low, high in self.windows]
        size = layout.grid[1] * self.patch_size, layout.grid[2] * self.patch_size
        frames = resize_frames(torch.stack(windowed, dim=1), size).expand(-1, 3, -1, -1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.image_mean, self.image_std))
        return patchify((frames - mean) / std, self.patch_size, self.temporal_patch_size, self.merge_size)[0]


def slices_around(volume: str | os.PathLike[str], slices: Sequence[int]) -> str:
    """Write a reference to a volume that shows one group around each of these slices, wherever a path fits.

    Args:
        volume (`str` or `os.PathLike`): Path, or volume reference.
        slices (`Sequence[int]`): Indices into the volume as `load_volume` gives it, lowest slice 0.
    """
    fields = {"slices": [int(index) for index in slices], "volume": os.fspath(volume)}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _parse_around(source: Any) -> tuple[Any, list[int] | None]:
    """Split a reference of [`slices_around`] into volume and slices."""
    text = source.get("path") if isinstance(source, dict) and source.get("bytes") is None else source
    if not (isinstance(text, str) and text.startswith('{"slices":')):
        return source, None
    fields = json.loads(text)
    return fields["volume"], fields["slices"]


def _open_stored(path: Path) -> Volume:
    """Map an array of `preprocessed_numpy` into memory: (z, x, y), HU / 1000, at 0.75 x 0.75 x 1.5 mm."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise VolumeError(
            f"A stored volume must be a whole .npy file, `{path}` cannot be read ({error}). Run `hf-mu2 data prepare` "
            "again."
        ) from error
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.floating):
        raise VolumeError(
            f"A stored volume is (z, x, y) in floating point, HU / {STORED_HU:g}, got {array.dtype} {array.shape} in "
            f"`{path}`. Write it with `hf-mu2 data prepare --form preprocessed_numpy`."
        )
    affine = np.diag([*STORED_SPACING_MM[::-1], 1.0])
    return Volume(array.transpose(0, 2, 1), affine, STORED_SPACING_MM, {"hu_per_unit": STORED_HU})


def flatten(images: Any) -> list[Any]:
    """List the volumes of any nesting of lists."""
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [source for item in images for source in flatten(item)]
    return [images]


# Every `save_pretrained`, a trainer's too, then writes the code beside the weights.
SliceImageProcessor.register_for_auto_class()

__all__ = ["Layout", "SliceImageProcessor", "SliceVideo", "flatten", "slices_around"]
