"""The mu2 tokenizer, section 2.2 of https://huggingface.co/papers/2507.00316 in its order.

RPE attention -> SVR (refine) -> DTS (select) -> DMTP (pool) -> TTA (aggregate under the question) -> projector.
Shapes: B = volumes, T = frames, N = tokens per frame, E = width, R = selected tokens, Q = queries, L = question tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel

from .configuration_mu2 import Mu2TokenizerConfig
from .modeling_mu2_attention import as_checkpoint_input, as_sdpa, attend, open_empty_rows, rotate

# Linear layers with an initialisation of their own. Transformers initialises custom code leaf by leaf and passes over
# modules without parameters, so a parent cannot do it.


class AttentionLinear(nn.Linear):
    """Starts Xavier-uniform with zero bias, as published."""


class ScoreLinear(nn.Linear):
    """Starts sharp enough to select: see `selection_init_std`."""


class GateLinear(nn.Linear):
    """Starts at zero: equal gates."""


# ---------------------------------------------------------------------------------------- RPE: positions in attention


class RelativeBias(nn.Module):
    """One learned bias per head and per offset between two positions of a grid: `P_r` of the paper, any dimension.

    The table holds offsets key - query (the published sign). Larger grids than the table covers reuse its edge.
    """

    def __init__(self, reach: tuple[int, ...], num_heads: int):
        super().__init__()
        self.reach = reach
        self.table = nn.Parameter(torch.zeros(num_heads, *(2 * n - 1 for n in reach)))

    def forward(self, grid: tuple[int, ...]) -> torch.Tensor:
        """Spread the table over all pairs of positions: `(heads, prod(grid), prod(grid))`."""
        bias, axes = self.table, range(1, len(grid) + 1)
        for axis, size, reach in zip(axes, grid, self.reach):
            if size < reach:
                bias = bias.narrow(axis, reach - size, 2 * size - 1)
            elif size > reach:
                offsets = torch.arange(1 - size, size, device=bias.device).clamp(1 - reach, reach - 1)
                bias = bias.index_select(axis, offsets + reach - 1)
            # A window of length `size` per query: window w, entry j is offset w + j - (size - 1), query i is w flipped.
            bias = bias.unfold(axis, size, 1)
        return bias.flip(tuple(axes)).reshape(bias.shape[0], math.prod(grid), math.prod(grid))


class Mu2Attention(nn.Module):
    """Multi-head attention: softmax(Q K^T / sqrt(d) + P) V (paper eq. for RPE).

    Args:
        reach (`tuple[int, ...]`, *optional*): Grid that the relative bias covers. None: no bias.
        is_linear (`bool`): Whether raw values are mixed, without value and output layers (the linear aggregation).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        reach: tuple[int, ...] | None = None,
        is_rotary: bool = False,
        is_linear: bool = False,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.is_rotary = is_rotary
        self.query = AttentionLinear(width, width)
        self.key = AttentionLinear(width, width)
        self.value = None if is_linear else AttentionLinear(width, width)
        self.output = None if is_linear else AttentionLinear(width, width)
        self.bias = None if reach is None else RelativeBias(reach, num_heads)

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        mask: torch.Tensor | None = None,
        grid: tuple[int, ...] | None = None,
        values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # (rows, tokens, E) -> (rows, heads, tokens, E / heads)
        values = keys if values is None else values
        values = values if self.value is None else self.value(values)
        query, key, value = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.query(queries), self.key(keys), values)
        )
        if self.is_rotary:
            query, key = rotate(query), rotate(key)
        bias = None if self.bias is None else self.bias(grid)
        attended = attend(query, key, value, mask, bias).transpose(1, 2).flatten(2)
        return attended if self.output is None else self.output(attended)


# Of the tokens' energy: differences fainter than this are not blown up to unit variance. It also keeps the path from a
# volume without differences to its own smooth, along which evidence integrates gradients.
_FAINT = 0.01


def stand_out(tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Take from the tokens of a study what they share, and scale the rest to about unit variance.

    Most of a tower's output is the same at every patch. It moves no softmax over tokens, yet it takes up the scale at
    which scores start: slots and queries then read everything alike, and soft prompts are copies of one.

    Args:
        tokens (`torch.Tensor` of shape `(volumes, tokens, width)`): Tokens of the studies.
        mask (`torch.BoolTensor` of shape `(volumes, tokens)`, *optional*): Tokens of anatomy.
    """
    exact = tokens.float()
    count = exact.shape[1]
    if mask is not None:
        exact = exact.masked_fill(~mask[:, :, None], 0.0)
        count = mask.sum(dim=1)[:, None, None]
    shared = exact.sum(dim=1, keepdim=True) / count
    energy = exact.square().sum(dim=1, keepdim=True).mean(dim=2, keepdim=True) / count
    spread = energy - shared.square().mean(dim=2, keepdim=True)
    return ((exact - shared) * (spread + _FAINT * energy + 1e-6).rsqrt()).to(tokens.dtype)


# ------------------------------------------------------------------------- SVR: spatio-temporal visual token refiner


class RefinerLayer(GradientCheckpointingLayer):
    """Attention inside each frame, then across frames at each position of the token grid."""

    def __init__(self, config: Mu2TokenizerConfig):
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        tokens = math.prod(config.token_grid)
        spatial_reach, temporal_reach = {
            "3d": (config.token_grid, (config.max_frames,)),
            "1d": ((config.max_positions or tokens,), (config.max_positions or config.max_frames,)),
        }.get(config.position, (None, None))
        is_rotary = config.position == "rope"
        self.grid = config.token_grid if config.position == "3d" else (tokens,)
        self.is_residual = config.refiner == "residual"
        self.swap_axes = config.swap_axes
        self.spatial_attention = Mu2Attention(width, heads, spatial_reach, is_rotary)
        self.temporal_attention = Mu2Attention(width, heads, temporal_reach, is_rotary)
        if self.is_residual:
            self.spatial_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
            self.temporal_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        # tokens (B, T, N, E), mask (B, T, N)
        if self.swap_axes:
            return self.inside_frames(
                self.across_frames(tokens, mask, self.spatial_attention), mask, self.temporal_attention
            )
        if not self.is_residual:
            return self.across_frames(
                self.inside_frames(tokens, mask, self.spatial_attention), mask, self.temporal_attention
            )
        tokens = tokens + self.inside_frames(self.spatial_norm(tokens), mask, self.spatial_attention)
        return tokens + self.across_frames(self.temporal_norm(tokens), mask, self.temporal_attention)

    def inside_frames(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, attention: Mu2Attention
    ) -> torch.Tensor:
        """Let the tokens of each frame see each other.

        Args:
            tokens (`torch.Tensor` of shape `(volumes, frames, tokens, hidden_size)`): Tokens of the studies.
            mask (`torch.BoolTensor` of shape `(volumes, frames, tokens)`, *optional*): Tokens of anatomy.
            attention (`Mu2Attention`): Whose weights to use.

        Returns:
            `torch.Tensor` of the shape of `tokens`.
        """
        frames = tokens.flatten(0, 1)  # (B*T, N, E)
        mask = None if mask is None else open_empty_rows(mask.flatten(0, 1))
        return attention(frames, frames, mask, self.grid).view_as(tokens)

    def across_frames(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, attention: Mu2Attention
    ) -> torch.Tensor:
        """Let tokens at the same place of their frames see each other; arguments and result as in `inside_frames`."""
        columns = tokens.transpose(1, 2).flatten(0, 1)  # (B*N, T, E)
        mask = None if mask is None else open_empty_rows(mask.transpose(1, 2).flatten(0, 1))
        attended = attention(columns, columns, mask, (tokens.shape[1],))
        return attended.unflatten(0, (tokens.shape[0], -1)).transpose(1, 2)


class SpatioTemporalRefiner(nn.Module):
    """SVR: let the tokens of a study see each other, to score them (paper 2.2; LinVT)."""

    def __init__(self, config: Mu2TokenizerConfig):
        super().__init__()
        self.layers = nn.ModuleList(RefinerLayer(config) for _ in range(config.num_refiner_layers))
        # What is added to every token alike moves no score of what stands out.
        has_bias = not (config.keep_apart and config.selection == "soft" and config.select_from == "input")
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=has_bias)
            if config.refiner == "residual"
            else None
        )
        self.frame_embedding = self.token_embedding = None
        if config.position == "absolute":  # LinVT: P_f(i) + P_t(j)
            self.frame_embedding = nn.Parameter(torch.zeros(config.max_frames, 1, config.hidden_size))
            self.token_embedding = nn.Parameter(torch.zeros(math.prod(config.token_grid), config.hidden_size))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Refine tokens `(B, T, N, E)` under a mask `(B, T, N)`.

        Raises:
            ValueError: if absolute positions do not reach all frames. Relative ones repeat their last entry.
        """
        if self.frame_embedding is not None:
            if tokens.shape[1] > len(self.frame_embedding):
                raise ValueError(
                    f'`position="absolute"` reaches `max_frames={len(self.frame_embedding)}`, got {tokens.shape[1]} '
                    "frames. Lower `max_frames` of the image processor, or train with relative positions, which take "
                    "any number."
                )
            tokens = tokens + self.frame_embedding[: tokens.shape[1]] + self.token_embedding
        for layer in self.layers:
            tokens = layer(as_checkpoint_input(tokens, layer), mask)
        return tokens if self.norm is None else self.norm(tokens)


# ----------------------------------------------------------------------------- DTS: differentiable token selection


class TokenSelection(nn.Module):
    """DTS: mix all tokens of a study into R selected ones, alpha^(r) = softmax over tokens of w_r . x / temperature.

    `"topk"` is LinVT's hard form: the R best-scored tokens as they are. The published scorer gets no gradient; here a
    straight-through gate, worth exactly 1 in the forward pass, passes each token's gradient to its score.
    """

    def __init__(self, config: Mu2TokenizerConfig):
        super().__init__()
        self.num_selected = config.num_selected_tokens
        self.temperature = config.selection_temperature
        self.is_soft = config.selection == "soft"
        self.keeps_apart = config.keep_apart
        # No bias: a softmax over tokens, and their order, ignore a constant per slot.
        self.score = ScoreLinear(config.hidden_size, self.num_selected if self.is_soft else 1, bias=False)

    def weights(self, refined: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Selection weights of shape `(B, T*N, R)`; each slot's sum to 1 over the tokens. Soft selection only."""
        refined = refined.flatten(1, 2)
        mask = None if mask is None else open_empty_rows(mask.flatten(1))
        if self.keeps_apart:
            refined = stand_out(refined, mask)
        scores = self.score(refined).float() / self.temperature
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
        return scores.softmax(dim=1).to(refined.dtype)

    def forward(
        self, refined: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Select from `tokens` (B, T, N, E) by the scores of `refined`: `(B, R, E)`."""
        if self.is_soft:
            return self.weights(refined, mask).transpose(1, 2) @ tokens.flatten(1, 2)
        tokens = tokens.flatten(1, 2)
        scores = self.score(refined).flatten(1)  # (B, T*N)
        mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else open_empty_rows(mask.flatten(1))
        order = scores.masked_fill(~mask, float("-inf")).topk(min(self.num_selected, scores.shape[1])).indices
        # A study with fewer tokens than slots repeats its tokens in the same order.
        slots = torch.arange(self.num_selected, device=tokens.device) % mask.sum(1, keepdim=True).clamp(
            max=order.shape[1]
        )
        order = order.gather(1, slots)
        selected = tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[-1]))
        gate = scores.gather(1, order).sigmoid()[:, :, None]
        return selected * (1 + (gate - gate.detach()))


# --------------------------------------------------------------------------------- DMTP: dynamic multi-scale pooling


class MultiScalePooling(nn.Module):
    """DMTP: average-pool the selected tokens with kernels 1, 2, 4 and gate the scales, w = softmax(g(V)), w_s y_s.

    The published gate g(mean y_s) is constant, since pooling keeps the mean. `"gated"` reads mean and spread of the
    selected tokens instead and has one output per scale; it starts at equal weights.
    """

    def __init__(self, config: Mu2TokenizerConfig):
        super().__init__()
        self.form = config.pooling
        self.scales = config.scales
        self.gate = None
        if self.form == "published":
            self.gate = nn.Linear(config.hidden_size, 1, bias=False)
        elif self.form == "gated":
            self.gate = nn.Sequential(
                nn.LayerNorm(2 * config.hidden_size, eps=config.layer_norm_eps),
                nn.Linear(2 * config.hidden_size, config.hidden_size // 4),
                nn.GELU(),
                GateLinear(config.hidden_size // 4, len(self.scales)),
            )

    def gates(self, selected: torch.Tensor, pooled: list[torch.Tensor]) -> torch.Tensor:
        """Weight of each scale, `(B, scales)`."""
        if self.form == "published":
            logits = self.gate(torch.stack([y.mean(dim=1) for y in pooled], dim=1)).squeeze(-1)
        else:
            spread = (selected.var(dim=1, correction=0) + 1e-6).sqrt()
            logits = self.gate(torch.cat([selected.mean(dim=1), spread], dim=-1))
        return logits.softmax(dim=-1)

    def forward(self, selected: torch.Tensor) -> list[torch.Tensor]:
        """Pool `(B, R, E)` to one `(B, R // s, E)` per scale s, in scale order."""
        slots = selected.transpose(1, 2)
        pooled = [
            F.avg_pool1d(slots, scale).transpose(1, 2) if scale > 1 else selected for scale in self.scales
        ]
        if self.gate is None:
            return pooled
        gates = self.gates(selected, pooled)
        return [gates[:, i, None, None] * y for i, y in enumerate(pooled)]


# ------------------------------------------------------------------------------ TTA: text-conditioned token aggregation


class AggregatorLayer(GradientCheckpointingLayer):
    """Queries attend to themselves, to the pooled tokens and to the question, each with residual and LayerNorm.

    The published layer normalises after each sum: what all queries of a set read alike then outgrows what tells them
    apart. With the norm before each attention (`keep_apart`) a query keeps what it started with.
    """

    def __init__(self, config: Mu2TokenizerConfig):
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        is_relative = config.query_position and config.position in ("1d", "3d")
        is_rotary = config.query_position and config.position == "rope"
        reach = (config.max_positions or config.num_query_tokens,) if is_relative else None
        self.is_pre_norm = config.keep_apart
        self.swap_axes = config.swap_axes
        self.self_attention = Mu2Attention(width, heads, reach, is_rotary)
        self.visual_attention = Mu2Attention(width, heads)
        self.text_attention = Mu2Attention(width, heads)
        self.self_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.visual_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.text_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, queries, visual, visual_mask, question, question_mask):
        # queries (B, Q, E), visual (B, P, E), visual_mask (1, 1, Q, P), question (B, L, E), question_mask (B, L)
        if self.is_pre_norm:
            queries = queries + self.among_queries(self.self_norm(queries))
            queries = queries + self.visual_attention(self.visual_norm(queries), visual, visual_mask)
            return queries + self.to_question(self.text_norm(queries), question, question_mask)
        queries = self.self_norm(queries + self.among_queries(queries))
        queries = self.visual_norm(queries + self.visual_attention(queries, visual, visual_mask))
        return self.text_norm(queries + self.to_question(queries, question, question_mask))

    def among_queries(self, queries: torch.Tensor) -> torch.Tensor:
        """Let queries see each other; with `swap_axes` each sees itself only, so attention is the value layer."""
        if self.swap_axes:
            return self.self_attention.output(self.self_attention.value(queries))
        return self.self_attention(queries, queries, grid=(queries.shape[1],))

    def to_question(
        self, queries: torch.Tensor, question: torch.Tensor, question_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Read the question; zero where there is none."""
        if question_mask is None:
            return self.text_attention(queries, question)
        attended = self.text_attention(queries, question, open_empty_rows(question_mask))
        return attended.masked_fill(~question_mask.any(dim=1)[:, None, None], 0.0)


class TextConditionedAggregation(nn.Module):
    """TTA: queries read the study under the question, then mix the pooled tokens linearly, per head, into V'."""

    def __init__(self, config: Mu2TokenizerConfig):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.hidden_size))
        self.layers = nn.ModuleList(AggregatorLayer(config) for _ in range(config.num_aggregator_layers))
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm = norm if config.keep_apart else nn.Identity()  # published layers end in a norm
        self.aggregation = Mu2Attention(config.hidden_size, config.num_heads, is_linear=True)
        self.scale_queries = tuple(config.scale_queries) if config.query_sets == "per_scale" else None
        self.keeps_apart = config.keep_apart

    def forward(
        self, pooled: list[torch.Tensor], question: torch.Tensor, question_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        visual = torch.cat(pooled, dim=1)  # (B, P, E)
        keys = torch.cat([stand_out(y) for y in pooled], dim=1) if self.keeps_apart else visual
        visual_mask = None
        if self.scale_queries is not None:  # set s reads scale s only
            blocks = [
                torch.ones(queries, y.shape[1], dtype=torch.bool, device=visual.device)
                for queries, y in zip(self.scale_queries, pooled)
            ]
            visual_mask = torch.block_diag(*blocks)[None, None]
        queries = self.query_tokens.expand(len(visual), -1, -1)
        for layer in self.layers:
            queries = as_checkpoint_input(queries, layer)
            queries = layer(queries, keys, visual_mask, question, question_mask)
        return self.aggregation(self.norm(queries), keys, visual_mask, values=visual)


# --------------------------------------------------------------------------------------------- into the language model


class SpatialPoolingProjector(nn.Module):
    """Pool each frame's token grid with equal kernel and stride, then an MLP to the width of the language model.

    M3D-LaMed's "SPP"; the published mu2 code puts it before the tokenizer.
    """

    def __init__(self, config: Mu2TokenizerConfig):
        super().__init__()
        self.grid = tuple(config.projector_grid or config.frame_grid)
        self.pool_size = config.projector_pool_size
        self.fc1 = nn.Linear(config.vision_hidden_size, config.text_hidden_size)
        self.fc2 = nn.Linear(config.text_hidden_size, config.text_hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project `(B, T, N, vision width)` to `(B, T, N / pool_size^3, text width)`."""
        grid = tokens.flatten(0, 1).transpose(1, 2).unflatten(-1, self.grid)
        pooled = F.avg_pool3d(grid, self.pool_size).flatten(2).transpose(1, 2)
        return self.fc2(F.gelu(self.fc1(pooled))).unflatten(0, tokens.shape[:2])


class TokenProjector(nn.Module):
    """Normalise V' and project it to soft prompts of the language model's width."""

    def __init__(self, config: Mu2TokenizerConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.text_hidden_size)
        self.fc2 = nn.Linear(config.text_hidden_size, config.text_hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project `(volumes, num_query_tokens, hidden_size)` to `(volumes, num_query_tokens, text_hidden_size)`."""
        return self.fc2(F.gelu(self.fc1(self.norm(tokens))))


class Mu2Tokenizer(PreTrainedModel):
    """Turn the visual tokens of a study, of any number of frames, into Q soft prompts under a question."""

    config: Mu2TokenizerConfig
    main_input_name = "vision_hidden_states"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RefinerLayer", "AggregatorLayer"]
    _supports_sdpa = True
    _can_compile_fullgraph = True

    def __init__(self, config: Mu2TokenizerConfig):
        super().__init__(config)
        width = config.hidden_size
        if config.connector == "spatial_pooling":
            self.projector = SpatialPoolingProjector(config)
        else:
            is_before = config.projection == "before"
            needs_width = not is_before and config.vision_hidden_size != width
            self.input_projector = (
                SpatialPoolingProjector(config)
                if is_before
                else nn.Linear(config.vision_hidden_size, width)
                if needs_width
                else nn.Identity()
            )
            self.refiner = SpatioTemporalRefiner(config)
            self.selection = TokenSelection(config)
            self.pooling = MultiScalePooling(config)
            # Token embeddings are small (0.02): without a norm the question would hardly move an attention weight.
            norm = nn.LayerNorm(config.text_hidden_size, eps=config.layer_norm_eps)
            self.question_norm = norm if config.normalize_question else nn.Identity()
            self.question_projector = (
                nn.Identity() if is_before else nn.Linear(config.text_hidden_size, width)
            )
            self.aggregator = TextConditionedAggregation(config)
            self.projector = nn.Identity() if is_before else TokenProjector(config)
        self.post_init()

    def forward(
        self,
        vision_hidden_states: torch.Tensor,
        question_embeds: torch.Tensor,
        slab_mask: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokenize studies.

        Args:
            vision_hidden_states (`torch.Tensor` of shape `(volumes, frames, patches, vision_hidden_size)`):
                Output of the vision tower.
            question_embeds (`torch.Tensor` of shape `(volumes, length, text_hidden_size)`):
                Input embeddings of the question in the language model.
            slab_mask (`torch.BoolTensor` of shape `(volumes, frames, slabs)`, *optional*):
                Which slabs of each frame hold anatomy. All, if absent.
            question_mask (`torch.BoolTensor` of shape `(volumes, length)`, *optional*):
                Tokens of the question; a row without any means no question.

        Returns:
            `torch.Tensor` of shape `(volumes, num_query_tokens, text_hidden_size)`: soft prompts.
        """
        if self.config.connector == "spatial_pooling":
            return self.projector(vision_hidden_states).flatten(1, 2)
        visual_tokens = self.aggregate(vision_hidden_states, question_embeds, slab_mask, question_mask)
        return self.projector(visual_tokens)

    def aggregate(
        self,
        vision_hidden_states: torch.Tensor,
        question_embeds: torch.Tensor,
        slab_mask: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute V', the visual tokens before the projector: per head a mix of the pooled tokens.

        Args:
            vision_hidden_states, question_embeds, slab_mask, question_mask: As in `forward`.

        Returns:
            `torch.Tensor` of shape `(volumes, num_query_tokens, hidden_size)`.
        """
        pooled = self.pool(vision_hidden_states, slab_mask)
        question = self.question_projector(self.question_norm(question_embeds))
        return self.aggregator(pooled, question, question_mask)

    def pool(
        self, vision_hidden_states: torch.Tensor, slab_mask: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Refine, select and pool: what the aggregation reads, one tensor per scale. Independent of the question."""
        tokens = self.input_projector(vision_hidden_states)
        mask = self.token_mask(slab_mask)
        if mask is not None:
            tokens = tokens.masked_fill(~mask[..., None], 0.0)
        refined = self.refiner(tokens, mask)
        selected = self.selection(refined, tokens if self.config.select_from == "input" else refined, mask)
        return self.pooling(selected)

    def token_mask(self, slab_mask: torch.Tensor | None) -> torch.Tensor | None:
        """Spread `(B, T, slabs)` over the tokens of each frame, `(B, T, N)`.

        None where tokens are pooled on another grid than theirs (`projector_grid`): slabs mean nothing there.
        """
        config = self.config
        pooled_grid = config.projector_grid if config.projection == "before" else None
        if slab_mask is None or tuple(pooled_grid or config.frame_grid) != tuple(config.frame_grid):
            return None
        depth, height, width = config.token_grid
        slabs = slab_mask.bool()
        if (
            slabs.shape[-1] != depth
        ):  # pooled before the refiner: a pooled slab is real if any of its slabs is
            slabs = slabs.unflatten(-1, (depth, -1)).any(dim=-1)
        return slabs.repeat_interleave(height * width, dim=-1)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, RelativeBias):
            init.zeros_(module.table)
        elif isinstance(module, SpatioTemporalRefiner) and module.frame_embedding is not None:
            init.normal_(module.frame_embedding, std=self.config.initializer_range)
            init.normal_(module.token_embedding, std=self.config.initializer_range)
        elif isinstance(module, AttentionLinear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ScoreLinear):
            # The scorer reads normalised tokens (unit variance per feature), so scores start with this deviation.
            init.normal_(
                module.weight, std=self.config.selection_init_std / math.sqrt(self.config.hidden_size)
            )
        elif isinstance(module, GateLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, TextConditionedAggregation):
            # What is added to a pre-norm query is of the order of 1: smaller queries would soon be alike.
            std = 1.0 if self.config.keep_apart else self.config.initializer_range
            init.normal_(module.query_tokens, std=std)

    def _check_and_adjust_attn_implementation(self, attn_implementation, *args, **kwargs):
        # Flash kernels drop an additive bias without an error.
        return super()._check_and_adjust_attn_implementation(as_sdpa(attn_implementation), *args, **kwargs)


__all__ = ["Mu2Tokenizer"]
