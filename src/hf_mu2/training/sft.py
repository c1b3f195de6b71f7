"""Supervised fine-tuning: TRL's trainer with a learning rate per part of the model."""

from typing import Any

from trl import SFTConfig, SFTTrainer

from .evidence_loss import EvidenceLossTrainer
from .recipe import Objective, RecipeArguments
from .trainer import StageTrainer


class StageSFTTrainer(EvidenceLossTrainer, StageTrainer, SFTTrainer):
    """TRL's `SFTTrainer` whose parameter groups follow a stage, with an evidence loss where one is asked for."""


def make_trainer(arguments: RecipeArguments, **options: Any) -> StageSFTTrainer:
    """Make the trainer of a recipe."""
    return StageSFTTrainer(evidence_weight=arguments.evidence_weight, **options)


OBJECTIVE = Objective(RecipeArguments, SFTConfig, make_trainer)
