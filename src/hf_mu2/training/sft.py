"""Supervised fine-tuning: TRL's trainer with a learning rate per part of the model."""

from trl import SFTTrainer

from .trainer import StageTrainer


class StageSFTTrainer(StageTrainer, SFTTrainer):
    """TRL's `SFTTrainer` whose parameter groups follow a stage; everything else is inherited."""
