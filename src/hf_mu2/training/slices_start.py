"""Starting checkpoints that read CT as slices: a Qwen-VL model with our processor, or a tiny one of random weights.

Reads: a checkpoint of Qwen2.5-VL or Qwen3-VL; for the tiny one, the tokenizer of the embedded checkpoint.
Writes: a checkpoint folder that `hf-mu2 train`, `trl sft` and `hf-mu2 predict` take.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from hf_mu2 import embedded_checkpoint
from hf_mu2.files import new_folder, replace_text

from .slices_video import FAMILIES, SliceVideoProcessor, slice_processor

RANDOM = "random"
# The tokens of Qwen2.5-VL and Qwen3-VL that a template or a processor writes.
QWEN_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# What the templates of both write for text and images.
QWEN_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif 'text' in part -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# What a checkpoint of ours says of itself, and readers repeat.
FACTS: dict[str, Any] = {
    "notice": "Research use only. Not a medical device.",
    "body_region": None,
    "trained_on_synthetic_only": False,
}
# Of the stock processors, which need torchvision, and of any processor before ours.
_PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


def add_slices(model: str | Path, output: str | Path, **options: Any) -> Path:
    """Copy a Qwen-VL checkpoint and give it the processor that reads volumes; weights are copied as files.

    Args:
        model (`str` or `Path`): Folder or Hub id of Qwen2.5-VL or Qwen3-VL, or `"random"` for [`random_qwen`].
        output (`str` or `Path`): The new checkpoint folder.
        options: Fields of `SliceImageProcessor`.

    Raises:
        ValueError: if the model is of another family, or `output` holds something.
    """
    if model == RANDOM:
        return random_qwen(output, **options)
    processor = slice_processor(model, **options)
    source = Path(model)
    if not source.is_dir():
        from huggingface_hub import snapshot_download

        source = Path(snapshot_download(str(model)))
    with new_folder(output) as folder:
        for path in source.iterdir():
            if path.is_file() and path.name not in _PROCESSOR_FILES:
                shutil.copyfile(path, folder / path.name)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        replace_text(folder / "config.json", json.dumps(FACTS | config, indent=2) + "\n")
        processor.save_pretrained(folder)
    return Path(output)


def open_slices(model: str | Path, **options: Any) -> SliceVideoProcessor:
    """Load the processor of a checkpoint of [`add_slices`], or make one for a stock checkpoint.

    Args:
        model (`str` or `Path`): Folder or Hub id.
        options: Fields of `SliceImageProcessor` that win over what is saved.
    """
    try:
        saved, _ = SliceVideoProcessor.get_processor_dict(model)
    except OSError:  # a stock checkpoint may have none
        saved = {}
    if saved.get("processor_class") != SliceVideoProcessor.__name__:
        return slice_processor(model, **options)
    processor = SliceVideoProcessor.from_pretrained(model)
    processor.image_processor = processor.image_processor.changed(**options)
    return processor


def random_qwen(output: str | Path, family: str = "qwen2_5_vl", seed: int = 0, **options: Any) -> Path:
    """Write a checkpoint of Qwen2.5-VL's or Qwen3-VL's architecture with about 150,000 random parameters.

    For tests and for the tiny twins of recipes. Patches, merging and rotary positions are those of the released
    models; the tokenizer is the embedded checkpoint's, with Qwen's special tokens.

    Args:
        output (`str` or `Path`): The new checkpoint folder.
        family (`str`): `"qwen2_5_vl"` or `"qwen3_vl"`.
        seed (`int`): Of the weights.
        options: Fields of `SliceImageProcessor`; by default few and small slices.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

    if family not in FAMILIES:
        raise ValueError(f"`family` is one of {', '.join(FAMILIES)}, got {family!r}. Choose one of them.")
    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint())
    tokenizer.add_special_tokens({"additional_special_tokens": list(QWEN_TOKENS), "eos_token": "<|im_end|>"})
    tokenizer.chat_template = QWEN_TEMPLATE
    ids = dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS))))
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 48,
    }
    vision |= (
        {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}
        if family == "qwen2_5_vl"
        else {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    )
    config = AutoConfig.for_model(
        family,
        vision_config=vision,
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 2, 2],
            },
            "head_dim": 12,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        **FACTS,
    )
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[ids["<|im_end|>"]],
        pad_token_id=tokenizer.pad_token_id,
    )
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        for path in folder.glob("*.safetensors"):  # safetensors writes them for the owner alone
            path.chmod((folder / "config.json").stat().st_mode)
        tokenizer.save_pretrained(folder)
        side = vision["patch_size"] * 2
        small = {
            "spacing": [5.0, 5.0, 5.0],
            "num_slices": 6,
            "min_pixels": side**2,
            "max_pixels": 9 * side**2,
        }
        processor: SliceVideoProcessor = slice_processor(folder, **{**small, **options})
        processor.save_pretrained(folder)
    return Path(output)


__all__ = ["QWEN_TEMPLATE", "QWEN_TOKENS", "add_slices", "open_slices", "random_qwen"]
