"""Summarise GREEN results: means, failures, and the error lines of each category by theme."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .green_parse import CATEGORIES, STATUSES

if TYPE_CHECKING:
    from .green import GreenResult

_WORD = re.compile(r"[a-z][a-z-]+")
# Words that say how an error was made, or nothing, rather than what was missed.
_STOPWORDS = frozenset(
    _WORD.findall("""
    the an of in on at to by for with without and or not is are was were be been has have had this that these those
    it its as from but while which there no nor than also both any some such does did do due into within candidate
    reference report reports reported reporting mention mentions mentioned mentioning state states stated describe
    describes described describing note notes noted missing missed misses omit omits omitted omission false falsely
    incorrect incorrectly finding findings error errors instead rather whereas present presence absent absence
    indicate indicates indicated specify specified identify identified suggest suggests detail detailing details
    """)
)


def summarize(results: Sequence[GreenResult], num_themes: int = 3) -> dict[str, Any]:
    """Summarise results of one judge, ready for JSON.

    Returns:
        `dict`: `judge`, `num_pairs`, `num_scored`, `status` (how many of each), `mean` and `std` over scored pairs
        (`None` without any), `reference_mean` over all replies as the released scorer takes it, `num_nothing_found`
        (scored pairs without matches and errors), and per category, over pairs with status `ok`: `significant` and
        `insignificant` errors, `share_without` a significant one, and `themes`.
    """
    judges = sorted({result.judge for result in results})
    if len(judges) > 1:
        raise ValueError(
            f"Scores of different judges are not mixed, got results of {len(judges)}: {'; '.join(judges)}. "
            "Summarise each judge's results by themselves."
        )
    scores = [result.score for result in results if result.score is not None]
    released = [result.reference_score for result in results if result.reference_score is not None]
    read = [result for result in results if result.status == "ok"]
    return {
        "judge": judges[0] if judges else None,
        "num_pairs": len(results),
        "num_scored": len(scores),
        "status": {status: sum(result.status == status for result in results) for status in STATUSES},
        "mean": float(np.mean(scores)) if scores else None,
        "std": float(np.std(scores)) if scores else None,
        "reference_mean": float(np.mean(released)) if released else None,
        "num_nothing_found": sum(
            result.matched == 0 and not sum((result.significant or {}).values()) for result in read
        ),
        "categories": {
            category: {
                "name": name,
                "significant": sum((result.significant or {}).get(category, 0) for result in read),
                "insignificant": sum((result.insignificant or {}).get(category, 0) for result in read),
                "share_without": float(
                    np.mean([not (result.significant or {}).get(category) for result in read])
                )
                if read
                else None,
                "themes": find_themes(
                    (line for result in read for line in result.errors.get(category, [])), num_themes
                ),
            }
            for category, name in CATEGORIES.items()
        },
    }


def find_themes(lines: Iterable[str], num_themes: int = 3) -> list[dict[str, Any]]:
    """Group lines by the phrases they share, most frequent first.

    A theme is the phrase of one to three words, without stop words, that most lines share, where a longer phrase may be
    shared by a few lines less. Its lines are set aside and the next one is sought, until no two lines share a phrase.

    Returns:
        `list[dict]`: `phrase`, `count` (lines) and `example`, the shortest line of the theme.
    """
    rest = [(line, _phrases(line)) for line in lines]
    counts = Counter(phrase for _, phrases in rest for phrase in phrases)
    themes: list[dict[str, Any]] = []
    while len(themes) < num_themes:
        shared = [phrase for phrase, count in counts.items() if count > 1]
        if not shared:
            break
        best = max(shared, key=lambda phrase: (counts[phrase] * (2 + len(phrase)), len(phrase), phrase))
        group = [(line, phrases) for line, phrases in rest if best in phrases]
        example = min((line for line, _ in group), key=lambda line: (len(line), line))
        themes.append({"phrase": " ".join(best), "count": len(group), "example": example})
        counts.subtract(phrase for _, phrases in group for phrase in phrases)
        rest = [(line, phrases) for line, phrases in rest if best not in phrases]
    return themes


def _phrases(line: str) -> set[tuple[str, ...]]:
    """Return the runs of one to three content words of a line; a stop word or a comma ends a run."""
    phrases: set[tuple[str, ...]] = set()
    for clause in re.split(r"[,.;:()\"]", line.lower()):
        words = [word if word not in _STOPWORDS else "" for word in _WORD.findall(clause)]
        for length in (1, 2, 3):
            runs = (tuple(words[i : i + length]) for i in range(len(words) - length + 1))
            phrases.update(run for run in runs if all(run))
    return phrases


def to_markdown(summary: dict[str, Any]) -> str:
    """Write a summary for people."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    status = ", ".join(f"{count} {name}" for name, count in summary["status"].items() if count)
    lines = [
        f"GREEN {number(summary['mean'])} over {summary['num_scored']} of {summary['num_pairs']} pairs ({status}); "
        f"released parser {number(summary['reference_mean'])}.",
        f"`{summary['judge']}`",
        "",
        "| | category | significant | insignificant | pairs without | most frequent |",
        "|---|---|---|---|---|---|",
    ]
    for category, facts in summary["categories"].items():
        themes = "; ".join(f"{theme['phrase']} ({theme['count']})" for theme in facts["themes"]) or "-"
        without = "-" if facts["share_without"] is None else f"{facts['share_without']:.0%}"
        cells = [category, facts["name"], facts["significant"], facts["insignificant"], without, themes]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
