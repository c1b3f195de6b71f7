"""RLOO (https://huggingface.co/papers/2402.14740): TRL's trainer, with a learning rate per part of the model."""

from typing import Any

from trl import RLOOConfig, RLOOTrainer

from .online import OnlineArguments, find_rewards
from .recipe import Objective
from .trainer import StageTrainer


class StageRLOOTrainer(StageTrainer, RLOOTrainer):
    """TRL's `RLOOTrainer` whose parameter groups follow a stage; everything else is inherited."""


def make_trainer(arguments: OnlineArguments, args: RLOOConfig, **options: Any) -> StageRLOOTrainer:
    """Make the trainer of a recipe."""
    rewards = find_rewards(arguments, args.output_dir)
    return StageRLOOTrainer(args=args, reward_funcs=rewards, **options)


OBJECTIVE = Objective(OnlineArguments, RLOOConfig, make_trainer)
