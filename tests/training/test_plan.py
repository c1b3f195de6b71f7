"""What a training step needs: planned bytes are those of a real step, and they move the way memory does."""

import json
from dataclasses import replace

import pytest
import torch
from benchmarks.plan import compare

from hf_mu2.training.plan import Memory, Step, flops_per_study, measure, plan_training, shard, study_flops
from tests.tiny import tiny_config, tiny_model

STEP = Step(batch=2, frames=2, length=64, checkpointing=False, autocast=False)


@pytest.fixture(scope="module")
def planned() -> Memory:
    return measure(tiny_config(), STEP)[0]


def test_weights_gradients_and_optimizer_are_those_of_the_model(planned):
    size = sum(parameter.nbytes for parameter in tiny_model().parameters())  # tied weights once
    assert (planned.weights, planned.gradients, planned.optimizer) == (size, size, 2 * size)
    assert planned.peak == 4 * size + planned.activations


def test_planning_leaves_the_configuration_as_it_was():
    config = tiny_config()
    before = config.to_dict()
    measure(config, replace(STEP, stage="align"))
    assert config.to_dict() == before


def test_a_frozen_language_model_has_no_gradients_but_passes_them_on(planned):
    align, parts = measure(tiny_config(), replace(STEP, stage="align"))
    assert align.weights == planned.weights and align.gradients < planned.gradients
    assert parts["language_model"]["trained"] == 0 < parts["connector"]["trained"]
    assert align.activations > 0.3 * planned.activations


def test_activations_grow_with_the_batch_and_with_frames(planned):
    twice = measure(tiny_config(), replace(STEP, batch=4))[0]
    longer = measure(tiny_config(), replace(STEP, frames=16))[0]
    assert 1.5 < twice.activations / planned.activations < 2.5, (twice, planned)
    assert longer.activations > 1.1 * planned.activations, (longer, planned)


def test_checkpointing_needs_less_and_held_gradients_more(planned):
    assert measure(tiny_config(), replace(STEP, checkpointing=True))[0].activations < planned.activations
    assert measure(tiny_config(), replace(STEP, accumulates=True))[0].peak >= planned.peak


def test_a_cached_tower_costs_no_activations(planned):
    frozen = replace(STEP, stage="tokenizer")
    cached = replace(frozen, caches_vision=True)
    assert measure(tiny_config(), cached)[0].activations <= measure(tiny_config(), frozen)[0].activations


def test_an_adapter_trains_little_of_the_language_model():
    memory, parts = measure(tiny_config(), replace(STEP, stage="impression", lora_r=4))
    assert memory.gradients < 0.3 * memory.weights
    assert 0 < parts["language_model"]["trained"] < 0.5 * parts["language_model"]["total"]


def test_engines_share_out_what_they_shard():
    whole = Memory(weights=800, gradients=800, optimizer=1600, activations=100)
    of = {
        name: shard(whole, replace(STEP, engine=name, processes=8), (10, 20))
        for name in ("ddp", "zero2", "zero3", "fsdp2")
    }
    assert of["ddp"].peak == whole.peak + 800
    assert of["zero2"].peak == 800 + 100 + 200 + 100
    assert of["zero3"].peak == 100 + 100 + 200 + 100 + 20
    assert of["fsdp2"].peak == of["zero3"].peak + 20


def test_flops_are_those_of_the_formula_of_a_transformer():
    config = tiny_config()
    vision, text = config.vision_config, config.text_config
    tokens = 2 * 4 * 4 + 1  # patches and the class token
    width, frames = vision.hidden_size, 3
    layer = 2 * tokens * (4 * width**2 + 2 * width * vision.intermediate_size) + 4 * tokens**2 * width
    voxels = vision.num_channels * 4 * 8 * 8
    tower = frames * (vision.num_hidden_layers * layer + 2 * (tokens - 1) * voxels * width)
    length, hidden = 40, text.hidden_size
    heads, kv = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    products = 2 * hidden * heads + 2 * hidden * kv + 3 * hidden * text.intermediate_size
    attention = 4 * length**2 * heads
    head = 2 * (length - config.tokenizer_config.num_query_tokens) * hidden * text.vocab_size
    flops = study_flops(config, frames, length)
    assert flops["tower"] == tower
    assert flops["language_model"] == text.num_hidden_layers * (2 * length * products + attention) + head
    assert flops_per_study(config, frames, length) == 3 * sum(flops.values())


def test_a_row_shorter_than_the_volume_is_refused():
    with pytest.raises(ValueError, match="counts visual tokens too, 8 of them"):
        measure(tiny_config(), replace(STEP, length=10))


def test_an_engine_needs_processes():
    with pytest.raises(ValueError, match="go together"):
        measure(tiny_config(), replace(STEP, engine="fsdp2"))


def test_what_does_not_fit_is_answered_with_what_to_change():
    config = tiny_config()
    small = plan_training(config, STEP, gpu_memory_gb=0.0001)
    assert not small["fits"] and small["largest_batch"] == 0 and "--checkpointing" in small["suggestions"][0]
    large = plan_training(config, STEP, gpu_memory_gb=80)
    assert large["fits"] and large["largest_batch"] > STEP.batch


@pytest.mark.slow
def test_the_largest_batch_fits_and_one_more_does_not():
    facts = plan_training(tiny_config(), STEP, gpu_memory_gb=0.1)
    largest = facts["largest_batch"]
    assert largest > STEP.batch
    peak = [measure(tiny_config(), replace(STEP, batch=largest + more))[0].peak for more in (0, 2)]
    assert peak[0] <= 1.05 * 0.9 * 0.1e9 < peak[1] * 1.05


def test_the_command_prints_its_plan(cli):
    options = ["--preset", "tiny", "--frames", "2", "--length", "96", "--stage", "align", "--batch", "2"]
    facts = json.loads(cli("plan", *options, "--json").out)
    memory = facts["memory_gb"]
    assert facts["fits"] and facts["parameters"]["language_model"]["trained"] == 0
    assert memory["peak"] == pytest.approx(sum(v for k, v in memory.items() if k != "peak"), abs=0.01)


def test_the_command_refuses_a_stage_that_is_none(cli):
    result = cli("plan", "--preset", "tiny", "--stage", "all")
    assert result.code == 2 and "`stage` must be one of" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("size", ["align", "lora"])
def test_planned_peaks_are_within_15_percent_of_measured_ones(size):
    facts = compare(size)
    assert facts["planned"] == pytest.approx(facts["measured"], rel=0.15)


def test_fake_tensors_leave_nothing_behind():
    assert type(torch.zeros(1)) is torch.Tensor
