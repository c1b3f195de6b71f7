"""METEOR as NLTK computes it (Lavie and Agarwal 2007), aligned in one pass where no WordNet is present."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ALPHA, _BETA, _GAMMA = 0.9, 3.0, 0.5


class NoWordNet:
    """Stands in for WordNet where its data are absent: no word has a synonym."""

    def synsets(self, word: str) -> list[Any]:
        return []


def find_wordnet() -> tuple[Any, str]:
    """Return WordNet and its version where NLTK finds its data, else a stand-in and `"none"`; never download."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return NoWordNet(), "none"
    return wordnet, wordnet.get_version()


def meteor(reference: list[str], candidate: list[str], stem: Callable[[str], str]) -> float:
    """Score lower-cased words by exact and stem matches, as NLTK's `single_meteor_score` does without synonyms."""
    places = align(reference, candidate, stem)
    matches = len(candidate) - places.count(-1)
    if not matches:
        return 0.0
    chunks = 1
    last = next(index for index, place in enumerate(places) if place >= 0)
    for index in range(last + 1, len(places)):
        if places[index] >= 0:
            chunks += index != last + 1 or places[index] != places[last] + 1
            last = index
    precision, recall = matches / len(candidate), matches / len(reference)
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    return (1 - _GAMMA * (chunks / matches) ** _BETA) * mean


def align(reference: list[str], candidate: list[str], stem: Callable[[str], str]) -> list[int]:
    """Give each candidate word its place in the reference, -1 for none: from the back, the last free equal word."""
    free: dict[str, list[int]] = {}
    for place, word in enumerate(reference):
        free.setdefault(word, []).append(place)
    places = [-1] * len(candidate)
    left = []
    for index in range(len(candidate) - 1, -1, -1):
        if found := free.get(candidate[index]):
            places[index] = found.pop()
        else:
            left.append(index)
    free_stems: dict[str, list[int]] = {}
    for word, found in free.items() if left else ():
        if found:
            free_stems.setdefault(stem(word), []).extend(found)
    for found in free_stems.values():
        found.sort()
    for index in left:
        if found := free_stems.get(stem(candidate[index])):
            places[index] = found.pop()
    return places
