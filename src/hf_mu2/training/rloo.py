"""RLOO (https://huggingface.co/papers/2402.14740): TRL's trainer, with a learning rate per part of the model."""

from typing import Any

from trl import RLOOConfig, RLOOTrainer

from .online import OnlineArguments, OnlineTrainer, find_rewards
from .recipe import Objective


class StageRLOOTrainer(OnlineTrainer, RLOOTrainer):
    """TRL's `RLOOTrainer` with what [`~hf_mu2.training.online.OnlineTrainer`] adds; everything else is inherited."""


def make_trainer(arguments: OnlineArguments, args: RLOOConfig, **options: Any) -> StageRLOOTrainer:
    """Make the trainer of a recipe."""
    rewards = find_rewards(arguments, args.output_dir)
    return StageRLOOTrainer(args=args, reward_funcs=rewards, **options)


OBJECTIVE = Objective(OnlineArguments, RLOOConfig, make_trainer)
