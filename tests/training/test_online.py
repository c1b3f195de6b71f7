"""GRPO and RLOO: rewards by name, rates per part, losses that depend on the volume."""

import asyncio
import json
import threading
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_mu2.scoring import rewards
from hf_mu2.training.online import REWARDS, OnlineArguments, find_rewards
from hf_mu2.training.recipe import objective_of, with_paths
from hf_mu2.training.stages import STAGES, freeze, part_of
from tests.scoring.judge_server import TEMPLATE, JudgeServer
from tests.tiny import make_tiny_checkpoint
from tests.training.rows import write_online_folder

COMMON = {
    "max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8,
    "learning_rate": 1e-2, "lr_scheduler_type": "constant", "beta": 0.1, "report_to": "none", "use_cpu": True,
    "bf16": False, "save_strategy": "no", "logging_steps": 1, "gradient_checkpointing": False, "disable_tqdm": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("online") / "checkpoint")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_online_folder(tmp_path_factory.mktemp("online") / "data", 3)


def num_letters(completions, **columns) -> list[float]:
    """Reward random models for something that they do differ in."""
    return [float(sum(map(str.isalpha, completion[0]["content"]))) for completion in completions]


@pytest.fixture(params=["grpo", "rloo"])
def trainer(request, checkpoint, data, tmp_path):
    torch.manual_seed(0)
    objective, stage = objective_of(request.param), STAGES["adapt"]
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    freeze(model, stage)
    arguments = OnlineArguments(reward_funcs=["repetition_penalty", f"{__name__}.num_letters"])
    return objective.make_trainer(
        arguments=arguments,
        model=model,
        args=objective.config(str(tmp_path), **COMMON),
        train_dataset=with_paths(load_dataset(str(data), split="train")),
        processing_class=AutoProcessor.from_pretrained(checkpoint),
        stage=stage,
    )


def test_a_step_moves_every_part_at_its_own_rate_and_logs_each_reward(trainer):
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert {group["part"]: group["lr"] for group in trainer.optimizer.param_groups} == {
        "tower": pytest.approx(1e-3), "connector": pytest.approx(2.5e-3), "language_model": pytest.approx(1e-2)
    }  # fmt: skip
    moved = {
        part_of(name)
        for name, value in trainer.model.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert moved == {"tower", "connector", "language_model"}
    logged = trainer.state.log_history[0]
    assert logged["rewards/num_letters/mean"] > 0 and "rewards/repetition_penalty/mean" in logged


def test_another_volume_gives_another_loss(trainer):
    with (
        torch.no_grad()
    ):  # else the policy is its reference, and all completions are as likely as when written
        for parameter in trainer.model.model.language_model.layers.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # as `train` does
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    losses = [
        trainer.compute_loss(trainer.model, {**batch, "pixel_values": volumes}).item()
        for volumes in (batch["pixel_values"], batch["pixel_values"].flip(1))
    ]
    assert losses[0] != losses[1]


def test_a_completion_that_the_judge_failed_on_has_no_part_in_the_step(trainer):
    """In a sum of rewards the missing one would else count as 0."""

    async def green_reward(completions, **columns):
        return [None, 0.2, 0.4, 0.9]

    trainer.reward_funcs[0], trainer.reward_func_names[0] = green_reward, "green_reward"
    trainer.async_loop = asyncio.new_event_loop()
    threading.Thread(target=trainer.async_loop.run_forever, daemon=True).start()
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.async_loop.call_soon_threadsafe(trainer.async_loop.stop)
    assert (batch["advantages"] == 0).sum() == 1  # TRL has shuffled them


def test_rewards_are_found_by_name_or_path(tmp_path):
    names = ["label_f1_reward", "hf_mu2.scoring.rewards.repetition_penalty"]
    assert find_rewards(OnlineArguments(reward_funcs=names), tmp_path) == [
        rewards.label_f1_reward,
        rewards.repetition_penalty,
    ]
    written = {name for name in vars(rewards) if name.endswith(("_reward", "_penalty"))}
    assert set(REWARDS) == written


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("label_f1", "Check the spelling"),
        ("hf_mu2.scoring.rewards.f1", "can be imported"),
        ("no_such_package.reward", "can be imported"),
        ("green_reward", "judge_url"),
    ],
)
def test_a_reward_that_is_not_there_is_refused(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        find_rewards(OnlineArguments(reward_funcs=[name]), tmp_path)


def test_cached_features_are_refused():
    with pytest.raises(ValueError, match="Remove `cache_features`"):
        OnlineArguments(stage="tokenizer", cache_features="features")


def test_a_recipe_trains_against_a_judge(cli, checkpoint, data, tmp_path):
    """It evaluates and watches the volume; replies of the judge are kept beside the run."""
    template, recipe = tmp_path / "template.txt", tmp_path / "recipe.json"
    template.write_text(TEMPLATE)
    with JudgeServer() as judge:
        fields = {
            "objective": "grpo", "model_name_or_path": str(checkpoint), "dataset_name": str(data), "stage": "tokenizer",
            "output_dir": str(tmp_path / "out"), "reward_funcs": ["green_reward", "length_penalty"],
            "reward_weights": [1.0, 0.2], "judge_url": judge.url, "judge_model": "scripted",
            "judge_template": str(template), "eval_split": "train", "eval_strategy": "steps", "eval_steps": 1,
            "max_eval_studies": 2, "monitor_studies": 2, "per_device_eval_batch_size": 4, **COMMON,
        }  # fmt: skip
        recipe.write_text(json.dumps(fields))  # JSON is YAML
        result = cli("train", recipe)
        assert result.code == 0, result.err
        assert judge.asked
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {"eval_rewards/green_reward/mean", "eval_image_dependence"} <= set(record["evaluation"])
    assert record["evaluation"]["eval_green_unanswered"] == 0
    assert list((tmp_path / "out" / "judge_replies").glob("*.jsonl"))
