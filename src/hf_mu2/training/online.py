"""What GRPO and RLOO have in common here: rows with a reference, and rewards by name.

Reads: rows of the view `online`: prompt, `images`, `reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from hf_mu2.scoring import rewards
from hf_mu2.scoring.green_reward import judge_at, make_green_reward
from hf_mu2.scoring.judge_cache import ReplyCache

from .recipe import RecipeArguments
from .trainer import StageTrainer

Reward = Callable[..., Any]
REWARDS: dict[str, Reward] = {
    function.__name__: function
    for function in (
        rewards.label_f1_reward,
        rewards.crg_reward,
        rewards.batch_crg_reward,
        rewards.length_penalty,
        rewards.repetition_penalty,
    )
}


@dataclass
class OnlineArguments(RecipeArguments):
    """What a recipe for GRPO or RLOO says beside the fields of TRL's configurations.

    Args:
        reward_funcs (`list[str]`): Names of [`REWARDS`], `green_reward`, or import paths such as `my_lib.my_reward`;
            TRL's `reward_weights` weighs them in this order.
        judge_url, judge_model, judge_template (`str`, *optional*): Of `green_reward`: the base URL of an
            OpenAI-compatible server, the model it serves, and a file with the judge's prompt. Replies are kept in
            `<output_dir>/judge_replies`.
    """

    view: str = "online"
    reward_funcs: list[str] = field(default_factory=lambda: ["label_f1_reward"])
    judge_url: str | None = None
    judge_model: str | None = None
    judge_template: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_features is not None:
            raise ValueError(
                "GRPO and RLOO of TRL hand on `pixel_values` alone, cached features are none. Remove `cache_features`: "
                "writing completions takes most of a step."
            )


class OnlineTrainer(StageTrainer):
    """What stands before TRL's online trainers: rates per part, and completions that a judge failed on left out."""

    reward_func_names: list[str]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Take all rewards from a completion without GREEN: TRL would count the missing one as 0 in their sum."""
        rewards = super()._calculate_rewards(*args, **kwargs)  # (completions, rewards), of all processes
        for index, name in enumerate(self.reward_func_names):
            if name == "green_reward":
                rewards[rewards[:, index].isnan()] = torch.nan
        return rewards


def find_rewards(arguments: OnlineArguments, output_dir: str | Path) -> list[Reward]:
    """Return the reward functions that a recipe names.

    Raises:
        ValueError: if one is unknown, or the judge of `green_reward` is not named.
    """
    return [_find_reward(name, arguments, Path(output_dir)) for name in arguments.reward_funcs]


def _find_reward(name: str, arguments: OnlineArguments, output_dir: Path) -> Reward:
    if name in REWARDS:
        return REWARDS[name]
    if name == "green_reward":
        if arguments.judge_url is None or arguments.judge_model is None:
            raise ValueError(
                "`green_reward` asks a judge: name its server with `judge_url`, e.g. http://localhost:8000/v1, and the "
                "model it serves with `judge_model`."
            )
        judge = judge_at(arguments.judge_url, arguments.judge_model, arguments.judge_template)
        return make_green_reward(judge, ReplyCache(output_dir / "judge_replies"))
    module, _, function = name.rpartition(".")
    if not module:
        raise ValueError(
            f"A reward is one of {', '.join([*REWARDS, 'green_reward'])} or an import path, got `{name}`. Check the "
            "spelling."
        )
    try:
        return vars(import_module(module))[function]
    except (ImportError, KeyError) as error:
        raise ValueError(
            f"A reward must be a function that can be imported, `{name}` is not ({error}). Give the path from the root "
            "of an installed package or of the working directory."
        ) from error
