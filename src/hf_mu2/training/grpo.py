"""GRPO (https://huggingface.co/papers/2402.03300): TRL's trainer, with a learning rate per part of the model."""

from typing import Any

from trl import GRPOConfig, GRPOTrainer

from .online import OnlineArguments, OnlineTrainer, find_rewards
from .recipe import Objective


class StageGRPOTrainer(OnlineTrainer, GRPOTrainer):
    """TRL's `GRPOTrainer` with what [`~hf_mu2.training.online.OnlineTrainer`] adds; everything else is inherited."""


def make_trainer(arguments: OnlineArguments, args: GRPOConfig, **options: Any) -> StageGRPOTrainer:
    """Make the trainer of a recipe."""
    rewards = find_rewards(arguments, args.output_dir)
    return StageGRPOTrainer(args=args, reward_funcs=rewards, **options)


OBJECTIVE = Objective(OnlineArguments, GRPOConfig, make_trainer)
