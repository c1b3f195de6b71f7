"""Soft prompts against text: nearest words, norms, spread and who looks at them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_mu2.explain.forced import ForcedAnswer, force_answer
from hf_mu2.explain.soft_prompts import analyse_forced, describe_spread
from hf_mu2.reporting.inference import load_reader
from tests.tiny import tiny_volume

QUESTION, ANSWER = "Is the heart large?", "The heart is large."


@pytest.fixture(scope="module")
def forced(checkpoint):
    return force_answer(load_reader(checkpoint, "cpu"), tiny_volume(), QUESTION, ANSWER)


def test_a_soft_prompt_that_is_a_word_is_nearest_to_it(forced, monkeypatch):
    words = forced.reader.model.get_input_embeddings().weight.detach()
    chosen = forced.reader.processor.tokenizer.convert_tokens_to_ids(list("abcdefgh"))
    monkeypatch.setattr(ForcedAnswer, "soft_prompts", lambda self, states: 3 * words[chosen][None])
    found = analyse_forced(forced)
    assert [pairs[0][0] for pairs in found.nearest] == list("abcdefgh")
    assert all(pairs[0][1] == pytest.approx(1, abs=1e-3) for pairs in found.nearest)
    np.testing.assert_allclose(found.norms, 3 * words[chosen].norm(dim=-1), rtol=1e-4)


def test_attention_shares_are_those_of_the_model(forced):
    found = analyse_forced(forced)
    model = forced.reader.model
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            layers = model(**forced.inputs, output_attentions=True).attentions
    finally:
        model.set_attn_implementation("sdpa")
    is_image, count = forced.is_image[0], forced.num_answer_tokens
    for layer, shares in zip(layers, found.attention):
        rows = layer[0][:, -count - 1 : -1]
        np.testing.assert_allclose(shares, rows[..., is_image].sum(-1).mean(-1), rtol=1e-4)
    positions = torch.arange(len(is_image) - count, len(is_image))  # a position sees itself and all before
    assert found.even_share == pytest.approx(float((is_image.sum() / positions).mean()), rel=1e-5)
    assert forced.reader.model.model.language_model.config._attn_implementation == "sdpa"


def test_spread_tells_a_bundle_from_a_collapsed_set():
    orthogonal = describe_spread(torch.eye(8))
    assert orthogonal.distance == pytest.approx(1) and orthogonal.effective_rank == pytest.approx(7, rel=1e-3)
    collapsed = describe_spread(torch.ones(8, 8) + 1e-6 * torch.eye(8)[:1])
    assert collapsed.distance == pytest.approx(0, abs=1e-4) and collapsed.effective_rank < 1.5


def test_tables_and_plot_are_written(forced, tmp_path):
    found = replace(analyse_forced(forced), nearest=[[("|", 1.0)]] * 8)
    files = found.save(tmp_path)
    record = json.loads(files["json"].read_text())
    assert next(iter(record)) == "notice"
    assert np.shape(record["attention_on_soft_prompts"]) == (2, 4)
    table = files["md"].read_text()
    rows = [line for line in table.splitlines() if line.startswith("| 0 |")]
    assert len({line.count("|") for line in rows}) == 2  # a token that is a bar breaks no row
    assert files["png"].read_bytes().startswith(b"\x89PNG")
