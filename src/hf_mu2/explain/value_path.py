"""The path of values through the mu2 tokenizer, from patches to visual tokens, as the matrices it is made of.

The paper's principle, "the output of each module is a linear combination of part of its input" (section 2.2 of
https://huggingface.co/papers/2507.00316), makes V' linear in the tokens that selection reads, per head, once the
weights of selection, pooling and aggregation are fixed. So what a patch adds to a visual token is exact, not estimated.

Shapes: H = heads, Q = queries, P = pooled tokens, R = selected tokens, N = tokens, L = question tokens, E = width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_mu2.model.configuration_mu2 import Mu2TokenizerConfig
from hf_mu2.model.modeling_mu2_tokenizer import Mu2Attention, Mu2Tokenizer, MultiScalePooling, TokenSelection


@dataclass(frozen=True)
class ValuePath:
    """How one volume's tokens became its visual tokens V'.

    Args:
        aggregation (`torch.Tensor` of shape `(heads, queries, pooled)`): Weights of the linear aggregation.
        pooling (`torch.Tensor` of shape `(pooled, selected)`): Gate over kernel length, where a pooled token reads.
        selection (`torch.Tensor` of shape `(selected, tokens)`): Weights of the selection; padding has 0.
        values (`torch.Tensor` of shape `(tokens, width)`): What is mixed: the tokens that selection reads.
        text_attention (`torch.Tensor` of shape `(queries, question)`): Attention of the queries to each token of the
            question, the mean over layers and heads. No columns without a question.
        to_patches (`torch.Tensor` of shape `(tokens per frame, patches per frame)`): Which patches of its frame a token
            holds, rows sum to 1: one patch, unless patches are pooled before the tokenizer.
    """

    aggregation: torch.Tensor
    pooling: torch.Tensor
    selection: torch.Tensor
    values: torch.Tensor
    text_attention: torch.Tensor
    to_patches: torch.Tensor

    def compose(self) -> torch.Tensor:
        """Multiply the path out: `(heads, queries, tokens)`; large at full size, where the methods below avoid it."""
        return self.aggregation @ (self.pooling @ self.selection)

    def push(self, weights: torch.Tensor) -> torch.Tensor:
        """Send weights of visual tokens down the path, the mean over heads: `(..., queries)` to `(..., tokens)`."""
        return weights @ self.aggregation.mean(dim=0) @ self.pooling @ self.selection

    def contributions(self, gradients: torch.Tensor) -> torch.Tensor:
        """Split the inner product of V' and a gradient over the tokens, exactly.

        A token adds, over heads h and queries q, path[h, q, token] * <gradient[q, h], value[token, h]>; the sum over
        tokens is <gradient, V'>: gradient x input (https://huggingface.co/papers/1704.02685) along the value path.

        Args:
            gradients (`torch.Tensor` of shape `(..., queries, width)`): Of any score, by V'.

        Returns:
            `torch.Tensor` of shape `(..., tokens)`.
        """
        heads = self.aggregation.shape[0]
        per_head = gradients.unflatten(-1, (heads, -1)).movedim(-2, -3)  # (..., H, Q, E / H)
        pooled = (self.aggregation.transpose(1, 2) @ per_head).movedim(-3, -2).flatten(-2)  # (..., P, E)
        return ((self.selection.T @ (self.pooling.T @ pooled)) * self.values).sum(dim=-1)

    def patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Spread amounts per token `(..., tokens)` over the patches they hold: `(..., frames, patches)`."""
        return tokens.unflatten(-1, (-1, len(self.to_patches))) @ self.to_patches


def check_traceable(config: Mu2TokenizerConfig) -> None:
    """Refuse a connector that knows no question.

    Raises:
        ValueError: for `connector="spatial_pooling"`.
    """
    if config.connector != "mu2":
        raise ValueError(
            "Evidence under a question needs a tokenizer that reads the question, this checkpoint has "
            f'`connector="{config.connector}"`, which pools patches alike for all questions. Use a checkpoint with '
            '`connector="mu2"`.'
        )


@torch.no_grad()
def trace_values(
    tokenizer: Mu2Tokenizer,
    vision_hidden_states: torch.Tensor,
    question_embeds: torch.Tensor,
    slab_mask: torch.Tensor | None = None,
    question_mask: torch.Tensor | None = None,
) -> tuple[ValuePath, torch.Tensor]:
    """Run the tokenizer on one volume and read off its value path.

    With `select_from="refined"` the path ends at the refiner's output, whose tokens have seen each other.

    Args:
        tokenizer (`Mu2Tokenizer`): In evaluation mode.
        vision_hidden_states, question_embeds, slab_mask, question_mask: As in `Mu2Tokenizer.forward`, of one volume.

    Returns:
        The path in float32, and V' of shape `(queries, width)`.

    Raises:
        ValueError: for a connector without text-conditioned aggregation.
    """
    check_traceable(tokenizer.config)
    aggregator = tokenizer.aggregator
    texts = [layer.text_attention for layer in aggregator.layers]
    watched = [tokenizer.selection, tokenizer.pooling, aggregator.aggregation, *texts]
    with KeptInputs(watched) as inputs:
        visual = tokenizer.aggregate(vision_hidden_states, question_embeds, slab_mask, question_mask)[0]
    refined, tokens, mask = inputs.of(tokenizer.selection)
    (selected,) = inputs.of(tokenizer.pooling)
    length = question_embeds.shape[1]
    asked = torch.ones(length, dtype=torch.bool) if question_mask is None else question_mask[0].bool()
    attention = torch.cat([attention_weights(text, *inputs.of(text)) for text in texts]).mean(dim=(0, 1))
    path = ValuePath(
        aggregation=attention_weights(aggregator.aggregation, *inputs.of(aggregator.aggregation))[0],
        pooling=_pooling_matrix(tokenizer.pooling, selected)[0],
        selection=_selection_matrix(tokenizer.selection, refined, mask)[0],
        values=tokens[0].flatten(0, 1).float(),
        text_attention=attention[:, asked.to(attention.device)],
        to_patches=_patch_matrix(tokenizer.config).to(visual.device),
    )
    return path, visual


@contextmanager
def watch_reading(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Note what the visual tokens of each volume read, during forward passes of a model: one entry per pass.

    It is computed inside the pass, so under its autocast and with its weights gathered. Gradients reach all that the
    weights come from: queries, scorer, refiner and, unless its output is cached, the vision tower.

    An entry is a `torch.Tensor` of shape `(volumes, frames, patches)` in float32, and each volume's sum is 1: the mean
    over heads and queries of the rows of `ValuePath.compose`, each divided by its sum, which is the gate of its scale.

    Raises:
        ValueError: if the model has no tokenizer that reads a question.
    """
    tokenizers = [module for module in model.modules() if isinstance(module, Mu2Tokenizer)]
    if not tokenizers:
        raise ValueError(
            f"What is read of a volume is known of mu2's tokenizer, a {type(model).__name__} has none. Use a mu2 model."
        )
    for tokenizer in tokenizers:
        check_traceable(tokenizer.config)
    watched = [(t.selection, t.pooling, t.aggregator.aggregation) for t in tokenizers]
    shares: list[torch.Tensor] = []
    with KeptInputs([module for modules in watched for module in modules]) as inputs:

        def read(tokenizer: nn.Module, arguments: Any, output: Any) -> None:
            shares.append(read_shares(tokenizer, inputs))

        handles = [tokenizer.register_forward_hook(read) for tokenizer in tokenizers]
        try:
            yield shares
        finally:
            for handle in handles:
                handle.remove()


def read_shares(tokenizer: Any, inputs: "KeptInputs") -> torch.Tensor:
    """Compute which share of what its visual tokens read comes from each patch.

    Args:
        tokenizer (`Mu2Tokenizer`): Its selection, pooling and aggregation have run under `inputs`.

    Returns:
        `torch.Tensor` of shape `(volumes, frames, patches)`.
    """
    refined, _, mask = inputs.of(tokenizer.selection)
    (selected,) = inputs.of(tokenizer.pooling)
    aggregation = attention_weights(
        tokenizer.aggregator.aggregation, *inputs.of(tokenizer.aggregator.aggregation)
    )
    pooling = _pooling_matrix(tokenizer.pooling, selected)
    selection = _selection_matrix(tokenizer.selection, refined, mask)
    to_patches = _patch_matrix(tokenizer.config).to(refined.device)
    with torch.autocast(refined.device.type, enabled=False):
        amounts = pooling @ selection.sum(dim=-1, keepdim=True)  # (B, P, 1): what a pooled token reads in all
        totals = aggregation @ amounts[:, None]  # (B, H, Q, 1)
        weights = (aggregation / totals).mean(dim=(1, 2))  # (B, P): small first, so nothing is (Q, N)
        tokens = (weights[:, None] @ pooling @ selection)[:, 0]
        return tokens.unflatten(-1, (-1, len(to_patches))) @ to_patches


def attention_weights(
    attention: Mu2Attention, queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute softmax(Q K^T / sqrt(d)) of an attention of the aggregator: `(volumes, heads, queries, keys)`."""
    query, key = (
        layer(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).float()
        for layer, x in ((attention.query, queries), (attention.key, keys))
    )
    with torch.autocast(query.device.type, enabled=False):
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~(mask if mask.ndim == 4 else mask[:, None, None]), float("-inf"))
    return scores.softmax(dim=-1)


def _selection_matrix(
    selection: TokenSelection, refined: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return the weights of selection, `(volumes, selected, tokens)`."""
    if selection.is_soft:
        return selection.weights(refined, mask).transpose(1, 2).float()
    # The hard form copies tokens: let it copy their numbers, and ones, which come back as its straight-through gate.
    shape = refined.shape[:3]
    numbers = torch.arange(shape[1] * shape[2], device=refined.device, dtype=torch.float64)
    chosen = selection(refined, numbers.view(1, *shape[1:], 1).expand(*shape, 1), mask).detach()
    gate = selection(refined, torch.ones(*shape, 1, device=refined.device), mask)
    return F.one_hot(chosen[..., 0].round().long(), len(numbers)).float() * gate.float()


def _pooling_matrix(pooling: MultiScalePooling, selected: torch.Tensor) -> torch.Tensor:
    """Return gate over kernel length where a pooled token reads, `(volumes, pooled, selected)`."""
    eye = torch.eye(selected.shape[1], device=selected.device, dtype=selected.dtype)
    ungated = [eye if scale == 1 else F.avg_pool1d(eye, scale).T for scale in pooling.scales]
    if pooling.gate is None:
        return torch.cat(ungated).float().expand(len(selected), -1, -1)
    gates = pooling.gates(selected, [matrix @ selected for matrix in ungated])
    return torch.cat([gates[:, i, None, None] * matrix for i, matrix in enumerate(ungated)], dim=1).float()


def _patch_matrix(config: Mu2TokenizerConfig) -> torch.Tensor:
    """Say which patches a token holds; the published form pools patches, on a grid that need not be theirs."""
    patches = torch.eye(math.prod(config.frame_grid))
    if config.projection == "after":
        return patches
    grid = tuple(config.projector_grid or config.frame_grid)
    return F.avg_pool3d(patches.unflatten(1, grid), config.projector_pool_size).flatten(1).T


class KeptInputs:
    """Keep the positional inputs of modules while they run."""

    def __init__(self, modules: list[nn.Module]):
        self.modules = modules
        self.inputs: dict[nn.Module, tuple[Any, ...]] = {}

    def __enter__(self) -> "KeptInputs":
        self.handles = [module.register_forward_pre_hook(self._keep) for module in self.modules]
        return self

    def __exit__(self, *exception: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.inputs[module] = inputs

    def of(self, module: nn.Module) -> tuple[Any, ...]:
        """Return the inputs of a module's last call."""
        return self.inputs[module]
