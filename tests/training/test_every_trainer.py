"""In each stage and trainer: what is trained moves, what is frozen does not, and the loss depends on the volume."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from hf_mu2.training.dpo import StageDPOTrainer
from hf_mu2.training.sft import StageSFTTrainer
from hf_mu2.training.stages import STAGES, freeze, part_of
from hf_mu2.training.trainer import StageTrainer
from tests.tiny import make_tiny_checkpoint
from tests.training.rows import turns, write_sft_folder

VOLUME_STAGES = ["tokenizer", "align", "adapt", "full"]
COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "adam_epsilon": 1e-20,  # faint gradients move weights, too
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "remove_unused_columns": False,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("trainers") / "checkpoint")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Dataset:
    folder = write_sft_folder(tmp_path_factory.mktemp("trainers") / "data", 4)
    return load_dataset(str(folder), split="train")


def make_trainer(kind: str, model, processor, rows: Dataset, out: Path, stage=None):
    """Make a trainer of TRL or transformers, with a stage or as it comes."""
    extra = {} if stage is None else {"stage": stage}
    if kind == "transformers":
        collator = DataCollatorForVisionLanguageModeling(processor, max_length=512, completion_only_loss=True)
        arguments = TrainingArguments(str(out), **COMMON)
        made = Trainer if stage is None else StageTrainer
        return made(model=model, args=arguments, train_dataset=rows, data_collator=collator, **extra)
    if kind == "sft":
        arguments = SFTConfig(str(out), max_length=512, **COMMON)
        made = SFTTrainer if stage is None else StageSFTTrainer
        return made(model=model, args=arguments, train_dataset=rows, processing_class=processor, **extra)
    if kind == "kto":
        arguments = KTOConfig(str(out), max_length=512, **COMMON)
        labelled = rows.add_column("label", [i % 2 == 0 for i in range(len(rows))])
        return KTOTrainer(model=model, args=arguments, train_dataset=labelled, processing_class=processor)
    pairs = rows.map(
        lambda row: {"chosen": row["completion"], "rejected": turns("assistant", "Findings: none at all.")},
        remove_columns=["completion"],
        features=None,
    )
    pairs = pairs.cast_column("images", rows.features["images"])
    arguments = DPOConfig(str(out), max_length=512, **COMMON)
    made = DPOTrainer if stage is None else StageDPOTrainer
    return made(model=model, args=arguments, train_dataset=pairs, processing_class=processor, **extra)


@pytest.mark.parametrize("name", VOLUME_STAGES)
@pytest.mark.parametrize("kind", ["transformers", "sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_what_is_trained_moves_and_what_is_frozen_does_not(kind, name, checkpoint, rows, tmp_path):
    model, processor = (
        auto.from_pretrained(checkpoint) for auto in (AutoModelForImageTextToText, AutoProcessor)
    )
    stage = STAGES[name]
    freeze(model, stage)
    before = {key: value.clone() for key, value in model.named_parameters()}
    make_trainer(kind, model, processor, rows, tmp_path, stage).train()
    for key, value in model.named_parameters():
        is_trained = stage.rate(part_of(key)) is not None
        assert torch.equal(value.cpu(), before[key]) != is_trained, f"{key} in {name}"


@pytest.mark.parametrize("kind", ["transformers", "sft", "dpo", "stage dpo", "kto"])
def test_the_loss_changes_with_the_volume(kind, checkpoint, rows, tmp_path):
    """Also with TRL's fused head, which calls the base model and not the whole; test_online.py has GRPO and RLOO."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    losses = []
    for order in ([0, 1, 2, 3], [1, 0, 3, 2]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_pretrained(checkpoint)
        if kind in (
            "dpo",
            "stage dpo",
            "kto",
        ):  # the trainer loads its reference from the checkpoint: let the policy differ
            with torch.no_grad():
                model.lm_head.weight.mul_(1.5)
        images = rows.select(order)
        moved = rows.remove_columns("images").add_column(
            "images", images.with_format("arrow")["images"], feature=rows.features["images"]
        )
        stage = STAGES["full"] if kind == "stage dpo" else None
        trainer = make_trainer(kind, model, processor, moved, tmp_path / str(order[0]), stage)
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            losses.append(trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).item())
    assert losses[0] != losses[1]
