"""Stages: what is frozen, trained and adapted, at which rate, and that a reload keeps it."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from hf_mu2.training.stages import (
    LANGUAGE_MODEL,
    PARTS,
    STAGES,
    complete_lora,
    freeze,
    parameter_groups,
    part_of,
    stage_of,
)
from tests.tiny import make_tiny_checkpoint, tiny_model

VOLUME_STAGES = [name for name, stage in STAGES.items() if stage.uses_volumes]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_trains_exactly_the_parts_it_says(name):
    model, stage = tiny_model(), STAGES[name]
    freeze(model, stage)
    trained = {part_of(parameter) for parameter, value in model.named_parameters() if value.requires_grad}
    assert trained == {part for part in PARTS if stage.rate(part) is not None}


def test_every_part_has_its_own_rate_and_no_parameter_is_forgotten():
    model, stage = tiny_model(), stage_of("adapt")
    freeze(model, stage)
    decayed = {name for name, _ in model.named_parameters() if name.endswith("weight")}
    groups = parameter_groups(model, stage, 1e-3, 0.1, decayed)
    rates = {group["part"]: group["lr"] for group in groups}
    assert rates == pytest.approx({"tower": 1e-4, "connector": 2.5e-4, LANGUAGE_MODEL: 1e-3})
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("name", ["align", "tokenizer", "full"])
def test_freezing_survives_a_reload_by_any_trainer(name, tmp_path):
    folder = make_tiny_checkpoint(tmp_path / "start")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    freeze(model, STAGES[name])
    model.save_pretrained(tmp_path / "frozen")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "frozen")
    for (parameter, before), (_, after) in zip(
        model.named_parameters(), again.named_parameters(), strict=True
    ):
        assert before.requires_grad == after.requires_grad, parameter


def test_a_later_stage_thaws_what_an_earlier_one_froze():
    model = tiny_model()
    freeze(model, STAGES["tokenizer"])
    freeze(model, STAGES["full"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config.frozen_modules == []


def test_the_adapter_stays_in_the_language_model_and_carries_the_trained_vision_side():
    peft = pytest.importorskip("peft")
    model, stage = tiny_model(), STAGES["adapt"]
    freeze(model, stage)
    config = complete_lora(peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), model, stage)
    adapted = peft.get_peft_model(model, config)
    adapters = [name for name, _ in adapted.named_parameters() if "lora_" in name]
    assert adapters and all(".language_model." in name for name in adapters)
    trained = {part_of(name) for name, value in adapted.named_parameters() if value.requires_grad}
    assert trained == set(PARTS)
    assert config.modules_to_save == ["model.mu2_tokenizer", "model.vision_tower"]


def test_lora_on_layers_that_are_not_there_is_refused():
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match="must name linear layers of the language model"):
        complete_lora(peft.LoraConfig(target_modules=["query_key_value"]), tiny_model(), STAGES["adapt"])


def test_a_stage_that_trains_nothing_is_refused():
    with pytest.raises(ValueError, match="must train something"):
        freeze(torch.nn.Linear(2, 2), STAGES["tokenizer"])


def test_an_unknown_stage_is_refused_by_name():
    with pytest.raises(ValueError, match="got `sft`"):
        stage_of("sft")
