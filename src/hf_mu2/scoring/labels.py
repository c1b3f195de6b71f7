"""Label a chest CT report with the 18 CT-RATE findings, by rules and with the words that are the evidence.

Deterministic, offline, standard library only. Developed on English CT-RATE reports (machine-translated Turkish style)
and on the phantom's reports; other styles and languages are not validated. The rules live in `label_rules.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from .label_rules import RULES, Rule
from .statements import Status, any_of, clauses, even_text, item, sentences, status_of

VERSION = "rules-2"
LABELS: tuple[str, ...] = tuple(dict.fromkeys(rule.label for rule in RULES))

Uncertain = Literal["positive", "negative", "ignore"]


@dataclass(frozen=True)
class Evidence:
    """One mention of a label: what is said of it, and where.

    Args:
        label (`str`): One of `LABELS`.
        status (`str`): `"positive"`, `"negative"` or `"uncertain"`.
        span (`tuple[int, int]`): Start and end of the mention, in characters of the report.
        text (`str`): The words of the mention.
    """

    label: str
    status: Status
    span: tuple[int, int]
    text: str


def find_labels(report: str) -> list[Evidence]:
    """Find every mention of the 18 labels in a report, in reading order."""
    text = even_text(report)
    found = []
    for start, end in sentences(text.clean):
        for mention in mentions_in(text.clean[start:end]):
            span = text.span(start + mention.start, start + mention.end)
            found.append(Evidence(mention.label, mention.status, span, report[slice(*span)]))
    return sorted(found, key=lambda evidence: evidence.span)


def label_report(report: str, *, uncertain: Uncertain = "positive") -> dict[str, int | None]:
    """Label one report: 1 where a finding is reported, 0 where it is denied or not mentioned.

    Args:
        report (`str`): Findings, impression or both.
        uncertain (`str`): What a finding becomes that is only ever hedged: `"positive"` (1), `"negative"` (0) or
            `"ignore"` (`None`).
    """
    if uncertain not in ("positive", "negative", "ignore"):
        raise ValueError(
            f'`uncertain` must be "positive", "negative" or "ignore", got {uncertain!r}. '
            "It says what a finding becomes that the report only hedges."
        )
    found = find_labels(report)
    positive = {evidence.label for evidence in found if evidence.status == "positive"}
    hedged = {evidence.label for evidence in found if evidence.status == "uncertain"} - positive
    value_of_hedged = {"positive": 1, "negative": 0, "ignore": None}[uncertain]
    return {label: 1 if label in positive else value_of_hedged if label in hedged else 0 for label in LABELS}


def label_reports(
    reports: Iterable[str], *, uncertain: Literal["positive", "negative"] = "positive"
) -> np.ndarray:
    """Label many reports; a sentence that many of them share is read once.

    Returns:
        `np.ndarray` of shape `(reports, 18)`, int8, columns in the order of `LABELS`.
    """
    if uncertain not in ("positive", "negative"):
        raise ValueError(
            f'`uncertain` must be "positive" or "negative" for an array of labels, got {uncertain!r}. '
            "Use `label_report` for labels that may be unknown."
        )
    affirmed = {"positive"} if uncertain == "negative" else {"positive", "uncertain"}
    read: dict[str, tuple[Mention, ...]] = {}
    columns = {label: column for column, label in enumerate(LABELS)}
    rows = []
    for report in reports:
        row = [0] * len(LABELS)
        text = even_text(report).clean
        for start, end in sentences(text):
            sentence = text[start:end].strip()
            if sentence not in read:
                read[sentence] = mentions_in(sentence)
            for mention in read[sentence]:
                row[columns[mention.label]] |= mention.status in affirmed
        rows.append(row)
    return np.asarray(rows, dtype=np.int8).reshape(len(rows), len(LABELS))


@dataclass(frozen=True)
class Mention:
    """One mention of a label within a sentence."""

    label: str
    status: Status
    start: int
    end: int


def mentions_in(sentence: str, rules: tuple[CompiledRule, ...] | None = None) -> tuple[Mention, ...]:
    """Find every mention of the 18 labels in one sentence of an even text."""
    found = []
    parts: list[tuple[int, int]] = []
    for rule in rules or _compiled():
        for match in rule.mention.finditer(sentence):
            start, end = match.span()
            parts = parts or clauses(sentence)
            first, last = next(part for part in parts if start < part[1])
            clause = sentence[first : max(last, end)]
            if (
                (rule.require and not rule.require.search(clause))
                or (rule.forbid and rule.forbid.search(clause))
                or (rule.forbid_in_item and rule.forbid_in_item.search(sentence, *item(sentence, start, end)))
                or (rule.forbid_in_sentence and rule.forbid_in_sentence.search(sentence))
            ):
                continue
            found.append(Mention(rule.label, status_of(clause, start - first, end - first), start, end))
    return tuple(found)


@dataclass(frozen=True)
class CompiledRule:
    label: str
    mention: re.Pattern[str]
    require: re.Pattern[str] | None
    forbid: re.Pattern[str] | None
    forbid_in_item: re.Pattern[str] | None
    forbid_in_sentence: re.Pattern[str] | None


def compile_rules(rules: Iterable[Rule]) -> tuple[CompiledRule, ...]:
    """Compile rows of the rule table."""
    return tuple(
        CompiledRule(
            rule.label,
            any_of(rule.mention),
            *(
                any_of(patterns) if patterns else None
                for patterns in (rule.require, rule.forbid, rule.forbid_in_item, rule.forbid_in_sentence)
            ),
        )
        for rule in rules
    )


@cache
def _compiled() -> tuple[CompiledRule, ...]:
    """Compile the rule table on first use, so that importing this module stays cheap."""
    return compile_rules(RULES)
