"""Impressions that cost no learning: what a model that derives them from findings has to beat.

Three floors: copy the last sentence of the findings, give everyone the most frequent training impression, and give the
impression of the training study whose findings are nearest.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

FLOORS = ("last_sentence", "most_frequent", "nearest_findings")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def impression_floors(
    findings: Sequence[str], training_findings: Sequence[str], training_impressions: Sequence[str]
) -> dict[str, list[str]]:
    """Write an impression per study for each of `FLOORS`.

    Args:
        findings (`Sequence[str]`): Of the studies to be scored.
        training_findings, training_impressions (`Sequence[str]`): Of the training studies, in the same order.

    Raises:
        ValueError: if there is no training study, or findings and impressions differ in number.
    """
    if not training_impressions or len(training_findings) != len(training_impressions):
        raise ValueError(
            f"Floors need training studies with both sections, got {len(training_findings)} findings and "
            f"{len(training_impressions)} impressions. Leave out studies that lack one."
        )
    nearest = nearest_texts(findings, training_findings)
    return {
        "last_sentence": [last_sentence(text) for text in findings],
        "most_frequent": [most_frequent(training_impressions)] * len(findings),
        "nearest_findings": [training_impressions[index] for index in nearest],
    }


def last_sentence(text: str) -> str:
    """Return the last sentence of a text."""
    return _SENTENCE_END.split(text.strip())[-1]


def most_frequent(texts: Sequence[str]) -> str:
    """Return the most frequent text, whatever its case, spaces and final stop; of equals the one that came first."""
    counts = Counter(map(_plain, texts))
    return max(texts, key=lambda text: counts[_plain(text)])  # `max` keeps the first of equals


def nearest_texts(texts: Sequence[str], training: Sequence[str]) -> list[int]:
    """Find for each text the nearest of `training`, by the cosine of their TF-IDF vectors; of equals the first.

    A word weighs (1 + log tf) (1 + log((1 + N) / (1 + df))), after Salton and Buckley (1988).
    """
    bags = [Counter(_words(text)) for text in training]
    frequency = Counter(word for bag in bags for word in bag)
    rarity = {word: 1 + np.log((1 + len(bags)) / (1 + count)) for word, count in frequency.items()}
    postings: defaultdict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for index, bag in enumerate(bags):
        weights = {word: (1 + np.log(count)) * rarity[word] for word, count in bag.items()}
        length = np.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        for word, weight in weights.items():
            postings[word][0].append(index)
            postings[word][1].append(weight / length)
    columns = {word: (np.array(where), np.array(shares)) for word, (where, shares) in postings.items()}
    nearest = []
    for text in texts:
        scores = np.zeros(len(bags))
        for word, count in sorted(Counter(_words(text)).items()):
            if word in columns:
                where, shares = columns[word]
                scores[where] += (1 + np.log(count)) * rarity[word] * shares
        nearest.append(int(np.argmax(scores.round(12))))  # sums in another order differ in the last bits
    return nearest


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")
