"""The value path against the modules it is read from, for every form of the tokenizer."""

import pytest
import torch

from hf_mu2.explain.value_path import trace_values
from tests.tiny import tiny_model

FORMS = {
    "default": {},
    "shared queries": {"query_sets": "shared"},
    "published": {"refiner": "published", "select_from": "refined", "pooling": "published", "position": "1d"},
    "LinVT": {"selection": "topk", "pooling": "fixed", "position": "absolute"},
    "no pooling": {"pooling": "none", "query_sets": "shared"},
    "official": {"projection": "before", "hidden_size": 64, "projector_pool_size": 2, "query_sets": "shared"},
    "official, grid out of order": {
        "projection": "before",
        "hidden_size": 64,
        "projector_pool_size": 2,
        "projector_grid": (4, 4, 2),
        "query_sets": "shared",
    },
}


def study(model, frames=2, length=5):
    """Vision tokens of one volume whose last slab is padding, and a question whose last token is padding."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, frames, 32, config.vision_config.hidden_size, generator=generator)
    question = torch.randn(1, length, config.text_config.hidden_size, generator=generator)
    slab_mask = torch.ones(1, frames, 2, dtype=torch.bool)
    slab_mask[0, -1, -1] = False
    question_mask = torch.ones(1, length, dtype=torch.bool)
    question_mask[0, -1] = False
    return tokens, question, slab_mask, question_mask


@pytest.mark.parametrize("form", FORMS)
def test_the_path_times_the_values_is_what_the_module_computes(form):
    model = tiny_model(tokenizer_config=FORMS[form])
    tokenizer = model.model.mu2_tokenizer
    inputs = study(model)
    path, visual_tokens = trace_values(tokenizer, *inputs)
    composed = path.compose()
    values = path.values.unflatten(-1, (len(composed), -1))
    by_hand = torch.einsum("hqn,nhd->qhd", composed, values).flatten(1)
    with torch.no_grad():
        torch.testing.assert_close(visual_tokens, tokenizer.aggregate(*inputs)[0])
    torch.testing.assert_close(by_hand, visual_tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_contributions_sum_to_the_inner_product_with_the_visual_tokens(form):
    model = tiny_model(tokenizer_config=FORMS[form])
    path, visual_tokens = trace_values(model.model.mu2_tokenizer, *study(model))
    gradients = torch.randn(3, *visual_tokens.shape)
    torch.testing.assert_close(
        path.contributions(gradients).sum(-1), (gradients * visual_tokens).sum((1, 2)), atol=1e-5, rtol=1e-4
    )


def test_pushed_weights_agree_with_the_composed_path():
    model = tiny_model()
    path, _ = trace_values(model.model.mu2_tokenizer, *study(model))
    weights = torch.rand(3, 8)
    torch.testing.assert_close(path.push(weights), weights @ path.compose().mean(dim=0))


def test_padding_is_no_part_of_the_path():
    model = tiny_model()
    path, _ = trace_values(model.model.mu2_tokenizer, *study(model))
    composed = path.compose()
    assert composed[..., -16:].abs().max() == 0 and composed[..., :-16].min() > 0


def test_text_attention_covers_the_question_and_nothing_else():
    model = tiny_model()
    tokens, question, slab_mask, question_mask = study(model)
    path, _ = trace_values(model.model.mu2_tokenizer, tokens, question, slab_mask, question_mask)
    assert path.text_attention.shape == (8, 4)
    torch.testing.assert_close(path.text_attention.sum(1), torch.ones(8))
    empty = torch.zeros_like(question_mask)
    assert trace_values(model.model.mu2_tokenizer, tokens, question, slab_mask, empty)[
        0
    ].text_attention.shape == (8, 0)


def test_patches_pooled_before_the_tokenizer_share_what_their_token_gets():
    model = tiny_model(tokenizer_config=FORMS["official"])
    path, _ = trace_values(model.model.mu2_tokenizer, *study(model))
    assert path.to_patches.shape == (4, 32)
    spread = path.patches(torch.eye(8))
    torch.testing.assert_close(spread.sum((1, 2)), torch.ones(8))
    # The first token of a frame of 2 x 4 x 4 patches holds rows and columns 0 and 1 of both slabs.
    first = spread[0, 0].view(2, 4, 4)
    torch.testing.assert_close(first[:, :2, :2], torch.full((2, 2, 2), 1 / 8))
    assert first[:, 2:].abs().max() == 0 and spread[0, 1].abs().max() == 0


def test_a_tokenizer_that_reads_no_question_is_refused():
    model = tiny_model(
        tokenizer_config={
            "connector": "spatial_pooling",
            "max_frames": 1,
            "num_query_tokens": 4,
        }
    )
    tokens, question, slab_mask, question_mask = study(model, frames=1)
    with pytest.raises(ValueError, match="spatial_pooling"):
        trace_values(model.model.mu2_tokenizer, tokens, question, slab_mask, question_mask)
