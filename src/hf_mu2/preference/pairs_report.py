"""Describe a set of preference pairs: does length give the answer away, what do the chosen reports have right, how wide
are the margins.

Reads: nothing; pairs are handed over as they are written.
Writes: `pairs.json`, `pairs.md` and `pairs.png` in one folder.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from hf_mu2.files import replace_file, replace_text
from hf_mu2.scoring.findings import read_findings
from hf_mu2.scoring.green_parse import CATEGORIES
from hf_mu2.scoring.labels import LABELS
from hf_mu2.scoring.resampling import bootstrap, interval

from .pairs_filters import count_words, why_filtered
from .pairs_folder import Couple, total_of

BLUE, ORANGE, GREY, INK = "#1b6ca8", "#c8553d", "#b8c0c8", "#1f2933"
_CHANGES = ("found", "missed", "false_alarm_avoided", "false_alarm")


@lru_cache(maxsize=64)  # a reference, and a candidate in several pairs, is read once
def _labels(text: str) -> np.ndarray:
    return read_findings(text).labels


class Statistics:
    """What is counted of pairs, by their source."""

    def __init__(self) -> None:
        self.columns: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        self.judged: Counter[str] = Counter()
        # Significant errors of chosen and of rejected reports, by category of GREEN.
        self.errors: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((2, len(CATEGORIES)), dtype=int))
        self.labels: dict[str, np.ndarray] = defaultdict(
            lambda: np.zeros((len(LABELS), len(_CHANGES)), dtype=int)
        )

    def add(self, couple: Couple) -> None:
        """Count one pair."""
        reference, chosen, rejected = (
            text or "" for text in (couple.row["reference"], couple.chosen["text"], couple.rejected["text"])
        )
        columns, source = self.columns[couple.source], couple.source
        columns["patient"].append(couple.patient_id)
        columns["study"].append(couple.row["study_id"])
        for name, text, candidate in (
            ("chosen", chosen, couple.chosen),
            ("rejected", rejected, couple.rejected),
        ):
            score = total_of(candidate)
            columns[f"{name}_words"].append(count_words(text))
            columns[f"{name}_score"].append(np.nan if score is None else score)
        judged = [candidate.get("judge") or {} for candidate in (couple.chosen, couple.rejected)]
        if all(reading.get("status") == "ok" for reading in judged):
            errors = [[reading["significant"][name] or 0 for name in CATEGORIES] for reading in judged]
            self.judged[source] += 1
            self.errors[source] += np.array(errors)
        truth, right, wrong = (_labels(text) for text in (reference, chosen, rejected))
        positive, negative = truth == 1, truth == 0
        gains = [
            positive & (right == 1) & (wrong != 1),
            positive & (right != 1) & (wrong == 1),
            negative & (right != 1) & (wrong == 1),
            negative & (right == 1) & (wrong != 1),
        ]
        self.labels[source] += np.stack(gains, axis=1)

    def summary(self) -> dict[str, Any]:
        """Summarise every source, ready for JSON."""
        return {"sources": {source: self._summarise(source) for source in self.columns}}

    def _summarise(self, source: str) -> dict[str, Any]:
        columns = {name: np.array(values) for name, values in self.columns[source].items()}
        words = np.stack([columns["chosen_words"], columns["rejected_words"]], axis=1).astype(float)
        difference = words[:, 0] - words[:, 1]
        unequal = difference != 0
        sums = {
            "difference": difference[:, None],
            "pairs": np.ones((len(words), 1)),
            "longer": (difference > 0)[:, None].astype(float),
            "unequal": unequal[:, None].astype(float),
        }

        def rates(total: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            with np.errstate(invalid="ignore", divide="ignore"):
                return {
                    "difference": total["difference"][..., 0] / total["pairs"][..., 0],
                    "longer": total["longer"][..., 0] / total["unequal"][..., 0],
                }

        drawn = bootstrap(sums, columns["patient"].tolist(), rates, num_resamples=1000, seed=0)
        found = rates({name: column.sum(axis=0) for name, column in sums.items()})
        return {
            "pairs": len(words),
            "studies": len(set(columns["study"])),
            "patients": len(set(columns["patient"])),
            "chosen_words": float(words[:, 0].mean()),
            "rejected_words": float(words[:, 1].mean()),
            "length_difference": _with_interval(found["difference"], drawn["difference"]),
            "chosen_longer_share": _with_interval(found["longer"], drawn["longer"]),
            "margin": _distribution(columns["chosen_score"] - columns["rejected_score"]),
            "chosen_score": _distribution(columns["chosen_score"]),
            "rejected_score": _distribution(columns["rejected_score"]),
            "green_errors": {
                name: {"chosen": float(chosen), "rejected": float(rejected)}
                for name, (chosen, rejected) in zip(
                    CATEGORIES.values(), self.errors[source].T / max(self.judged[source], 1)
                )
            }
            if self.judged[source]
            else None,
            "labels": {
                label: dict(zip(_CHANGES, map(int, counts)))
                for label, counts in zip(LABELS, self.labels[source])
            },
        }


def write_report(
    folder: Path, summary: Mapping[str, Any], statistics: Statistics, *, with_figure: bool = True
) -> None:
    """Write the summary as JSON, Markdown and picture.

    Raises:
        ImportError: if a figure is wanted and matplotlib is not installed.
    """
    replace_text(folder / "pairs.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    replace_text(folder / "pairs.md", to_markdown(summary))
    if with_figure:
        replace_file(folder / "pairs.png", draw_pairs(summary, statistics))


def to_markdown(summary: Mapping[str, Any]) -> str:
    """Write the summary for people."""
    account = summary["account"]
    lines = [
        "# Preference pairs",
        "",
        f"Scores: `{summary['signature']}`",
        "",
        "| what | how many |",
        "|---|---|",
    ]
    lines += [f"| studies | {account['studies']:,} |", f"| candidates | {account['candidates']:,} |"]
    for name, count in account["filtered"].items():
        lines.append(f"| candidates taken by `{name}`: {why_filtered(name)} | {count:,} |")
    for reason, count in [*account["without_pair"].items(), *account["notes"].items()]:
        lines.append(f"| studies: {reason} | {count:,} |")
    for source, facts in summary["sources"].items():
        length, longer = facts["length_difference"], facts["chosen_longer_share"]
        lines += ["", f"## {source}", "", "| what | value |", "|---|---|"]
        lines.append(f"| pairs of studies | {facts['pairs']:,} of {facts['studies']:,} |")
        lines.append(
            f"| words, chosen and rejected | {facts['chosen_words']:.1f}, {facts['rejected_words']:.1f} |"
        )
        lines.append(f"| chosen longer by, words | {_shown(length, '+.1f')} |")
        lines.append(f"| share of pairs whose chosen is the longer | {_shown(longer, '.2f')} |")
        for name in ("margin", "chosen_score", "rejected_score"):
            if facts[name] is not None:
                quartiles = ", ".join(f"{facts[name][key]:.2f}" for key in ("low", "median", "high"))
                lines.append(
                    f"| {name.replace('_', ' ')}: mean; quartiles | {facts[name]['mean']:.3f}; {quartiles} |"
                )
        lines += [
            "",
            "| finding | found | missed | false alarm avoided | false alarm |",
            "|---|---|---|---|---|",
        ]
        for label, counts in facts["labels"].items():
            lines.append(f"| {label} | " + " | ".join(str(counts[name]) for name in _CHANGES) + " |")
    lines += [
        "",
        "What the chosen report has that the rejected one has not, in pairs. Intervals: 95 %, over patients.",
    ]
    return "\n".join(lines) + "\n"


def draw_pairs(summary: Mapping[str, Any], statistics: Statistics) -> bytes:
    """Draw margins, lengths and findings of the sampled pairs (of the first source, where there are none) as PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Drawing needs matplotlib: pip install "hf_mu2[report]"') from error

    source = "sampled" if "sampled" in summary["sources"] else next(iter(summary["sources"]))
    facts, columns = summary["sources"][source], statistics.columns[source]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 1.35])
    scores, lengths, labels = (
        figure.add_subplot(grid[place]) for place in (np.s_[0, 0], np.s_[1, 0], np.s_[:, 1])
    )
    if facts["margin"] is not None:
        both = [*columns["chosen_score"], *columns["rejected_score"]]
        bins = np.histogram_bin_edges(both, 24).tolist()
        scores.hist(columns["rejected_score"], bins, color=ORANGE, alpha=0.8, label="rejected")
        scores.hist(columns["chosen_score"], bins, color=BLUE, alpha=0.7, label="chosen")
        scores.legend(frameon=False, fontsize=8)
        scores.set_title(f"Score; mean margin {facts['margin']['mean']:.2f}", loc="left", fontsize=9)
    difference = np.subtract(columns["chosen_words"], columns["rejected_words"])
    lengths.hist(difference, 24, color=GREY)
    lengths.axvline(0, color=INK, linewidth=0.8)
    lengths.axvline(difference.mean(), color=ORANGE, linewidth=1.6)
    longer = facts["chosen_longer_share"]
    share = "never longer" if longer["value"] is None else f"longer in {longer['value']:.0%}"
    lengths.set_title(
        f"Chosen less rejected: {difference.mean():+.1f} words, {share}", loc="left", fontsize=9
    )
    _draw_labels(labels, facts)
    for axes in (scores, lengths, labels):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.suptitle(
        f"{facts['pairs']:,} pairs of {facts['studies']:,} studies, {source}", fontsize=10, x=0.01, ha="left"
    )
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def _draw_labels(axes: Any, facts: Mapping[str, Any]) -> None:
    """Draw to the right what the chosen reports have right more often, to the left what the rejected ones have."""
    names = sorted(facts["labels"], key=lambda label: _gain(facts["labels"][label]))
    places = np.arange(len(names))
    sides = (("found", "false_alarm_avoided", 1), ("missed", "false_alarm", -1))
    for finding, alarm, sign in sides:
        first = np.array([facts["labels"][name][finding] for name in names])
        second = np.array([facts["labels"][name][alarm] for name in names])
        axes.barh(places, sign * first, color=BLUE, label="present finding" if sign > 0 else None)
        axes.barh(
            places, sign * second, left=sign * first, color=GREY, label="false alarm" if sign > 0 else None
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(places, names, fontsize=7)
    axes.set_xlabel("pairs in which only the rejected (left) or only the chosen (right) is right", fontsize=8)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _gain(counts: Mapping[str, int]) -> int:
    return counts["found"] + counts["false_alarm_avoided"] - counts["missed"] - counts["false_alarm"]


def _distribution(values: np.ndarray) -> dict[str, float] | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"mean": float(values.mean()), "low": float(low), "median": float(median), "high": float(high)}


def _with_interval(value: np.ndarray, drawn: np.ndarray) -> dict[str, float | None]:
    numbers = (float(value), *interval(drawn))
    return {
        name: number if np.isfinite(number) else None
        for name, number in zip(("value", "low", "high"), numbers)
    }


def _shown(score: Mapping[str, float | None], form: str) -> str:
    if score["value"] is None:
        return "-"
    text = format(score["value"], form)
    return text if score["low"] is None else f"{text} ({score['low']:{form}} to {score['high']:{form}})"
