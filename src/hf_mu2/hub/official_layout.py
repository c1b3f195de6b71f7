"""Tell which published variant a checkpoint is, from its tensors first and its config second.

Weights cannot hold everything: the order of the pooling grid, rotary frequencies and the language model's heads come
from the config. Where both speak, the config is what the table of keys then expects, so that a contradiction is refused
and the tensors are named.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from hf_mu2.model.configuration_mu2 import PRESETS, Mu2Config

Tensors = Mapping[str, torch.Tensor]

# What the published code hard-codes or defaults to.
_DEFAULTS = {
    "image_size": (32, 256, 256),
    "patch_size": (4, 16, 16),
    "u2t_num_heads": 8,
    "u2t_top_k": 1024,
    "num_3d_query_token": 256,
}
_FIXED = {
    "mm_projector_type": "spp",
    "proj_layer_type": "mlp",
    "proj_layer_num": 2,
    "proj_pooling_type": "spatial",
    "vision_select_layer": -1,
    "vision_select_feature": "patch",
    "image_channel": 1,
}
_VISION_HEAD_WIDTH = 64

# Language models whose config follows from their shape. Qwen3-4B's does not: its releases differ in rotary frequency.
_QWEN3_1B = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
}
_KNOWN_BASES = {
    ("llama", 2048, 16): ("Llama-3.2-1B", PRESETS["official"]["text_config"]),
    ("qwen3", 2048, 28): ("Qwen3-1.7B", _QWEN3_1B),
}

# Our placeholder and the end of a question where no tokenizer is given: ids of the stock vocabularies.
_STOCK_IDS = {
    "llama": (128002, [128009, 128006, 78191]),
    "qwen3": (151655, [151645, 198, 151644, 77091]),
    "phi3": (32002, [32007, 32001]),
}


def find_layout(
    tensors: Tensors, fields: Mapping[str, Any], language_model: str | Path | None = None
) -> tuple[Mu2Config, list[str]]:
    """Describe a published checkpoint as a `Mu2Config` in the `official` form.

    Args:
        tensors: State dict under the published names.
        fields: The checkpoint's `config.json`; may be empty.
        language_model: Hub id or folder of the base language model, for checkpoints without a config.

    Returns:
        The configuration, and notes on what could not be seen or looks unusual.

    Raises:
        ValueError: if it is no such checkpoint, or one whose config cannot be known.
    """
    if not any(name.startswith("model.u2tokenizer.") for name in tensors):
        raise ValueError(
            "A mu2 checkpoint holds the tokenizer under `model.u2tokenizer.`, this one has no such tensor. The "
            "published code loses it when a checkpoint is loaded and saved again: convert the one written by the "
            "training itself."
        )
    for field, value in _FIXED.items():
        if fields.get(field, value) != value:
            raise ValueError(
                f"Only checkpoints with `{field}={value!r}` can be converted, this one says {fields[field]!r}."
            )
    notes: list[str] = []
    text_config = _text_config(tensors, fields, language_model, notes)
    vision_config, projector_grid = _vision_config(tensors, fields, notes)
    image_token_id, question_end = _STOCK_IDS[text_config.model_type]
    config = Mu2Config(
        text_config=text_config,
        vision_config=vision_config,
        tokenizer_config={
            **PRESETS["official"]["tokenizer_config"],
            **_tokenizer_fields(tensors, fields, notes),
            "hidden_size": text_config.hidden_size,
            "text_hidden_size": text_config.hidden_size,
            "projector_pool_size": fields.get("proj_pooling_size", 2),
            "projector_grid": projector_grid,
        },
        image_token_id=min(image_token_id, text_config.vocab_size - 1),
        question_end_token_ids=question_end,
    )
    notes += _embedding_notes(tensors, text_config)
    return config, notes


def vision_fields(tensors: Tensors, prefix: str = "") -> dict[str, Any]:
    """Read the sizes of an M3D-CLIP tower off its tensors, whose names start with `prefix`.

    The number of heads is that of 64-wide heads, as in M3D-CLIP.
    """
    blocks = f"{prefix}blocks."
    width = _most_common(
        [
            *(t.shape[-1] for name, t in tensors.items() if name.startswith(blocks) and ".norm" in name),
            *(t.shape[-1] for name, t in tensors.items() if name == f"{prefix}cls_token"),
        ],
        768,
    )
    hidden = [
        t.shape[0] for name, t in tensors.items() if name.startswith(blocks) and ".mlp.linear1." in name
    ]
    hidden += [
        t.shape[1] for name, t in tensors.items() if name.startswith(blocks) and "mlp.linear2.weight" in name
    ]
    return {
        "hidden_size": width,
        "intermediate_size": _most_common(hidden, 4 * width),
        "num_hidden_layers": _count(tensors, rf"{re.escape(blocks)}(\d+)\."),
        "num_attention_heads": max(1, width // _VISION_HEAD_WIDTH),
    }


def _text_config(
    tensors: Tensors, fields: Mapping[str, Any], language_model: str | Path | None, notes: list[str]
) -> PretrainedConfig:
    family = _family(tensors)
    config_class = CONFIG_MAPPING[family]
    embedding = tensors.get("model.embed_tokens.weight", tensors.get("lm_head.weight"))
    if "hidden_size" in fields:
        known = {field.name for field in dataclasses.fields(config_class)} | {"rope_theta", "rope_scaling"}
        known -= {"architectures", "dtype", "id2label", "label2id", "transformers_version"}
        text_config = config_class(**{name: value for name, value in fields.items() if name in known})
    else:
        width = _most_common(
            [
                t.shape[-1]
                for name, t in tensors.items()
                if name.startswith("model.layers.") and name.endswith("layernorm.weight")
            ],
            0,
        )
        shape = (family, width, _count(tensors, r"model\.layers\.(\d+)\."))
        if language_model is not None:
            text_config, base = AutoConfig.from_pretrained(language_model), str(language_model)
            text_config.name_or_path = ""  # may be a folder of this machine
        elif shape in _KNOWN_BASES:
            base, known_fields = _KNOWN_BASES[shape]
            text_config = config_class(**known_fields)
        else:
            raise ValueError(
                "Heads and rotary frequencies of the language model are not in its weights, and there is no "
                f"config.json beside this {family} checkpoint ({shape[1]} wide, {shape[2]} layers). Pass "
                "`language_model` (its base, Hub id or folder) or `config`."
            )
        if text_config.model_type != family:
            raise ValueError(
                f"`language_model` must be the base of the checkpoint, got {text_config.model_type} (`{base}`) for "
                f"tensors of {family}. Pass the model it was trained from."
            )
        notes.append(f"no config.json: language model described by {Path(base).name}")
        if embedding is not None and embedding.shape[0] != text_config.vocab_size:
            notes.append(f"{embedding.shape[0]} embedding rows, the base has {text_config.vocab_size}")
            text_config.vocab_size = embedding.shape[0]
    head = tensors.get("lm_head.weight")
    if head is not None:
        text_config.tie_word_embeddings = (
            embedding is not None and embedding.shape == head.shape and torch.equal(embedding, head)
        )
    return text_config


def _family(tensors: Tensors) -> str:
    marks = {"qwen3": ".self_attn.q_norm.", "phi3": ".self_attn.qkv_proj.", "llama": ".mlp.gate_proj."}
    for family, mark in marks.items():
        if any(mark in name for name in tensors):
            return family
    raise ValueError(
        "The language model of a published checkpoint is Llama, Phi-3 or Qwen3, this one has the layers of none of "
        "them. Other models can be started afresh with `hf-mu2 init`."
    )


def frame_fields(fields: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int, int] | None]:
    """Return `frame_size` and `patch_size`, and the grid that pooling assumes where `image_size` is out of order.

    The published training defaults to (height, width, depth) over patches in (depth, height, width).
    """
    image_size = tuple(fields.get("image_size", _DEFAULTS["image_size"]))
    patch_size = tuple(fields.get("patch_size", _DEFAULTS["patch_size"]))
    is_swapped = image_size[0] == image_size[1] != image_size[2]
    depth, height, width = (image_size[2], *image_size[:2]) if is_swapped else image_size
    grid = tuple(size // patch for size, patch in zip(image_size, patch_size))
    return {"frame_size": (depth, height, width), "patch_size": patch_size}, grid if is_swapped else None


def _vision_config(
    tensors: Tensors, fields: Mapping[str, Any], notes: list[str]
) -> tuple[dict[str, Any], tuple[int, int, int] | None]:
    vision = vision_fields(tensors, "model.vision_tower.vision_tower.")
    if "mm_hidden_size" in fields:
        vision["hidden_size"] = fields["mm_hidden_size"]
        vision["num_attention_heads"] = max(1, fields["mm_hidden_size"] // _VISION_HEAD_WIDTH)
    frame, projector_grid = frame_fields(fields)
    if "image_size" not in fields:
        notes.append(
            f"no `image_size`: pooling grid taken as that of {frame['frame_size']}. If reports are poor, the training "
            "may have used its default (256, 256, 32): convert again with `config={'image_size': [256, 256, 32]}`"
        )
    if projector_grid is not None:
        notes.append(
            f"`image_size` {tuple(fields['image_size'])} is out of order: pooling grid {projector_grid}, as the "
            "published code reads it. If reports are poor, set `projector_grid` to null in the tokenizer's config"
        )
    return {**vision, **frame}, projector_grid


def _tokenizer_fields(tensors: Tensors, fields: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    ours = {name: t.shape for name, t in tensors.items() if name.startswith("model.u2tokenizer.")}
    tables = [shape[-1] for name, shape in ours.items() if name.endswith(".relative_bias")]
    scores = [shape[0] for name, shape in ours.items() if ".score_net." in name]
    queries = [shape[1] for name, shape in ours.items() if name.endswith(".query_tokens")]
    is_soft = fields.get("enable_diffts", _most_common(scores, 0) != 1)
    is_pooled = fields.get("use_multi_scale", True)
    is_gated = is_pooled and fields.get("enable_dmtp", any(".gate_fc." in name for name in ours))
    attention = _attention(set(ours), fields, notes)

    def value(field: str, seen: list[int]) -> int:
        if field not in fields and not seen:
            notes.append(f"no `{field}` in weights or config: taken as {_DEFAULTS[field]}")
        return fields.get(field, _most_common(seen, _DEFAULTS[field]))

    prefix = r"model\.u2tokenizer\."
    layers = fields.get("u2t_num_layers")
    return {
        "num_heads": value("u2t_num_heads", tables),
        "num_refiner_layers": layers
        or _count(tensors, prefix + r"svt_module\.attention_network\.layers\.(\d+)\."),
        "num_aggregator_layers": layers or _count(tensors, prefix + r"tta_module\.layers_vt\.(\d+)\."),
        "position": {"rma": "1d", "rope": "rope", "mha": None}[attention],
        "swap_axes": attention == "mha",
        "selection": "soft" if is_soft else "topk",
        "num_selected_tokens": value("u2t_top_k", scores if is_soft else []),
        "pooling": "published" if is_gated else "fixed" if is_pooled else "none",
        "num_query_tokens": value("num_3d_query_token", queries),
    }


def _attention(names: set[str], fields: Mapping[str, Any], notes: list[str]) -> str:
    """Return `rma`, `rope` or `mha`, by `attn_type` (training code) or `enable_rpe` (Hub code), else by the names."""
    is_relative = any(name.endswith(".relative_bias") for name in names)
    if "attn_type" in fields:
        return fields["attn_type"] if fields["attn_type"] in ("rma", "rope") else "mha"
    if fields.get("enable_rpe") is False and is_relative:
        notes.append("`enable_rpe` is false, yet relative bias is there: the training code ignored the field")
        return "rma"
    if "enable_rpe" in fields:
        return "rma" if fields["enable_rpe"] else "mha"
    is_swapped = any(".in_proj_" in name for name in names)
    return "rma" if is_relative else "mha" if is_swapped else "rope"


def _embedding_notes(tensors: Tensors, text_config: PretrainedConfig) -> list[str]:
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or embedding.ndim != 2 or len(embedding) < 5:
        return []
    notes = []
    if text_config.model_type == "qwen3":
        state = {
            151936: "vocabulary not resized",
            151673: "four M3D tokens appended",
            151669: "shrunk to the stock tokenizer",
        }
        if len(embedding) in state:
            notes.append(f"{len(embedding)} embedding rows: {state[len(embedding)]}")
    last = embedding[-4:]
    if torch.equal(last, last[:1].expand_as(last)) and not torch.equal(embedding[-5], last[0]):
        rows = f"{len(embedding) - 4}-{len(embedding) - 1}"
        notes.append(f"embedding rows {rows} are one repeated vector: the training reset them to the mean")
    return notes


def _count(tensors: Tensors, pattern: str) -> int:
    """Count indexed modules: the highest index in the names, plus one."""
    return 1 + max((int(match[1]) for name in tensors if (match := re.match(pattern, name))), default=-1)


def _most_common(values: Iterable[int], default: Any) -> Any:
    """Return the value most tensors agree on, so that one damaged tensor does not blame all others."""
    counts = Counter(values).most_common(1)
    return counts[0][0] if counts else default


def count_parameters(tensors: Tensors) -> int:
    """Count the parameters of a state dict; a tied head counts twice if it is stored twice."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


__all__ = ["count_parameters", "find_layout", "frame_fields", "vision_fields"]
