"""Every tensor of a published mu2 checkpoint: its name there, its shape, and where it goes here.

Published code: https://github.com/Siyou-Li/u2Tokenizer at b9fb37a; vision tower: M3D-CLIP with MONAI 1.3 names.
The tables follow from a `Mu2Config` in the `official` form, so they hold at any width and for every published variant.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from hf_mu2.model.configuration_mu2 import Mu2Config, Mu2TokenizerConfig, Mu2VisionConfig

# Rows of the published relative-position tables: offsets -511 ... 511, key minus query; row 511 is offset 0.
NUM_OFFSETS = 1023

_NAMES_SHOWN = 8


@dataclass(frozen=True)
class OfficialKey:
    """One tensor of a published checkpoint.

    Args:
        targets (`tuple[str, ...]`): Our names. Several split the rows equally; none marks a tensor that the published
            code stores and never uses.
        is_transposed (`bool`): Whether ours is the transpose.
    """

    name: str
    shape: tuple[int, ...]
    targets: tuple[str, ...] = ()
    is_transposed: bool = False


def official_keys(config: Mu2Config) -> list[OfficialKey]:
    """List the tensors of the published checkpoint that `config` (in the `official` form) describes.

    Llama-3.2-1B with relative bias, soft selection and gates has 498, Qwen3-1.7B 662, Qwen3-4B 750. The head of the
    language model is listed; a tied checkpoint may leave it out.
    """
    vision, tokenizer = config.vision_config, config.tokenizer_config
    assert isinstance(vision, Mu2VisionConfig) and isinstance(tokenizer, Mu2TokenizerConfig)
    return [
        *language_model_keys(config.text_config),
        *vision_keys(vision, "model.vision_tower.vision_tower.", "model.vision_tower."),
        *projector_keys(tokenizer, "model.mm_projector.", "model.mu2_tokenizer.input_projector."),
        *tokenizer_keys(tokenizer, "model.u2tokenizer.", "model.mu2_tokenizer."),
    ]


def language_model_keys(config: PretrainedConfig) -> list[OfficialKey]:
    """List the tensors of the language model: transformers' own names, ours below `model.language_model.`."""
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    return [
        OfficialKey(name, tuple(tensor.shape), (name.replace("model.", "model.language_model.", 1),))
        for name, tensor in state.items()
    ]


def vision_keys(config: Mu2VisionConfig, source: str = "", target: str = "") -> list[OfficialKey]:
    """List the tensors of the 3D ViT; names start with `source`, ours with `target`."""
    width, mlp = config.hidden_size, config.intermediate_size
    patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    num_patches = config.grid[0] * config.grid[1] * config.grid[2]
    ours = f"{target}encoder."
    keys = [
        OfficialKey(f"{source}cls_token", (1, 1, width), (f"{ours}cls_token",)),
        OfficialKey(
            f"{source}patch_embedding.position_embeddings",
            (1, num_patches, width),
            (f"{ours}position_embedding",),
        ),
        *_linear(f"{source}patch_embedding.patch_embeddings.1", (width, patch), f"{ours}patch_embedding"),
        *_norm(f"{source}norm", width, f"{ours}layernorm"),
    ]
    for i in range(config.num_hidden_layers):
        block, layer = f"{source}blocks.{i}", f"{ours}layers.{i}"
        thirds = tuple(f"{layer}.attention.{name}.weight" for name in ("query", "key", "value"))
        keys += [
            *_norm(f"{block}.norm1", width, f"{layer}.layernorm_before"),
            OfficialKey(f"{block}.attn.qkv.weight", (3 * width, width), thirds),
            *_linear(f"{block}.attn.out_proj", (width, width), f"{layer}.attention.output"),
            *_norm(f"{block}.norm2", width, f"{layer}.layernorm_after"),
            *_linear(f"{block}.mlp.linear1", (mlp, width), f"{layer}.fc1"),
            *_linear(f"{block}.mlp.linear2", (width, mlp), f"{layer}.fc2"),
        ]
    return keys


def projector_keys(config: Mu2TokenizerConfig, source: str = "", target: str = "") -> list[OfficialKey]:
    """List the tensors of the spatial pooling projector."""
    width = config.text_hidden_size
    return [
        *_linear(f"{source}projector.0", (width, config.vision_hidden_size), f"{target}fc1"),
        *_linear(f"{source}projector.2", (width, width), f"{target}fc2"),
    ]


def tokenizer_keys(config: Mu2TokenizerConfig, source: str = "", target: str = "") -> list[OfficialKey]:
    """List the tensors of the tokenizer: queries, refiner (SVR), selection, pooling, aggregation (TTA)."""
    width = config.hidden_size
    refiner, theirs = f"{target}refiner.", f"{source}svt_module."
    aggregator, tta = f"{target}aggregator.", f"{source}tta_module."
    keys = [
        OfficialKey(
            f"{source}query_tokens", (1, config.num_query_tokens, width), (f"{aggregator}query_tokens",)
        )
    ]
    for i in range(config.num_refiner_layers):
        for name in ("spatial_attention", "temporal_attention"):
            layer = f"{theirs}attention_network.layers.{i}.{name}"
            keys += _self_attention(config, layer, f"{refiner}layers.{i}.{name}")

    num_scores = config.num_selected_tokens if config.selection == "soft" else 1
    score_net = f"{theirs}token_selection.score_net"
    # A softmax over tokens, and the order of tokens, ignore a constant per slot: these biases never act.
    keys += [
        OfficialKey(f"{score_net}.weight", (num_scores, width), (f"{target}selection.score.weight",)),
        OfficialKey(f"{score_net}.bias", (num_scores,)),
    ]
    if config.pooling == "published":
        gate_fc = f"{theirs}dynamic_pool.gate_fc"
        keys += [
            OfficialKey(f"{gate_fc}.weight", (1, width), (f"{target}pooling.gate.weight",)),
            OfficialKey(f"{gate_fc}.bias", (1,)),
        ]

    for i in range(config.num_aggregator_layers):
        block, layer = f"{tta}layers_vt.{i}", f"{aggregator}layers.{i}"
        keys += [
            *_self_attention(config, f"{block}.self_attention", f"{layer}.self_attention"),
            *_attention(width, f"{block}.visual_cross_attention", f"{layer}.visual_attention"),
            *_attention(width, f"{block}.text_cross_attention", f"{layer}.text_attention"),
            *_norm(f"{block}.norm_self", width, f"{layer}.self_norm"),
            *_norm(f"{block}.norm_cross_v", width, f"{layer}.visual_norm"),
            *_norm(f"{block}.norm_cross_t", width, f"{layer}.text_norm"),
        ]
    aggregation = f"{tta}layer_linagg.linear_aggregator"
    keys += [
        *_linear(f"{aggregation}.wq", (width, width), f"{aggregator}aggregation.query"),
        *_linear(f"{aggregation}.wk", (width, width), f"{aggregator}aggregation.key"),
        *_linear(f"{aggregation}.wv", (width, width)),
        *_linear(f"{aggregation}.dense", (width, width)),
    ]
    return keys


def _self_attention(config: Mu2TokenizerConfig, source: str, target: str) -> Iterator[OfficialKey]:
    width = config.hidden_size
    if config.swap_axes:  # `nn.MultiheadAttention`
        for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
            thirds = tuple(f"{target}.{name}.{kind}" for name in ("query", "key", "value"))
            yield OfficialKey(f"{source}.in_proj_{kind}", shape, thirds)
        yield from _linear(f"{source}.out_proj", (width, width), f"{target}.output")
        return
    if config.position == "1d":
        shape = (NUM_OFFSETS, config.num_heads)
        yield OfficialKey(f"{source}.relative_bias", shape, (f"{target}.bias.table",), is_transposed=True)
    yield from _attention(width, source, target)


def _attention(width: int, source: str, target: str) -> Iterator[OfficialKey]:
    for theirs, ours in (("wq", "query"), ("wk", "key"), ("wv", "value"), ("dense", "output")):
        yield from _linear(f"{source}.{theirs}", (width, width), f"{target}.{ours}")


def _linear(source: str, shape: tuple[int, int], target: str | None = None) -> Iterator[OfficialKey]:
    for kind, size in (("weight", shape), ("bias", shape[:1])):
        yield OfficialKey(f"{source}.{kind}", size, () if target is None else (f"{target}.{kind}",))


def _norm(source: str, width: int, target: str) -> Iterator[OfficialKey]:
    for kind in ("weight", "bias"):
        yield OfficialKey(f"{source}.{kind}", (width,), (f"{target}.{kind}",))


def check_state(state: Mapping[str, torch.Tensor], keys: list[OfficialKey], source: str) -> None:
    """Check that `state` holds exactly `keys`.

    Raises:
        ValueError: names every tensor that is missing, unexpected or of another shape.
    """
    expected = {key.name: key.shape for key in keys}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": [name for name in shapes if name not in expected],
        "of another shape": [
            f"{name} (expected {shape}, got {shapes[name]})"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
    }
    if any(problems.values()):
        raise ValueError(
            f"Every tensor of a published checkpoint has its place, but in {source} "
            + "; ".join(
                f"{len(names)} {kind}: {_shorten(names)}" for kind, names in problems.items() if names
            )
            + ". Nothing was converted: the file is damaged or incomplete, or its config.json belongs to another one. "
            "Fetch it again; if the config is stale, pass `config` with the fields it was trained with."
        )


def convert_state(state: Mapping[str, torch.Tensor], keys: list[OfficialKey]) -> dict[str, torch.Tensor]:
    """Rename and rearrange a checked `state`; what the published code never uses is left out."""
    converted = {}
    for key in keys:
        tensor = state[key.name].T if key.is_transposed else state[key.name]
        parts = tensor.chunk(len(key.targets)) if key.targets else ()
        for target, part in zip(key.targets, parts):
            # Parts of one tensor share its memory, which safetensors refuses.
            converted[target] = part.clone() if len(parts) > 1 else part.contiguous()
    return converted


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


__all__ = [
    "OfficialKey",
    "check_state",
    "convert_state",
    "language_model_keys",
    "official_keys",
    "projector_keys",
    "tokenizer_keys",
    "vision_keys",
]
