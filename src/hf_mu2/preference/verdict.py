"""Compare a model before and after it was optimised against a judge, and say whether more than the judge's score moved.

Reads: sums per report of both models on the same studies, as `scoring/resampling.py` takes them.
Writes: nothing.

A judge that was optimised against is no witness any more (Gao et al., https://huggingface.co/papers/2210.10760): its
gain is believed where a measure that nobody optimised gains too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from hf_mu2.scoring.resampling import Columns, Scores, bootstrap, interval, paired_randomisation, total

Verdict = Literal["gain", "mixed", "reward hacking", "no difference", "loss"]
LEVEL = 0.95


@dataclass(frozen=True)
class Change:
    """How a measure differs between two models on the same patients.

    Args:
        before, after (`float`): Its value; `nan` where nothing can be said.
        low, high (`float`): 95 % interval of the difference, over patients.
        p (`float`): Of the two-sided paired randomisation test.
        draws (`np.ndarray`): The difference in each resample.
    """

    before: float
    after: float
    low: float
    high: float
    p: float
    draws: np.ndarray

    @property
    def difference(self) -> float:
        return self.after - self.before

    def direction(self, level: float = LEVEL) -> int:
        """Return 1 if the interval of the difference lies above 0, -1 below, 0 if it holds 0 or is not defined."""
        low, high = interval(self.draws, level)
        return int(low > 0) - int(high < 0)


def compare(
    before: Columns,
    after: Columns,
    patients: Sequence[str],
    scores: Scores,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Change]:
    """Compare two models on the same studies, every resample drawing the same patients for both.

    Args:
        before, after (`Columns`): Statistics of shape `(reports, width)`, reports in the same order.
        patients (`Sequence[str]`): The patient of each report.
        scores (`Callable`): Turns sums into scores.
    """
    resampled = [
        bootstrap(columns, patients, scores, num_resamples=num_resamples, seed=seed)
        for columns in (before, after)
    ]
    own = [scores(total(columns)) for columns in (before, after)]
    p = paired_randomisation(before, after, patients, scores, num_shuffles=num_resamples, seed=seed)
    changes = {}
    for name in own[0]:
        draws = resampled[1][name] - resampled[0][name]
        low, high = interval(draws, LEVEL)
        changes[name] = Change(float(own[0][name]), float(own[1][name]), low, high, p[name], draws)
    return changes


def judge_gain(judge: Change, unoptimised: Mapping[str, Change]) -> tuple[Verdict, str]:
    """Say what the optimisation did, in a word and in a sentence.

    `unoptimised` holds measures of which more is better. With several of them one will move by chance, so each is held
    to an interval of level 1 - 0.05 / n.

    - `"no difference"`: the interval of the judge's difference holds 0;
    - `"loss"`: it lies below 0;
    - `"reward hacking"`: it lies above 0, and no unoptimised measure has gained;
    - `"gain"`: it lies above 0, one of them has gained and none has lost; `"mixed"`: others have lost.
    """
    level = 1 - (1 - LEVEL) / max(len(unoptimised), 1)
    directions = {name: change.direction(level) for name, change in unoptimised.items()}
    up = [name for name, direction in directions.items() if direction > 0]
    down = [name for name, direction in directions.items() if direction < 0]
    fallen = f"; {_listed(down)} fell" if down else ""
    of_judge = judge.direction()
    if of_judge == 0:
        return "no difference", f"The judge's score moved by less than its interval{fallen}."
    if of_judge < 0:
        return "loss", f"The judge's own score fell{fallen}."
    if not up:
        return (
            "reward hacking",
            f"Only the judge's score rose, and no measure that was not optimised{fallen}.",
        )
    if down:
        return "mixed", f"The judge's score rose, and so did {_listed(up)}{fallen}."
    return "gain", f"The judge's score rose, and so did {_listed(up)}; nothing measured fell."


def to_json(changes: Mapping[str, Change]) -> dict[str, dict[str, Any]]:
    """Return the numbers without the resamples; what is not defined is `None`."""
    found = {}
    for name, change in changes.items():
        facts = {key: value for key, value in asdict(change).items() if key != "draws"}
        facts["difference"] = change.difference
        found[name] = {key: value if np.isfinite(value) else None for key, value in facts.items()}
    return found


def to_markdown(changes: Mapping[str, Change], judge: str) -> str:
    """Write a table, the judge first."""
    lines = ["| measure | before | after | difference (95 %) | p |", "|---|---|---|---|---|"]
    for name in (judge, *(other for other in changes if other != judge)):
        change = changes[name]
        shown = f"**{name}** (the judge)" if name == judge else name
        if not np.isfinite(change.difference):
            lines.append(f"| {shown} | - | - | - | - |")
            continue
        form = ".1f" if abs(change.before) >= 10 else ".3f"
        numbers = f"{change.before:{form}} | {change.after:{form}} | {change.difference:+{form}}"
        lines.append(
            f"| {shown} | {numbers} ({change.low:+{form}} to {change.high:+{form}}) | {change.p:.3f} |"
        )
    return "\n".join(lines) + "\n"


def means(names: Sequence[str]) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Make the scores of columns that hold (sum, count): each is its mean, `nan` where there is nothing to count."""

    def scores(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        for name in names:
            numerator, count = sums[name][..., 0], sums[name][..., 1]
            found[name] = np.divide(
                numerator, count, out=np.full(np.shape(numerator), np.nan), where=count > 0
            )
        return found

    return scores


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
