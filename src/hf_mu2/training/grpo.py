"""GRPO (https://huggingface.co/papers/2402.03300): TRL's trainer, with a learning rate per part of the model."""

from typing import Any

from trl import GRPOConfig, GRPOTrainer

from .online import OnlineArguments, find_rewards
from .recipe import Objective
from .trainer import StageTrainer


class StageGRPOTrainer(StageTrainer, GRPOTrainer):
    """TRL's `GRPOTrainer` whose parameter groups follow a stage; everything else is inherited."""


def make_trainer(arguments: OnlineArguments, args: GRPOConfig, **options: Any) -> StageGRPOTrainer:
    """Make the trainer of a recipe."""
    rewards = find_rewards(arguments, args.output_dir)
    return StageGRPOTrainer(args=args, reward_funcs=rewards, **options)


OBJECTIVE = Objective(OnlineArguments, GRPOConfig, make_trainer)
