"""GREEN as a reward for TRL: the judge is asked while the trainer goes on with its other rewards.

`trl grpo --reward_funcs hf_mu2.scoring.green_reward.green_reward ...` finds its judge in the environment:

    HF_MU2_JUDGE_URL       base URL of an OpenAI-compatible server, e.g. http://localhost:8000/v1
    HF_MU2_JUDGE_MODEL     the model to ask for
    HF_MU2_JUDGE_TEMPLATE  file with the judge's prompt; that of the `radeval` package, if unset
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from .green import Judge, Pair, judge_pairs, load_template
from .hygiene import is_chinese
from .judge_backends import EndpointBackend
from .judge_cache import ReplyCache
from .rewards import Completion, completion_text

logger = logging.getLogger(__name__)
GreenReward = Callable[..., Awaitable[list[float | None]]]


def make_green_reward(judge: Judge, cache: ReplyCache | None = None) -> GreenReward:
    """Make a reward of a judge.

    Args:
        judge (`Judge`): Its endpoint must allow what the rows' `egress` says of their texts.
        cache (`ReplyCache`, *optional*): Keeps replies; equal reports are judged once in a training.

    Returns:
        An asynchronous function for `reward_funcs`. A completion that the judge did not answer, or whose answer could
        not be read in full, gets `None`: TRL leaves it out, where a 0 would punish it for the judge's failure. One
        that says nothing gets 0 and is not sent.
    """
    replies = ReplyCache() if cache is None else cache

    async def green_reward(
        completions: Sequence[Completion],
        reference: Sequence[str],
        egress: Sequence[bool | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Reward the GREEN of each report, from 0 to 1."""
        texts = [completion_text(completion) for completion in completions]
        marks = [None] * len(texts) if egress is None else egress
        said = [bool(text) and not is_chinese(text) for text in texts]
        pairs = [
            Pair(theirs, mine, mark)
            for mine, theirs, mark, spoke in zip(texts, reference, marks, said, strict=True)
            if spoke
        ]
        scores: list[float | None] = [None] * len(pairs)
        try:
            results = await judge_pairs(pairs, judge, replies)
            scores = [result.score if result.status == "ok" else None for result in results]
        except ConnectionError as error:
            logger.warning("No GREEN reward in this step: %s", error)
        if log_metric is not None and pairs:
            log_metric("green_unanswered", scores.count(None) / len(scores))
        answered = iter(scores)
        return [next(answered) if spoke else 0.0 for spoke in said]

    return green_reward


def judge_at(url: str, model: str, template: str | Path | None = None) -> Judge:
    """Return the judge behind an OpenAI-compatible server; see [`~hf_mu2.scoring.green.load_template`]."""
    return Judge(EndpointBackend(url, model), load_template(template))


async def green_reward(
    completions: Sequence[Completion], reference: Sequence[str], **columns: Any
) -> list[float | None]:
    """Reward GREEN by the judge that the environment names; see [`make_green_reward`].

    Raises:
        ValueError: if the environment names none.
    """
    return await _reward_of_environment()(completions, reference, **columns)


@lru_cache(maxsize=1)
def _reward_of_environment() -> GreenReward:
    url, model, template = (os.environ.get(f"HF_MU2_JUDGE_{name}") for name in ("URL", "MODEL", "TEMPLATE"))
    if not url or not model:
        raise ValueError(
            "GREEN as a reward asks a judge: set `HF_MU2_JUDGE_URL` to the server's base URL, e.g. "
            "http://localhost:8000/v1, and `HF_MU2_JUDGE_MODEL` to the model it serves. Got "
            f"{'no URL' if not url else 'no model'}."
        )
    return make_green_reward(judge_at(url, model, template))
