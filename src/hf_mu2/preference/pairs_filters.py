"""Decide which candidates may stand in a preference pair; each other one is counted under the first filter it fails."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_mu2.scoring.hygiene import clean_candidate, is_chinese, separate_han
from hf_mu2.scoring.rewards import repetition_penalty

from .score import STATUSES

# Letters of units and of names ("5 µm", "β-blocker") that reports in any language hold.
_COMMON_SCRIPTS = {"LATIN", "GREEK", "MICRO", "FEMININE", "MASCULINE", "MODIFIER", "SUPERSCRIPT"}


@dataclass(frozen=True)
class FilterRules:
    """What a candidate must be to stand in a pair.

    Args:
        min_length_ratio, max_length_ratio (`float`): Bounds of its words per word of the reference.
        max_repetition (`float`): The largest share of its 4-grams that it has said before. Over 1,600 candidates of the
            demo checkpoint the share is .04 at the median and .10 at most; a loop has nearly 1.
    """

    min_length_ratio: float = 0.4
    max_length_ratio: float = 2.5
    max_repetition: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.min_length_ratio < self.max_length_ratio:
            raise ValueError(
                "Length ratios are a lower and a higher bound of words per reference word, got "
                f"{self.min_length_ratio} and {self.max_length_ratio}. The default is 0.4 to 2.5."
            )


# What is counted, in the order in which it is looked for; before all, a status of `score.py` other than "ok".
FILTERS: dict[str, str] = {
    "truncation": "cut off at the longest answer",
    "script": "letters of a script that the reference does not use",
    "repetition": "says the same again and again",
    "length": "much shorter or longer than the reference",
    "duplicate": "the text of an earlier candidate of the study",
}


def keep_candidates(
    candidates: Sequence[Mapping[str, Any]], reference: str, rules: FilterRules
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the candidates of a study that are kept and, of the others, the status or first of `FILTERS`."""
    kept: list[Mapping[str, Any]] = []
    failed: list[str] = []
    seen: set[str] = set()
    for candidate in candidates:
        text = clean_candidate(candidate["text"])[0]
        words = " ".join(text.lower().split())
        reason = _first_failed(candidate, text, reference, rules)
        if reason is None and words in seen:
            reason = "duplicate"
        if reason is None:
            seen.add(words)
            kept.append(candidate)
        else:
            failed.append(reason)
    return kept, failed


def why_filtered(name: str) -> str:
    """Say what a filter takes, or what a status means."""
    return (FILTERS | STATUSES)[name]


def foreign_letters(text: str, reference: str) -> str:
    """Return the letters of `text` whose script does not occur in `reference`, Latin and Greek letters aside."""
    known = {_script(letter) for letter in set(reference) if letter.isalpha()} | _COMMON_SCRIPTS
    return "".join(letter for letter in text if letter.isalpha() and _script(letter) not in known)


def count_words(text: str) -> int:
    """Count words; every Han character is one."""
    return len(separate_han(text).split())


def _first_failed(candidate: Mapping[str, Any], text: str, reference: str, rules: FilterRules) -> str | None:
    if candidate["status"] != "ok":
        return candidate["status"]
    if candidate["finish_reason"] == "length":
        return "truncation"
    if is_chinese(text) != is_chinese(reference) or foreign_letters(text, reference):
        return "script"
    if -repetition_penalty([text])[0] > rules.max_repetition:
        return "repetition"
    ratio = count_words(text) / max(count_words(reference), 1)
    return None if rules.min_length_ratio <= ratio <= rules.max_length_ratio else "length"


def _script(letter: str) -> str:
    """Name the script of a letter: the first word of its Unicode name, e.g. `"LATIN"`, `"CJK"`, `"CYRILLIC"`."""
    return unicodedata.name(letter, "UNNAMED").split()[0]
