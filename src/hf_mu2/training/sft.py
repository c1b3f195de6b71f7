"""Supervised fine-tuning: TRL's trainer with a learning rate per part of the model."""

from typing import Any

from trl import SFTConfig, SFTTrainer

from .recipe import Objective, RecipeArguments
from .trainer import StageTrainer


class StageSFTTrainer(StageTrainer, SFTTrainer):
    """TRL's `SFTTrainer` whose parameter groups follow a stage; everything else is inherited."""


def make_trainer(arguments: RecipeArguments, **options: Any) -> StageSFTTrainer:
    """Make the trainer of a recipe."""
    return StageSFTTrainer(**options)


OBJECTIVE = Objective(RecipeArguments, SFTConfig, make_trainer)
