"""Tiny configurations, tokenizers, checkpoints and volumes, made in code."""

from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from hf_mu2.hub.assemble import image_processor_for, save_checkpoint
from hf_mu2.hub.chat_template import adapt_chat_template
from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.model.modeling_mu2 import Mu2ForConditionalGeneration
from hf_mu2.model.processing_mu2 import Mu2Processor
from hf_mu2.model.volume_mu2 import Volume, load_volume

# Ids follow this order, as in the preset `tiny`: padding 0, start 1, user 2, assistant 3, end of turn 4, volume 5.
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>", "<|image|>", "<|system|>")
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
TextModel = Literal["llama", "qwen3", "phi3"]


def tiny_config(text: TextModel = "llama", **overrides: Any) -> Mu2Config:
    """Build a configuration of about 150k parameters; dictionaries for the sub-configurations are merged."""
    fields: dict[str, Any] = {
        "text_config": {
            "model_type": text,
            "vocab_size": 300,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 4,
            "pad_token_id": 0,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "frame_size": (8, 32, 32),
            "patch_size": (4, 8, 8),
        },
        "tokenizer_config": {
            "hidden_size": 32,
            "num_heads": 4,
            "num_refiner_layers": 1,
            "num_aggregator_layers": 1,
            "num_selected_tokens": 16,
            "num_query_tokens": 8,
            "scale_queries": (4, 2, 2),
            "max_frames": 4,
        },
        "image_token_id": 5,
        "question_end_token_ids": [4, 3],
    }
    for name, value in overrides.items():
        fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
    return Mu2Config(**fields)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer whose text tokens are bytes, 263 in all, with a template that knows text only."""
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|user|>", "<|assistant|>", "<|image|>", "<|system|>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )


def tiny_processor(config: Mu2Config | None = None) -> Mu2Processor:
    """Build the processor of a tiny configuration: a `tiny_volume` fills two frames of it."""
    config = tiny_config() if config is None else config
    tokenizer = tiny_tokenizer()
    return Mu2Processor(
        image_processor_for(config, spacing=(3.0, 2.5, 2.5)),
        tokenizer,
        num_query_tokens=config.tokenizer_config.num_query_tokens,
        question_end_token_ids=list(config.question_end_token_ids),
        chat_template=adapt_chat_template(tokenizer),
    )


def make_tiny_checkpoint(
    path: str | Path, text: TextModel = "llama", seed: int = 0, **overrides: Any
) -> Path:
    """Save a tiny checkpoint with processor and generation configuration."""
    model = tiny_model(text, seed, **overrides)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[4], pad_token_id=0)
    return save_checkpoint(model, tiny_processor(model.config), path)


def tiny_model(text: TextModel = "llama", seed: int = 0, **overrides: Any) -> Mu2ForConditionalGeneration:
    """Build a model with random weights that prefers no token, in evaluation mode."""
    torch.manual_seed(seed)
    return Mu2ForConditionalGeneration(tiny_config(text, **overrides)).eval()


def tiny_volume(
    seed: int = 0,
    shape: tuple[int, int, int] = (12, 40, 44),
    spacing: tuple[float, float, float] = (3.0, 2.0, 2.0),
) -> Volume:
    """Make a volume of smooth noise around soft tissue in air, shape (depth, height, width), spacing in mm."""
    return load_volume(tiny_array(seed, shape), spacing=spacing)


def tiny_nifti(
    seed: int = 0,
    shape: tuple[int, int, int] = (12, 40, 44),
    spacing: tuple[float, float, float] = (3.0, 2.0, 2.0),
) -> nib.Nifti1Image:
    """Make the NIfTI image of the same voxels as `tiny_volume`."""
    affine = np.diag([*spacing[::-1], 1.0])
    return nib.Nifti1Image(tiny_array(seed, shape).transpose(2, 1, 0), affine)


def tiny_array(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Make voxels in HU, int16: an ellipse of tissue with seeded blobs."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    volume = np.where(x**2 + y**2 < 0.8, 40.0, -1000.0)
    for _ in range(4):
        centre, size, hu = rng.uniform(-0.6, 0.6, 3), rng.uniform(0.1, 0.4), rng.uniform(-900, 700)
        volume[((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) < size**2] = hu
    return (volume + rng.normal(0, 10, shape)).astype(np.int16)
