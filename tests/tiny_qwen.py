"""A tiny Qwen2.5-VL or Qwen3-VL of random weights, saved with the processor that shows it volumes as slices."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from hf_mu2.training.slices_start import random_qwen
from hf_mu2.training.slices_video import SliceVideoProcessor


def make_tiny_qwen(folder: str | Path, family: str = "qwen2_5_vl", seed: int = 0, **options: Any) -> Path:
    """Save the checkpoint and return its folder; `options` are fields of `SliceImageProcessor`.

    A volume becomes 6 slices of at most 9 tokens each, two slices sharing them: 27 tokens or fewer.
    """
    return random_qwen(folder, family, seed, **options)


def load_tiny_qwen(folder: str | Path) -> tuple[PreTrainedModel, SliceVideoProcessor]:
    """Load what `make_tiny_qwen` saved, as any user would."""
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
