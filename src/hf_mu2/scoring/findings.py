"""Read a report once into what clinical scores compare: labels, and the side and size of each finding.

A side or size belongs to the nearest finding of its sentence. Sides and sizes are read from words: a finding whose
report states none takes no part in their agreement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .hygiene import is_chinese
from .labels import LABELS, Evidence, find_labels
from .measures import Side, SideMention, find_sides, find_sizes, one_side

# Findings that are lesions with a diameter or thickness. Of others a length nearby measures something else (an aorta).
SIZED_LABELS = (
    "Lung nodule",
    "Lung opacity",
    "Consolidation",
    "Lymphadenopathy",
    "Pleural effusion",
    "Pericardial effusion",
)
# A full stop inside a number or before a closing bracket ends nothing.
_SENTENCE_END = re.compile(r"(?<!\d)\.|\.(?!\d)|[!?\n;]")


@dataclass(frozen=True)
class Findings:
    """What one report says.

    Args:
        labels (`np.ndarray` of shape `(18,)`): 1 reported, 0 not, `nan` unknown, in the order of `LABELS`.
        sides (`dict[str, Side]`): Side of each reported finding that states one.
        sizes_mm (`dict[str, tuple[float, ...]]`): Sizes of the reported findings of `SIZED_LABELS`, largest first.
        evidence (`tuple[Evidence, ...]`): The words that were read.
    """

    labels: np.ndarray
    sides: dict[str, Side]
    sizes_mm: dict[str, tuple[float, ...]]
    evidence: tuple[Evidence, ...]


def read_findings(report: str) -> Findings:
    """Read the findings of a report. Hedged findings count as reported; a Chinese report has unknown labels."""
    if is_chinese(report):
        return Findings(np.full(len(LABELS), np.nan), {}, {}, ())
    evidence = tuple(find_labels(report))
    reported = {item.label for item in evidence if item.status != "negative"}
    labels = np.array([label in reported for label in LABELS], dtype=float)
    side_mentions: dict[str, list[SideMention]] = {}
    sizes: dict[str, list[float]] = {}
    for start, end in _sentences_with(report, evidence):
        sentence = report[start:end]
        inside = [item for item in evidence if start <= item.span[0] < end]
        for mention in find_sides(sentence):
            owner = _nearest(inside, start + mention.span[0], start + mention.span[1])
            if owner.status != "negative":
                side_mentions.setdefault(owner.label, []).append(mention)
        sized = [item for item in inside if item.label in SIZED_LABELS and item.status != "negative"]
        for size in find_sizes(sentence) if sized else ():
            owner = _nearest(inside, start + size.span[0], start + size.span[1])
            if owner in sized:
                sizes.setdefault(owner.label, []).append(size.largest_mm)
    sides = {label: side for label, mentions in side_mentions.items() if (side := one_side(mentions))}
    return Findings(
        labels, sides, {label: tuple(sorted(mm, reverse=True)) for label, mm in sizes.items()}, evidence
    )


def _sentences_with(report: str, evidence: tuple[Evidence, ...]) -> list[tuple[int, int]]:
    """Bound the sentences that hold a mention."""
    ends = [match.end() for match in _SENTENCE_END.finditer(report)]
    starts = np.array([0, *ends])
    stops = np.array([*ends, len(report)])
    held = np.unique(
        np.searchsorted(starts, [item.span[0] for item in evidence], side="right").astype(int) - 1
    )
    return [(int(starts[index]), int(stops[index])) for index in held]


def _nearest(evidence: list[Evidence], start: int, end: int) -> Evidence:
    """Choose the mention with the fewest characters between it and `start:end`; the later of two equally near."""
    return min(reversed(evidence), key=lambda item: max(item.span[0] - end, start - item.span[1], 0))
