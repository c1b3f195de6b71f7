"""CT volumes as videos of axial slices, for Qwen2.5-VL and Qwen3-VL: HU, mm, windows to RGB, patches, placeholders.

Reads: volumes in any form `load_volume` takes, and both storage forms of `hf-mu2 data prepare`.
Writes: nothing; batches for the model, in the layout of its own processor in transformers.

The method is that of Gao and Zhao's negative constraint (METHOD, section 2): HU at 0.75 x 0.75 x 1.5 mm, clamped,
slices as video frames in groups, time that follows the z spacing. transformers' video processors need torchvision;
this one needs torch alone, and keeps 12 bits of HU where 8-bit frames would keep 8. TRL's collators and `generate`
take it as they take a stock processor: volumes are the `images` of a row, `{"type": "image"}` parts of a conversation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin

from hf_mu2.model.processing_mu2 import Mu2Processor

from .slices_image import Layout, SliceImageProcessor, flatten


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


class SliceVideoProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: ImagesKwargs
    _defaults = {}  # type: ignore[misc]  # transformers 5.17 reads it


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
        return flatten(images) or None, text, None, None

    def validate_inputs(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> None:
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
        return batch, [self.placeholders([video.layout for video in videos]) for videos in volumes]

    def placeholders(self, layouts: Sequence[Layout]) -> str:
        """Write what stands for a volume between the template's start and end of vision.

        Qwen2.5-VL: the tokens of each group, groups parted by an end and a start. Qwen3-VL: before each step its time
        in text, around it a start and an end of its own, as its processor in transformers writes it.
        """
        merged = self.image_processor.merge_size**2
        start, end, token = self.vision_start_token, self.vision_end_token, self.video_token
        if not self.image_processor.timestamps:
            return (end + start).join(token * (math.prod(layout.grid) // merged) for layout in layouts)
        return "".join(
            f"<{time:.1f} seconds>{start}{token * (math.prod(layout.grid[1:]) // merged)}{end}"
            for layout in layouts
            for time in layout.times
        )

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


# Every `save_pretrained`, a trainer's too, then writes the code beside the weights.
SliceVideoProcessor.register_for_auto_class()

__all__ = ["FAMILIES", "Family", "SliceVideoProcessor", "slice_processor"]
