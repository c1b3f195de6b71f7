"""Synthetic published checkpoints at small widths, and a plain transcription of what the published code computes.

Names, shapes and formulas follow the description of u2Tokenizer b9fb37a; nothing is shared with the converter.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

State = dict[str, torch.Tensor]

FRAME, PATCH = (8, 32, 32), (2, 4, 4)
GRID = (4, 8, 8)
VISION_WIDTH, VISION_MLP, VISION_LAYERS, VISION_HEADS = 128, 96, 2, 2
WIDTH, HEADS, LAYERS, QUERIES, SELECTED = 64, 8, 2, 16, 10
VOCABULARY = 264
TOKENIZER = "model.u2tokenizer."
VISION = "model.vision_tower.vision_tower."


@dataclass(frozen=True)
class Layout:
    """One published variant."""

    language_model: Literal["llama", "qwen3", "phi3"] = "llama"
    attention: Literal["rma", "rope", "mha"] = "rma"
    is_soft: bool = True
    is_pooled: bool = True
    is_gated: bool = True
    head: Literal["tied, stored once", "tied, stored twice", "untied"] = "tied, stored twice"
    prefix: Literal["model.u2tokenizer.", "model.linear3d_tokenizer."] = TOKENIZER
    is_lora: bool = False
    is_swapped_grid: bool = False
    file: Literal["bin", "safetensors"] = "bin"

    @property
    def pooling_grid(self) -> tuple[int, int, int]:
        return (16, 8, 2) if self.is_swapped_grid else GRID


LAYOUTS = {
    "llama": Layout(),
    "llama without gates": Layout(is_gated=False),
    "llama, hard selection": Layout(is_soft=False, is_gated=False, head="tied, stored once"),
    "llama without pooling": Layout(is_pooled=False, is_gated=False),
    "llama, rotary": Layout(attention="rope"),
    "llama, no positions": Layout(attention="mha"),
    "llama, no positions, hard selection": Layout(
        attention="mha", is_soft=False, is_gated=False, head="untied"
    ),
    "before March 2025": Layout(prefix="model.linear3d_tokenizer."),
    "LoRA": Layout(is_lora=True),
    "LoRA before March 2025": Layout(is_lora=True, prefix="model.linear3d_tokenizer.", attention="mha"),
    "phi3": Layout("phi3", is_soft=False, is_gated=False, attention="mha", head="untied"),
    "qwen3, released": Layout("qwen3", file="safetensors"),
    "qwen3, rotary, swapped grid": Layout(
        "qwen3", attention="rope", is_swapped_grid=True, head="tied, stored once", file="safetensors"
    ),
    "qwen3, untied": Layout("qwen3", head="untied", file="safetensors"),
}


def language_model_fields(layout: Layout) -> dict[str, Any]:
    """Write the language model's part of a published config.json, in the words of transformers 4."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": 50000.0,
        "rope_scaling": None,
        "tie_word_embeddings": layout.head != "untied",
        "bos_token_id": 1,
        "eos_token_id": 4,
        "pad_token_id": 0,
    }
    return fields if layout.language_model == "phi3" else {**fields, "head_dim": 24}


def config_fields(layout: Layout) -> dict[str, Any]:
    """Write the config.json of a published checkpoint."""
    names = {"llama": "u2llama", "phi3": "u2phi3", "qwen3": "u2Qwen3"}
    return {
        **language_model_fields(layout),
        "architectures": ["u2ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_u2.u2ForCausalLM"},
        "model_type": names[layout.language_model],
        "torch_dtype": "float32",
        "transformers_version": "4.54.1",
        "vision_tower": "vit3d",
        "image_channel": 1,
        "image_size": [32, 32, 8] if layout.is_swapped_grid else list(FRAME),
        "patch_size": list(PATCH),
        "mm_hidden_size": VISION_WIDTH,
        "vision_select_layer": -1,
        "vision_select_feature": "patch",
        "mm_projector_type": "spp",
        "proj_layer_type": "mlp",
        "proj_layer_num": 2,
        "proj_pooling_type": "spatial",
        "proj_pooling_size": 2,
        "enable_u2tokenizer": True,
        "u2t_num_heads": HEADS,
        "u2t_num_layers": LAYERS,
        "u2t_top_k": SELECTED,
        "use_multi_scale": layout.is_pooled,
        "num_3d_query_token": QUERIES,
        "attn_type": layout.attention,
        "enable_diffts": layout.is_soft,
        "enable_dmtp": layout.is_gated,
    }


def build_state(layout: Layout, seed: int = 0) -> State:
    """Draw a state dict under the newest names, head included; scaled so that the output depends on everything."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.3) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    state: State = {}

    def linear(name: str, rows: int, columns: int, gain: float = 1.0):
        state[f"{name}.weight"] = draw(rows, columns, scale=gain / math.sqrt(columns))
        state[f"{name}.bias"] = draw(rows, scale=0.1)

    def norm(name: str, width: int):
        state[f"{name}.weight"] = 1 + draw(width, scale=0.1)
        state[f"{name}.bias"] = draw(width, scale=0.1)

    def attention(name: str):
        for layer, gain in (("wq", 2.5), ("wk", 2.5), ("wv", 1.0), ("dense", 1.0)):
            linear(f"{name}.{layer}", WIDTH, WIDTH, gain)

    def self_attention(name: str):
        # Keys near the queries: tokens attend mostly to themselves, else the refiner collapses to one repeated vector.
        query = draw(WIDTH, WIDTH, scale=4 / math.sqrt(WIDTH))
        key = query + draw(WIDTH, WIDTH, scale=0.5 / math.sqrt(WIDTH))
        if layout.attention == "mha":
            state[f"{name}.in_proj_weight"] = torch.cat(
                [query, key, draw(WIDTH, WIDTH, scale=1 / math.sqrt(WIDTH))]
            )
            state[f"{name}.in_proj_bias"] = draw(3 * WIDTH, scale=0.1)
            linear(f"{name}.out_proj", WIDTH, WIDTH)
            return
        if layout.attention == "rma":
            state[f"{name}.relative_bias"] = draw(1023, HEADS, scale=2.0)
        attention(name)
        state[f"{name}.wq.weight"], state[f"{name}.wk.weight"] = query, key

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(layout.language_model, **language_model_fields(layout))
        for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items():
            # The default initialisation gives near uniform logits, and questions too small to matter.
            state[name] = tensor.clone() * (
                1.0
                if "norm" in name
                else 25.0
                if name.endswith(("embed_tokens.weight", "lm_head.weight"))
                else 3.0
            )

    state[f"{VISION}cls_token"] = draw(1, 1, VISION_WIDTH)
    state[f"{VISION}patch_embedding.position_embeddings"] = draw(1, math.prod(GRID), VISION_WIDTH, scale=2.0)
    linear(f"{VISION}patch_embedding.patch_embeddings.1", VISION_WIDTH, math.prod(PATCH), 2.0)
    for i in range(VISION_LAYERS):
        block = f"{VISION}blocks.{i}."
        norm(f"{block}norm1", VISION_WIDTH)
        norm(f"{block}norm2", VISION_WIDTH)
        state[f"{block}attn.qkv.weight"] = draw(
            3 * VISION_WIDTH, VISION_WIDTH, scale=1.5 / math.sqrt(VISION_WIDTH)
        )
        linear(f"{block}attn.out_proj", VISION_WIDTH, VISION_WIDTH)
        linear(f"{block}mlp.linear1", VISION_MLP, VISION_WIDTH)
        linear(f"{block}mlp.linear2", VISION_WIDTH, VISION_MLP)
    norm(f"{VISION}norm", VISION_WIDTH)

    linear("model.mm_projector.projector.0", WIDTH, VISION_WIDTH)
    linear("model.mm_projector.projector.2", WIDTH, WIDTH, 4.0)
    weight = state["model.mm_projector.projector.2.weight"]
    weight -= weight.mean(
        dim=1, keepdim=True
    )  # what GELU adds to all tokens alike would drown their differences

    state[f"{TOKENIZER}query_tokens"] = draw(1, QUERIES, WIDTH, scale=1.0)
    for i in range(LAYERS):
        for name in ("spatial_attention", "temporal_attention"):
            self_attention(f"{TOKENIZER}svt_module.attention_network.layers.{i}.{name}")
        layer = f"{TOKENIZER}tta_module.layers_vt.{i}."
        self_attention(f"{layer}self_attention")
        attention(f"{layer}visual_cross_attention")
        attention(f"{layer}text_cross_attention")
        for name in ("norm_self", "norm_cross_v", "norm_cross_t"):
            norm(f"{layer}{name}", WIDTH)
    score_net = f"{TOKENIZER}svt_module.token_selection.score_net"
    linear(score_net, SELECTED if layout.is_soft else 1, WIDTH, 6.0)
    if layout.is_gated:
        linear(f"{TOKENIZER}svt_module.dynamic_pool.gate_fc", 1, WIDTH, 4.0)
    attention(f"{TOKENIZER}tta_module.layer_linagg.linear_aggregator")

    if layout.head != "untied":
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    return state


def store(state: State, layout: Layout, lora_alpha: float = 32.0, seed: int = 1) -> State:
    """Return the state as the published code stores it: prefixes, LoRA pairs, tied head once or twice."""
    stored = dict(state)
    if layout.head == "tied, stored once":
        del stored["lm_head.weight"]
    stored = {name.replace(TOKENIZER, layout.prefix): tensor for name, tensor in stored.items()}
    if not layout.is_lora:
        return stored
    generator = torch.Generator().manual_seed(seed)
    dump: State = {}
    for name, tensor in stored.items():
        base, _, kind = name.rpartition(".")
        if not name.startswith("model.layers.") or not base.endswith("_proj"):
            dump[f"base_model.model.{name}"] = tensor
            continue
        rank = 4
        down = torch.randn(rank, tensor.shape[1], generator=generator) * 0.1
        up = torch.randn(tensor.shape[0], rank, generator=generator) * 0.1
        dump[f"base_model.model.{base}.base_layer.{kind}"] = tensor - lora_alpha / rank * up @ down
        dump[f"base_model.model.{base}.lora_A.default.weight"] = down
        dump[f"base_model.model.{base}.lora_B.default.weight"] = up
    return dump


def write(stored: State, layout: Layout, folder: Path, with_config: bool = True) -> Path:
    """Write a published checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if layout.file == "safetensors":
        save_file(
            {name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors"
        )
    else:
        torch.save(stored, folder / ("model_with_lora.bin" if layout.is_lora else "pytorch_model.bin"))
    if with_config:
        (folder / "config.json").write_text(json.dumps(config_fields(layout)))
    return folder


# ------------------------------------------------------------------------------ what the published code computes


def logits(
    state: State, layout: Layout, images: torch.Tensor, input_ids: torch.Tensor, question_ids: torch.Tensor
) -> torch.Tensor:
    """Compute logits from images (B, T, depth, height, width): positions 1 to Q become the volume, as they are."""
    config = AutoConfig.for_model(
        layout.language_model, **language_model_fields(replace(layout, head="untied"))
    )
    language_model = AutoModelForCausalLM.from_config(config).eval()
    names = language_model.state_dict().keys()
    language_model.load_state_dict({name: state[name] for name in names})

    embedding = state["model.embed_tokens.weight"]
    features = vision_tower(under(state, VISION), images.flatten(0, 1), PATCH, VISION_HEADS)
    tokens = project(under(state, "model.mm_projector."), features, layout.pooling_grid)
    tokens = tokens.unflatten(0, images.shape[:2])
    visual = tokenize(under(state, TOKENIZER), layout, tokens, embedding[question_ids])
    embeds = embedding[input_ids].clone()
    embeds[:, 1 : 1 + QUERIES] = visual
    return language_model(inputs_embeds=embeds).logits


def vision_tower(state: State, frames: torch.Tensor, patch: tuple[int, int, int], heads: int) -> torch.Tensor:
    """Compute patch features (frames, patches, width) of frames (frames, depth, height, width)."""
    blocks = [
        frames[:, z : z + patch[0], y : y + patch[1], x : x + patch[2]].flatten(1)
        for z in range(0, frames.shape[1], patch[0])
        for y in range(0, frames.shape[2], patch[1])
        for x in range(0, frames.shape[3], patch[2])
    ]
    hidden = apply(state, "patch_embedding.patch_embeddings.1", torch.stack(blocks, dim=1))
    hidden = hidden + state["patch_embedding.position_embeddings"]
    hidden = torch.cat([state["cls_token"].expand(len(hidden), -1, -1), hidden], dim=1)
    for i in range(sum(name.endswith("attn.qkv.weight") for name in state)):
        block = f"blocks.{i}."
        q, k, v = (normalize(state, f"{block}norm1", hidden) @ state[f"{block}attn.qkv.weight"].T).chunk(
            3, dim=-1
        )
        hidden = hidden + apply(state, f"{block}attn.out_proj", mix(q, k, v, heads))
        inner = F.gelu(apply(state, f"{block}mlp.linear1", normalize(state, f"{block}norm2", hidden)))
        hidden = hidden + apply(state, f"{block}mlp.linear2", inner)
    return normalize(state, "norm", hidden)[:, 1:]


def project(state: State, features: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Pool 2 x 2 x 2 neighbours of the assumed grid, then the MLP."""
    x = features.unflatten(1, grid)
    corners = [x[:, z::2, y::2, w::2] for z in range(2) for y in range(2) for w in range(2)]
    pooled = torch.stack(corners).mean(0).flatten(1, 3)
    return apply(state, "projector.2", F.gelu(apply(state, "projector.0", pooled)))


def tokenize(state: State, layout: Layout, tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Compute the visual tokens (B, Q, E) from tokens (B, T, N, E) and question embeddings (B, L, E)."""
    batch, frames, count, width = tokens.shape
    x = tokens
    for i in range(LAYERS):
        layer = f"svt_module.attention_network.layers.{i}."
        x = attend_self(state, f"{layer}spatial_attention", layout, x.reshape(batch * frames, count, width))
        x = x.view(batch, frames, count, width).permute(0, 2, 1, 3).reshape(batch * count, frames, width)
        x = attend_self(state, f"{layer}temporal_attention", layout, x)
        x = x.view(batch, count, frames, width).permute(0, 2, 1, 3)

    flat = x.reshape(batch, frames * count, width)
    scores = apply(state, "svt_module.token_selection.score_net", flat)
    if layout.is_soft:
        weights = scores.softmax(dim=1)
        slots = [(weights[:, :, r : r + 1] * flat).sum(dim=1) for r in range(SELECTED)]
        selected = torch.stack(slots, dim=1)
    else:
        order = scores.squeeze(-1).topk(SELECTED, dim=1).indices
        selected = torch.stack([flat[b, order[b]] for b in range(batch)])

    scales = [selected]
    for scale in (2, 4) if layout.is_pooled else ():
        whole = SELECTED // scale * scale
        scales.append(selected[:, :whole].unflatten(1, (-1, scale)).mean(dim=2))
    if layout.is_gated:
        gates = [apply(state, "svt_module.dynamic_pool.gate_fc", y.mean(dim=1)) for y in scales]
        gates = torch.cat(gates, dim=1).softmax(dim=1)
        scales = [gates[:, s, None, None] * y for s, y in enumerate(scales)]
    visual = torch.cat(scales, dim=1)

    queries = state["query_tokens"].expand(batch, -1, -1)
    for i in range(LAYERS):
        layer = f"tta_module.layers_vt.{i}."
        queries = queries + attend_self(state, f"{layer}self_attention", layout, queries)
        queries = normalize(state, f"{layer}norm_self", queries)
        queries = queries + attend_other(state, f"{layer}visual_cross_attention", queries, visual)
        queries = normalize(state, f"{layer}norm_cross_v", queries)
        queries = queries + attend_other(state, f"{layer}text_cross_attention", queries, text)
        queries = normalize(state, f"{layer}norm_cross_t", queries)
    aggregator = "tta_module.layer_linagg.linear_aggregator"
    q, k = apply(state, f"{aggregator}.wq", queries), apply(state, f"{aggregator}.wk", visual)
    return mix(q, k, visual, HEADS)


def attend_self(state: State, name: str, layout: Layout, x: torch.Tensor) -> torch.Tensor:
    """Attend within x (rows, tokens, E) the way the variant does, its wrong axis order included."""
    if layout.attention == "mha":
        attention = nn.MultiheadAttention(x.shape[-1], HEADS)
        attention.load_state_dict(under(state, f"{name}."))
        return attention(x, x, x)[0]
    q, k, v = (apply(state, f"{name}.{layer}", x) for layer in ("wq", "wk", "wv"))
    bias = None
    if layout.attention == "rope":
        q, k = turn(q), turn(k)
    else:
        n = x.shape[1]
        bias = torch.empty(HEADS, n, n)
        for i in range(n):
            for j in range(n):
                bias[:, i, j] = state[f"{name}.relative_bias"][j - i + 511]
    return apply(state, f"{name}.dense", mix(q, k, v, HEADS, bias))


def attend_other(state: State, name: str, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    q = apply(state, f"{name}.wq", queries)
    k, v = apply(state, f"{name}.wk", keys), apply(state, f"{name}.wv", keys)
    return apply(state, f"{name}.dense", mix(q, k, v, HEADS))


def turn(x: torch.Tensor) -> torch.Tensor:
    """Rotate each head's first half against its second by position, theta 10,000."""
    heads = []
    for head in x.chunk(HEADS, dim=-1):
        first, second = head.chunk(2, dim=-1)
        half = first.shape[-1]
        angle = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(half) / half)
        heads.append(
            torch.cat(
                [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()],
                dim=-1,
            )
        )
    return torch.cat(heads, dim=-1)


def mix(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention, head by head."""
    outputs = []
    for h, (query, key, value) in enumerate(zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1))):
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        if bias is not None:
            scores = scores + bias[h]
        outputs.append(scores.softmax(dim=-1) @ value)
    return torch.cat(outputs, dim=-1)


def apply(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def normalize(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def under(state: State, prefix: str) -> State:
    """Return the tensors below a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
