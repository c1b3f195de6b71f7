"""CT volumes as videos of axial slices, for Qwen2.5-VL and Qwen3-VL: HU, mm, windows to RGB, patches, placeholders.

Reads: volumes in any form `load_volume` takes, and both storage forms of `hf-mu2 data prepare`.
Writes: nothing; batches for the model, in the layout of its own processor in transformers.

The method is that of Gao and Zhao's negative constraint (METHOD, section 2): HU at 0.75 x 0.75 x 1.5 mm, clamped,
slices as video frames in groups, time that follows the z spacing. transformers' video processors need torchvision;
this one needs torch alone, and keeps 12 bits of HU where 8-bit frames would keep 8. TRL's collators and `generate`
take it as they take a stock processor: volumes are the `images` of a row, `{"type": "image"}` parts of a conversation.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin

from hf_mu2.model.processing_mu2 import Mu2Processor
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
class Family:
    """What the processors of two model families differ in.

    Args:
        mean, std (`Sequence[float]`): Of the RGB values its vision tower was trained on.
        timestamps (`bool`): Whether time is text before each step, or `second_per_grid_ts` for the rotary positions.
    """

    mean: Sequence[float]
    std: Sequence[float]
    timestamps: bool


FAMILIES = {
    "qwen2_5_vl": Family(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, timestamps=False),
    "qwen3_vl": Family(IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, timestamps=True),
}


@dataclass(frozen=True)
class SliceVideo:
    """One group of slices as the model reads it.

    Args:
        patches (`torch.Tensor` of shape `(t * h * w, 3 * temporal_patch_size * patch_size**2)`): float32.
        grid (`tuple[int, int, int]`): (t, h, w) in patches.
        seconds (`float`): From one step to the next.
        times (`tuple[float, ...]`): Of each step, in seconds from the lowest slice of the volume.
    """

    patches: torch.Tensor
    grid: tuple[int, int, int]
    seconds: float
    times: tuple[float, ...]


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

    def load(self, source: Any) -> Volume:
        """Load any source of `load_volume`, or an array of the form `preprocessed_numpy`, which stays on disk."""
        path = source.get("path") if isinstance(source, dict) and source.get("bytes") is None else source
        if isinstance(path, (str, Path)) and str(path).endswith(".npy"):
            return _open_stored(Path(path))
        is_array = isinstance(source, (np.ndarray, torch.Tensor))
        return load_volume(source, spacing=self.array_spacing if is_array else None)

    def plan(self, source: Any) -> tuple[list[Group], tuple[int, int, int]]:
        """Say which slices of a volume are shown, and the grid (t, h, w) of a whole group, without resampling it."""
        source, around = _parse_around(source)
        volume = self.load(source)
        grid = self._grid(volume)
        groups = self._groups(volume, grid, around)
        steps = -(-max(len(group.slices) for group in groups) // self.temporal_patch_size)
        height, width = self._frame_size(grid)
        return groups, (steps, height // self.patch_size, width // self.patch_size)

    def count_tokens(self, source: Any) -> int:
        """Count the visual tokens of a volume: what stands in `input_ids` for it, timestamps left out."""
        groups, (_, height, width) = self.plan(source)
        steps = sum(-(-len(group.slices) // self.temporal_patch_size) for group in groups)
        return steps * height * width // self.merge_size**2

    def videos(self, source: Any) -> list[SliceVideo]:
        """Turn one volume into its videos, one per group of slices."""
        source, around = _parse_around(source)
        volume = self.load(source)
        grid = self._grid(volume)
        size = self._frame_size(grid)
        return [self._video(volume, grid, group, size) for group in self._groups(volume, grid, around)]

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
            names = self.valid_kwargs.__annotations__
            settings = {name: getattr(self, name) for name in names} | overrides
            return type(self)(**settings).videos_of(images)
        sources = _flatten(images)
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
            "video_grid_thw": torch.tensor([video.grid for video in videos]),
        }
        if not self.timestamps:
            batch["second_per_grid_ts"] = torch.tensor([video.seconds for video in videos])
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

    def _groups(self, volume: Volume, grid: Grid, around: Sequence[float] | None) -> list[Group]:
        if around is not None:
            depth = volume.array.shape[0]
            if not around or min(around) < 0 or max(around) >= depth:
                raise VolumeError(
                    f"Slices are given as indices from 0 to {depth - 1}, lowest first, got {list(around)}. Name at "
                    "least one of them."
                )
            around = [(index - grid.start[0]) / grid.step[0] for index in around]
        return choose_groups(grid.shape[0], self.num_slices, self.coverage, self.stride, around)

    def _frame_size(self, grid: Grid) -> tuple[int, int]:
        return frame_size(
            *grid.shape[1:], self.patch_size * self.merge_size, self.min_pixels, self.max_pixels
        )

    def _video(self, volume: Volume, grid: Grid, group: Group, size: tuple[int, int]) -> SliceVideo:
        hu = np.empty((len(group.slices), *grid.shape[1:]), np.float32)
        for row, index in zip(hu, group.slices):  # ten of two hundred slices, so one at a time
            start = (grid.start[0] + index * grid.step[0], *grid.start[1:])
            resample(
                volume.array, Grid(start, grid.step, (1, *grid.shape[1:])), antialias=True, out=row[None]
            )
        hu *= volume.provenance.get("hu_per_unit", 1.0)
        picture = torch.from_numpy(hu).flip(1, 2)  # RAS rows run to the front, columns to the patient's right
        channels = torch.stack(
            [((picture - low) / (high - low)).clamp_(0, 1) for low, high in self.windows], dim=1
        )
        frames = resize_frames(channels, size).expand(-1, 3, -1, -1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.image_mean, self.image_std))
        patches, layout = patchify(
            (frames - mean) / std, self.patch_size, self.temporal_patch_size, self.merge_size
        )
        distance_mm = group.distance * self.spacing[0]
        seconds = [index * self.spacing[0] * self.seconds_per_mm for index in group.slices]
        seconds += seconds[-1:] * (-len(seconds) % self.temporal_patch_size)
        steps = np.reshape(seconds, (-1, self.temporal_patch_size))
        return SliceVideo(
            patches,
            layout,
            seconds_per_step(distance_mm, self.seconds_per_mm, self.temporal_patch_size),
            tuple((steps[:, 0] + steps[:, -1]) / 2),
        )


class SliceVideoProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: ImagesKwargs
    _defaults = {}  # transformers 5.17 reads it  # type: ignore[misc]


class SliceVideoProcessor(ProcessorMixin):
    r"""
    Turns conversations about CT volumes into the inputs of Qwen2.5-VL or Qwen3-VL.

    It stands where the model's own processor does: `input_ids`, `attention_mask`, `mm_token_type_ids`,
    `pixel_values_videos`, `video_grid_thw` and, for Qwen2.5-VL, `second_per_grid_ts`. A volume is an image part of a
    conversation; the image placeholder that the template writes becomes the video placeholders of its slices.

    image_processor (`SliceImageProcessor`):
        Turns volumes into videos.
    tokenizer (`PreTrainedTokenizerBase`):
        Tokenizer of the model.
    """

    valid_processor_kwargs = SliceVideoProcessorKwargs

    image_token, video_token = "<|image_pad|>", "<|video_pad|>"
    vision_start_token, vision_end_token = "<|vision_start|>", "<|vision_end|>"

    def __init__(
        self,
        image_processor: SliceImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
    ):
        tokens = self.image_token, self.video_token, self.vision_start_token, self.vision_end_token
        missing = [token for token in tokens if token not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(
                f"The tokenizer must be that of a Qwen-VL model, this one lacks {', '.join(missing)}. Load it from the "
                "checkpoint of the model."
            )
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        return_mm_token_type_ids: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenize texts and process their volumes.

        Args:
            images: Volumes in the order of their placeholders: one, a list of them, or a list per text. A volume is
                anything that `load_volume` takes, or a path of the storage form `preprocessed_numpy`.
            text (`str` or `Sequence[str]`): Texts with one image placeholder per volume.
            return_mm_token_type_ids (`bool`, *optional*, defaults to `True`): The model's positions need them.
            kwargs: Options of the tokenizer and of the image processor.
        """
        if videos is not None or audio is not None:
            raise ValueError(
                "Volumes and text are read here, got `videos` or `audio`. Pass volumes as `images`."
            )
        batch = super().__call__(images=images, text=text, **kwargs)
        if return_mm_token_type_ids and "input_ids" in batch:
            kinds = self.create_mm_token_type_ids(batch["input_ids"])
            batch.update(BatchFeature({"mm_token_type_ids": kinds}, tensor_type=kwargs.get("return_tensors")))
        return batch

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> tuple[Any, Any, None, None]:
        """List texts and volumes, each flat."""
        text = [text] if isinstance(text, str) else None if text is None else list(text)
        return _flatten(images) or None, text, None, None

    def validate_inputs(self, images: Any = None, text: Any = None, **kwargs: Any) -> None:
        """Check that texts hold one placeholder per volume."""
        if images is None and text is None:
            raise ValueError("Pass `text`, `images` or both, got neither.")
        if text is None:
            return
        num_placeholders = sum(sample.count(self.image_token) for sample in text)
        num_volumes = 0 if images is None else len(images)
        if num_placeholders != num_volumes or any(self.video_token in sample for sample in text):
            raise ValueError(
                f"Each volume needs one `{self.image_token}` in the text and none is a video, got {num_placeholders} "
                f"for {num_volumes} volumes. Use `apply_chat_template` with one "
                '`{"type": "image", "image": ...}` part per volume.'
            )

    def _process_images(self, images: list[Any], **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        return_tensors = kwargs.pop("return_tensors", None)
        volumes = self.image_processor.videos_of(images, **kwargs)
        batch = self.image_processor.collate(
            [video for videos in volumes for video in videos], return_tensors
        )
        return batch, [self.placeholders(videos) for videos in volumes]

    def placeholders(self, videos: list[SliceVideo]) -> str:
        """Write what stands for a volume between the template's start and end of vision.

        Qwen2.5-VL: the tokens of each group, groups parted by an end and a start. Qwen3-VL: before each step its time
        in text, around it a start and an end of its own, as its processor in transformers writes it.
        """
        merged = self.image_processor.merge_size**2
        if self.image_processor.timestamps:
            return "".join(
                f"<{time:.1f} seconds>{self.vision_start_token}{self.video_token * (rows * columns // merged)}"
                f"{self.vision_end_token}"
                for video in videos
                for time in video.times
                for _, rows, columns in [video.grid]
            )
        between = self.vision_end_token + self.vision_start_token
        return between.join(self.video_token * (np.prod(video.grid) // merged) for video in videos)

    @property
    def unused_input_names(self) -> list[str]:
        """Keys of some tokenizers that the model does not take."""
        return ["token_type_ids"]

    build_messages = Mu2Processor.build_messages  # the same question, put the same way


def slice_processor(model: str | Path, **options: Any) -> SliceVideoProcessor:
    """Make the processor of a Qwen-VL checkpoint: its tokenizer and template, its vision tower's patches.

    Args:
        model (`str` or `Path`): Folder or Hub id of Qwen2.5-VL, Qwen3-VL or what was trained from them.
        options: Fields of [`SliceImageProcessor`]; the default is the method of the paper.

    Raises:
        ValueError: if the model is of another family.
    """
    config = AutoConfig.from_pretrained(model)
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"Slices as video are for {', '.join(FAMILIES)}, `{model}` is a {config.model_type}. Choose a checkpoint "
            "of these, or train mu2."
        )
    family, vision = FAMILIES[config.model_type], config.vision_config
    tokenizer = AutoTokenizer.from_pretrained(model)
    settings = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": list(family.mean),
        "image_std": list(family.std),
        "timestamps": family.timestamps,
    }
    image_processor = SliceImageProcessor(**{**settings, **options})
    return SliceVideoProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)


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


def _flatten(images: Any) -> list[Any]:
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [source for item in images for source in _flatten(item)]
    return [images]


# Every `save_pretrained`, a trainer's too, then writes the code beside the weights.
SliceImageProcessor.register_for_auto_class()
SliceVideoProcessor.register_for_auto_class()

__all__ = [
    "FAMILIES",
    "SliceImageProcessor",
    "SliceVideo",
    "SliceVideoProcessor",
    "slice_processor",
    "slices_around",
]
