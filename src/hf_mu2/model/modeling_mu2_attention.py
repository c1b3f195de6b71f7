"""Attention with an additive bias in bounded memory, and the few functions both sides of mu2 share."""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers.modeling_layers import GradientCheckpointingLayer


def open_empty_rows(mask: torch.Tensor) -> torch.Tensor:
    """Unmask the rows that are masked everywhere: a softmax over nothing is NaN. Their results must be zeroed."""
    return mask | ~mask.any(dim=-1, keepdim=True)


def as_checkpoint_input(hidden_states: torch.Tensor, layer: GradientCheckpointingLayer) -> torch.Tensor:
    """Let the input of a checkpointed layer that learns require a gradient, which reentrant checkpoints need."""
    if (
        not (layer.gradient_checkpointing and layer.training and torch.is_grad_enabled())
        or hidden_states.requires_grad
    ):
        return hidden_states
    learns = any(parameter.requires_grad for parameter in layer.parameters())
    return hidden_states.detach().requires_grad_() if learns else hidden_states


def as_sdpa(attn_implementation: str | None) -> str | None:
    """Ask for PyTorch's attention where a caller wants a kernel of the language model's for the whole model."""
    return attn_implementation if attn_implementation in (None, "eager", "sdpa") else "sdpa"


def rotate(hidden_states: torch.Tensor) -> torch.Tensor:
    """Apply half-rotation rotary positions (theta 10,000) along the tokens: `(..., tokens, head_dim)`."""
    tokens, dim = hidden_states.shape[-2:]
    device = hidden_states.device
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angle = torch.arange(tokens, device=device, dtype=torch.float32)[:, None] * frequency  # (tokens, dim / 2)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    first, second = hidden_states.float().chunk(2, dim=-1)
    rotated = hidden_states.float() * cos + torch.cat([-second, first], dim=-1) * sin
    return rotated.to(hidden_states.dtype)


# Scores one step may hold where a bias keeps attention from the kernels that hold none: 2^24 are 64 MB in float32. The
# backward pass goes over them six times: 4 MB stay in a core's cache (with 64 MB, 64 rows of 3 heads and 324 tokens
# take 1.6 times as long on one core).
_MAX_SCORES = 2**24
_MAX_SCORES_BACKWARD = 2**20


class BiasedAttention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(d) + P) V on CPU, with a gradient for P, in bounded memory.

    With a bias that wants a gradient PyTorch's CPU attention keeps the scores of all rows and heads. Here the forward
    pass takes the kernel that keeps none, and the backward pass computes them again, a few rows or heads at a time:
    dV = A^T dO, dA = dO V^T, dS = A * (dA - sum over keys of A * dA), dQ = dS K / sqrt(d), dK = dS^T Q / sqrt(d),
    dP = sum over rows of dS. All of it in float32 at least: bfloat16 scores would be less exact than PyTorch's.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, bias):
        ctx.save_for_backward(query, key, value, mask, bias)
        # Detached: even without gradients PyTorch's choice of kernel passes over a bias that wants one.
        return biased_attention(query, key, value, mask, bias.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        query, key, value, mask, bias = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        exact = torch.promote_types(query.dtype, torch.float32)
        grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
        grad_bias = torch.zeros_like(bias, dtype=exact)
        num_rows, num_heads = query.shape[:2]
        heads_at_once = max(1, min(num_heads, _MAX_SCORES_BACKWARD // bias[0].numel()))
        rows_at_once = max(1, _MAX_SCORES_BACKWARD // (heads_at_once * bias[0].numel()))
        for head in range(0, num_heads, heads_at_once):
            heads = slice(head, head + heads_at_once)
            for row in range(0, num_rows, rows_at_once):
                part = slice(row, row + rows_at_once), heads
                q, k, v, grad = (x[part].to(exact) for x in (query, key, value, grad_output))
                weights = ((q * scale) @ k.transpose(-1, -2)).add_(bias[heads])
                if mask is not None:
                    weights.masked_fill_(~mask[part[0]], float("-inf"))
                weights = weights.softmax(dim=-1)
                grad_value[part] = weights.transpose(-1, -2) @ grad
                grad_scores = (grad @ v.transpose(-1, -2)).mul_(weights)
                grad_scores.addcmul_(weights, grad_scores.sum(dim=-1, keepdim=True), value=-1)
                grad_bias[heads] += grad_scores.sum(dim=0)
                grad_query[part] = grad_scores @ k * scale
                grad_key[part] = grad_scores.transpose(-1, -2) @ q * scale
        return grad_query, grad_key, grad_value, None, grad_bias.to(bias.dtype)


def biased_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, bias: torch.Tensor
) -> torch.Tensor:
    """Let the fused kernel add the bias; with a mask a few rows at a time, since each row then has its own bias.

    Args:
        query, key, value (`torch.Tensor` of shape `(rows, heads, tokens, head_dim)`): The usual three.
        mask (`torch.BoolTensor` of shape `(rows, 1, 1, keys)`, or one that broadcasts to the scores, *optional*): Keys
            to attend.
        bias (`torch.Tensor` of shape `(heads, queries, keys)`): Added to every row's scores.

    Returns:
        `torch.Tensor` of the shape of `query`.
    """
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
    size = max(1, _MAX_SCORES // bias.numel())
    rows = [
        F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].masked_fill(~m, float("-inf")))
        for q, k, v, m in zip(*(x.split(size) for x in (query, key, value, mask)))
    ]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention with an optional additive bias.

    Args:
        query, key, value (`torch.Tensor` of shape `(rows, heads, tokens, head_dim)`): The usual three.
        mask (`torch.BoolTensor` of shape `(rows, keys)`, or one that broadcasts to the scores, *optional*): Keys to
            attend.
        bias (`torch.Tensor` of shape `(heads, queries, keys)`, *optional*): Added to every row's scores.
    """
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    if bias is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    bias = bias.to(query.dtype)
    if torch.is_grad_enabled() and bias.requires_grad and query.device.type == "cpu":
        return BiasedAttention.apply(query, key, value, mask, bias)
    return biased_attention(query, key, value, mask, bias)


__all__ = ["BiasedAttention", "as_checkpoint_input", "as_sdpa", "attend", "open_empty_rows", "rotate"]
