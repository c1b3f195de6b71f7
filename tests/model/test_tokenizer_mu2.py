"""The mu2 tokenizer: what the refiner, the selection, the pooling and the aggregation must and must not do."""

import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch.utils.checkpoint import checkpoint

from hf_mu2.model.configuration_mu2 import Mu2TokenizerConfig
from hf_mu2.model.modeling_mu2_attention import attend
from hf_mu2.model.modeling_mu2_tokenizer import (
    Mu2Tokenizer,
    MultiScalePooling,
    RelativeBias,
    SpatioTemporalRefiner,
    TokenSelection,
    stand_out,
)


def make_config(**overrides) -> Mu2TokenizerConfig:
    fields = {
        "hidden_size": 32,
        "vision_hidden_size": 32,
        "text_hidden_size": 48,
        "frame_grid": (2, 4, 4),
        "num_heads": 4,
        "num_refiner_layers": 2,
        "num_aggregator_layers": 1,
        "num_selected_tokens": 16,
        "num_query_tokens": 8,
        "scale_queries": (4, 2, 2),
        "max_frames": 4,
    }
    return Mu2TokenizerConfig(**{**fields, **overrides})


def make_tokenizer(**overrides) -> Mu2Tokenizer:
    torch.manual_seed(0)
    return Mu2Tokenizer(make_config(**overrides)).eval()


def relative_spread(tokens: torch.Tensor) -> float:
    """Standard deviation between the tokens of a study, relative to their size."""
    flat = tokens.flatten(1, 2)
    return ((flat - flat.mean(1, keepdim=True)).norm() / flat.norm()).item()


# RPE


def test_relative_bias_depends_on_the_offset_only():
    bias = RelativeBias((3, 4), num_heads=2)
    torch.nn.init.normal_(bias.table)
    spread = bias((3, 4))
    positions = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    for i, query in enumerate(positions):
        for j, key in enumerate(positions):
            dz, dy = (key - query).tolist()
            assert torch.equal(spread[:, i, j], bias.table[:, dz + 2, dy + 3])


@pytest.mark.parametrize("grid", [(2,), (5,), (9,)])
def test_relative_bias_takes_any_length(grid):
    bias = RelativeBias((5,), num_heads=1)
    torch.nn.init.normal_(bias.table)
    spread = bias(grid)
    assert spread.shape == (1, *grid, *grid)
    assert spread[0, 0, -1] == bias.table[0, min(grid[0] - 1, 4) + 4]
    assert spread[0, -1, 0] == bias.table[0, 4 - min(grid[0] - 1, 4)]


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("max_scores", [2**8, 2**24])
def test_biased_attention_equals_plain_attention_with_its_gradients(monkeypatch, is_masked, max_scores):
    for name in ("_MAX_SCORES", "_MAX_SCORES_BACKWARD"):
        monkeypatch.setattr(f"hf_mu2.model.modeling_mu2_attention.{name}", max_scores)
    query, key, value = (torch.randn(3, 2, 11, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 11, 11, dtype=torch.float64, requires_grad=True)
    mask = None
    if is_masked:
        mask = torch.rand(3, 11) > 0.4
        mask[:, 0] = True
    scores = query @ key.transpose(-1, -2) / math.sqrt(8) + bias
    if is_masked:
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    expected = scores.softmax(-1) @ value
    output = attend(query, key, value, mask, bias)
    torch.testing.assert_close(output, expected)
    cotangent = torch.randn_like(output)
    gradients = torch.autograd.grad(output, (query, key, value, bias), cotangent)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, (query, key, value, bias), cotangent)):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)


def plain_attention(query, key, value, bias):
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias
    return scores.softmax(-1) @ value


def test_bfloat16_gradients_are_as_exact_as_those_of_plain_attention():
    torch.manual_seed(0)
    tensors = [torch.randn(4, 4, 96, 16, dtype=torch.bfloat16) for _ in range(3)]
    tensors.append(torch.randn(4, 96, 96, dtype=torch.bfloat16))
    cotangent = torch.randn(4, 4, 96, 16, dtype=torch.bfloat16)

    def gradients(attention, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in tensors]
        output = attention(*leaves[:3], leaves[3])
        return [g.double() for g in torch.autograd.grad(output, leaves, cotangent.to(dtype))]

    def fused(query, key, value, bias):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])

    exact = gradients(plain_attention, torch.float64)
    ours = gradients(lambda q, k, v, bias: attend(q, k, v, bias=bias), torch.bfloat16)
    theirs = gradients(fused, torch.bfloat16)
    for name, e, o, t in zip(("query", "key", "value", "bias"), exact, ours, theirs):
        assert (o - e).norm() <= 1.02 * (t - e).norm(), name


def test_the_gradient_of_biased_attention_cannot_be_differentiated_again():
    query, bias = torch.randn(1, 1, 3, 4, requires_grad=True), torch.randn(1, 3, 3, requires_grad=True)
    gradient = torch.autograd.grad(
        attend(query, query, query, bias=bias).square().sum(), query, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient[0].sum().backward()


# SVR


def kept_tensors(layer, frames: int) -> dict[int, torch.Tensor]:
    """Storages that autograd keeps for the backward pass of a refiner layer."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randn(1, frames, 512, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(tokens, None).sum()
    return kept


def test_training_keeps_no_scores_of_a_frame():
    layer = make_tokenizer(frame_grid=(2, 16, 16), max_frames=8).refiner.layers[0].train()
    assert layer.spatial_attention.bias.table.requires_grad
    heads, tokens, width = 4, 512, 32
    four, eight = kept_tensors(layer, 4), kept_tensors(layer, 8)
    assert max(x.untyped_storage().nbytes() for x in eight.values()) < 8 * heads * tokens**2 * 4
    before, after = (sum(x.untyped_storage().nbytes() for x in kept.values()) for kept in (four, eight))
    growth = (after - before) / 4
    assert growth < 20 * tokens * width * 4  # some twenty tensors the size of a frame's tokens
    assert growth < heads * tokens**2 * 4 / 2


PEAK = """
import torch
from hf_mu2.model.modeling_mu2_attention import attend

def peak():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])

def plain(query, key, value, bias):
    return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias).softmax(-1) @ value

torch.set_num_threads(1)
leaves = [torch.randn(8, 8, 1024, 8, requires_grad=True) for _ in range(3)]
leaves.append(torch.randn(8, 1024, 1024, requires_grad=True))
growth = []
before = peak()
for attention in (lambda q, k, v, bias: attend(q, k, v, bias=bias), plain):
    torch.autograd.grad(attention(*leaves).sum(), leaves)
    growth.append(peak() - before)
print(*growth)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_training_takes_a_fraction_of_the_memory_of_plain_attention():
    """8 frames of 1,024 tokens, 8 heads: forward and backward pass."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    ours, plain = map(int, run.stdout.split())
    assert ours < plain / 2


def test_absolute_positions_refuse_more_frames_than_they_know():
    tokenizer = make_tokenizer(position="absolute")
    with pytest.raises(ValueError, match=r"reaches `max_frames=4`, got 5 frames\. Lower"):
        tokenizer(torch.randn(1, 5, 32, 32), torch.randn(1, 5, 48))


@pytest.mark.parametrize("position", ["3d", "1d", "rope"])
def test_relative_positions_take_more_frames_than_they_were_made_for(position):
    output = make_tokenizer(position=position)(torch.randn(1, 6, 32, 32), torch.randn(1, 5, 48))
    assert output.isfinite().all()


@pytest.mark.parametrize("position", ["3d", "1d", "rope", "absolute", None])
def test_every_kind_of_position_gives_finite_tokens_and_gradients(position):
    tokenizer = make_tokenizer(position=position)
    tokens, question = torch.randn(2, 3, 32, 32, requires_grad=True), torch.randn(2, 5, 48)
    tokenizer(tokens, question).square().sum().backward()
    assert torch.isfinite(tokens.grad).all()
    unused = [name for name, p in tokenizer.named_parameters() if p.grad is None]
    assert unused == []


def test_tokens_stay_apart_through_eight_residual_layers_and_collapse_in_the_published_ones():
    """The published refiner has neither residual nor norm: at its own initialisation one vector is left."""
    tokens = torch.randn(1, 4, 32, 32)
    spreads = {}
    for form in ("residual", "published"):
        torch.manual_seed(0)
        config = make_config(num_refiner_layers=8, refiner=form)
        refiner = Mu2Tokenizer(config).refiner.eval()
        with torch.no_grad():
            spreads[form] = relative_spread(refiner(tokens))
    assert spreads["residual"] > 0.3
    assert spreads["published"] < 1e-4


def test_every_visual_token_gets_gradient_under_soft_selection():
    tokenizer = make_tokenizer()
    tokens = torch.randn(1, 3, 32, 32, requires_grad=True)
    tokenizer(tokens, torch.randn(1, 5, 48)).square().sum().backward()
    assert (tokens.grad.abs().sum(-1) > 0).all()


# What tokens share


def soft_prompts_of_alike_tokens(**fields) -> torch.Tensor:
    """Soft prompts of patches that are mostly the same everywhere, as those of a trained tower are."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(**fields).eval()
    tokens = 3 * torch.randn(1, 1, 1, 32) + 0.3 * torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        return tokenizer.aggregate(tokens, torch.randn(1, 5, 48))[0]


def test_soft_prompts_of_alike_patches_stay_apart_and_are_copies_in_the_published_form():
    spread = {
        form: relative_spread(soft_prompts_of_alike_tokens(keep_apart=form)[None, None])
        for form in (True, False)
    }
    assert spread[True] > 3 * spread[False]


def test_what_stands_out_ignores_padding_and_what_is_shared():
    tokens, mask = torch.randn(2, 9, 8), torch.ones(2, 9, dtype=torch.bool)
    mask[0, 6:] = False
    padded = tokens.clone()
    padded[0, 6:] = 99.0
    found = stand_out(padded, mask)
    torch.testing.assert_close(found[0, :6], stand_out(tokens[:1, :6])[0])
    torch.testing.assert_close(stand_out(5 * tokens), stand_out(tokens), atol=1e-5, rtol=1e-4)
    assert stand_out(tokens + 3).mean(dim=1).abs().max() < 1e-5
    assert stand_out(tokens).square().mean().item() == pytest.approx(1, abs=0.02)
    assert stand_out(tokens + 3).square().mean().item() == pytest.approx(1 / 1.1, abs=0.05)


def test_what_is_faint_is_not_blown_up():
    even, tokens = torch.ones(1, 9, 8), torch.randn(1, 9, 8)
    sizes = [stand_out(even + share * tokens).norm().item() for share in (0.0, 1e-3, 1e-2, 0.1, 1.0)]
    assert sizes == sorted(sizes) and sizes[0] == 0 and sizes[1] < 0.05 * sizes[-1]


# DTS


def test_selected_tokens_are_weighted_means():
    selection = TokenSelection(make_config())
    tokens = torch.ones(2, 3, 4, 32)
    torch.testing.assert_close(selection(torch.randn(2, 3, 4, 32), tokens), torch.ones(2, 16, 32))


def test_selection_ignores_token_order():
    selection = TokenSelection(make_config())
    tokens = torch.randn(1, 3, 4, 32)
    shuffled = tokens.flatten(1, 2)[:, torch.randperm(12)].unflatten(1, (3, 4))
    torch.testing.assert_close(selection(tokens, tokens), selection(shuffled, shuffled))


def test_soft_selection_starts_sharp_and_its_slots_differ():
    """At the paper's sizes: effective tokens per slot, exp(entropy), of 16,384; a plain Linear leaves about 11,700."""
    torch.manual_seed(0)
    config = make_config(
        hidden_size=768, num_heads=8, num_selected_tokens=64, frame_grid=(8, 16, 16), max_frames=8
    )
    selection = Mu2Tokenizer(config).selection
    tokens = torch.nn.functional.layer_norm(torch.randn(1, 8, 2048, 768), (768,))
    with torch.no_grad():
        weights = selection.weights(tokens)
        plain = torch.nn.Linear(768, 64)(tokens.flatten(1, 2)).softmax(1)
    effective, plain_effective = (
        (-(w * w.clamp(min=1e-30).log()).sum(1)).exp().mean() for w in (weights, plain)
    )
    slots = torch.nn.functional.normalize(weights[0].T, dim=-1)
    overlap = (slots @ slots.T - torch.eye(64)).abs().max()
    assert plain_effective > 10_000
    assert effective < 100
    assert overlap < 0.5


@pytest.mark.parametrize("selection", ["soft", "topk"])
def test_the_scorer_learns_under_both_selections(selection):
    tokenizer = make_tokenizer(selection=selection)
    tokenizer(torch.randn(1, 2, 32, 32), torch.randn(1, 5, 48)).square().sum().backward()
    assert tokenizer.selection.score.weight.grad.abs().sum() > 0


def test_hard_selection_gives_the_best_scored_tokens_unchanged():
    selection = TokenSelection(make_config(selection="topk", num_selected_tokens=8))
    tokens = torch.randn(2, 3, 4, 32)
    selected = selection(tokens, tokens)
    scores = selection.score(tokens).flatten(1)
    for row in range(2):
        expected = tokens.flatten(1, 2)[row, scores[row].argsort(descending=True)[:8]]
        assert torch.equal(selected[row], expected)


def test_hard_selection_repeats_the_tokens_of_a_short_study():
    selection = TokenSelection(make_config(selection="topk", num_selected_tokens=8))
    tokens = torch.randn(1, 2, 4, 32)
    mask = torch.zeros(1, 2, 4, dtype=torch.bool)
    mask[0, 0, :3] = True
    selected = selection(tokens, tokens, mask)
    assert torch.equal(selected[0, :3], selected[0, 3:6])
    assert {tuple(row) for row in selected[0].tolist()} == {tuple(row) for row in tokens[0, 0, :3].tolist()}


# DMTP


def test_published_gates_are_a_third_for_any_input_and_ours_learn_to_differ():
    published = MultiScalePooling(make_config(pooling="published"))
    torch.nn.init.normal_(published.gate.weight, std=5.0)
    gated = Mu2Tokenizer(make_config()).pooling
    spread, flat = torch.randn(1, 16, 32) * 3, torch.randn(1, 1, 32).expand(1, 16, 32)
    for selected in (spread, flat):
        pooled = [torch.nn.functional.avg_pool1d(selected.mT, s).mT for s in (1, 2, 4)]
        torch.testing.assert_close(
            published.gates(selected, pooled), torch.full((1, 3), 1 / 3), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(gated.gates(selected, pooled), torch.full((1, 3), 1 / 3))
    # Train the gates to prefer the fine scale for one input and the coarse one for the other.
    optimizer = torch.optim.Adam(gated.parameters(), lr=1e-2)
    for _ in range(50):
        loss = -gated.gates(spread, [])[0, 0].log() - gated.gates(flat, [])[0, 2].log()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (gated.gates(spread, []) - gated.gates(flat, [])).abs().max() > 0.05


@pytest.mark.parametrize(
    ("pooling", "lengths"), [("gated", [16, 8, 4]), ("fixed", [16, 8, 4]), ("none", [16])]
)
def test_pooling_keeps_the_scale_order(pooling, lengths):
    config = make_config(pooling=pooling, query_sets="shared")
    assert [y.shape[1] for y in MultiScalePooling(config)(torch.randn(1, 16, 32))] == lengths


# TTA


def test_each_head_of_a_visual_token_is_a_convex_mix_of_the_pooled_tokens():
    """Linearity: V' of a head lies in the hull of that head's slice of its scale's gated tokens."""
    tokenizer = make_tokenizer()
    tokens, question = torch.randn(1, 3, 32, 32), torch.randn(1, 5, 48)
    with torch.no_grad():
        pooled = tokenizer.pool(tokens)
        visual = tokenizer.aggregate(tokens, question)
    for queries, scale in zip(visual.split((4, 2, 2), dim=1), pooled):
        heads = scale[0].unflatten(-1, (4, 8)), queries[0].unflatten(-1, (4, 8))
        for head in range(4):
            # Non-negative least squares with a heavy row of ones, so that the weights sum to one.
            corners = np.vstack([heads[0][:, head].T.double().numpy(), np.full(scale.shape[1], 1e3)])
            for point in heads[1][:, head].double().numpy():
                weights, residual = nnls(corners, np.append(point, 1e3))
                assert residual < 1e-4
                assert abs(weights.sum() - 1) < 1e-6


def test_a_query_set_reads_its_own_scale_only():
    tokenizer = make_tokenizer(num_aggregator_layers=1)
    pooled = [torch.randn(1, n, 32) for n in (16, 8, 4)]
    question = torch.randn(1, 3, 32)
    with torch.no_grad():
        before = tokenizer.aggregator(pooled, question)
        after = tokenizer.aggregator([pooled[0], pooled[1], pooled[2] + 1], question)
    assert not torch.allclose(before[:, 6:], after[:, 6:])
    torch.testing.assert_close(before[:, :6], after[:, :6])


def test_an_empty_question_is_no_question():
    tokenizer = make_tokenizer()
    tokens = torch.randn(1, 2, 32, 32)
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    one, other = (tokenizer(tokens, torch.randn(1, 4, 48), question_mask=nothing) for _ in range(2))
    assert torch.isfinite(one).all()
    torch.testing.assert_close(one, other)


# Masks


@pytest.mark.parametrize("selection", ["soft", "topk"])
def test_a_padded_frame_changes_nothing_even_when_it_holds_nan(selection):
    tokenizer = make_tokenizer(selection=selection)
    tokens, question = torch.randn(2, 3, 32, 32), torch.randn(2, 5, 48)
    mask = torch.ones(2, 3, 2, dtype=torch.bool)
    mask[1, 1, 1] = mask[1, 2] = False
    poisoned = tokens.clone()
    poisoned[1, 1, 16:] = float("nan")
    poisoned[1, 2] = float("nan")
    with torch.no_grad():
        padded = tokenizer(poisoned, question, mask)
        alone = tokenizer(poisoned[1:, :2], question[1:], mask[1:, :2])
        full = tokenizer(tokens[:1], question[:1])
    torch.testing.assert_close(padded[1:], alone)
    torch.testing.assert_close(padded[:1], full)


def test_a_study_without_any_anatomy_is_finite():
    tokenizer = make_tokenizer()
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert torch.isfinite(tokenizer(torch.randn(1, 2, 32, 32), torch.randn(1, 5, 48), mask)).all()


# Baselines


def test_the_m3d_form_pools_in_space_and_ignores_the_question():
    tokenizer = make_tokenizer(connector="spatial_pooling", max_frames=1, num_query_tokens=4)
    tokens = torch.randn(1, 1, 32, 32)
    one, other = (tokenizer(tokens, torch.randn(1, 5, 48)) for _ in range(2))
    assert one.shape == (1, 4, 48)
    assert torch.equal(one, other)


def test_refiner_gradient_checkpointing_gives_the_same_gradients():
    tokens = torch.randn(1, 3, 32, 32)
    gradients = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        refiner: SpatioTemporalRefiner = Mu2Tokenizer(make_config()).refiner.train()
        if is_checkpointed:
            for layer in refiner.layers:
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        inputs = tokens.clone().requires_grad_()
        refiner(inputs).square().sum().backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(*gradients)
