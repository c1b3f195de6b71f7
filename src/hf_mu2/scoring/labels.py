"""Label a chest CT report with the 18 CT-RATE findings, by rules and with the words that are the evidence.

Deterministic, offline, standard library only. Developed on English CT-RATE reports (machine-translated Turkish style)
and on the phantom's reports; other styles and languages are not validated. The rules live in `label_rules.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from . import label_rules as rules

VERSION = "rules-1"
LABELS: tuple[str, ...] = tuple(rule.label for rule in rules.RULES)

Status = Literal["positive", "negative", "uncertain"]


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
    compiled = _compiled()
    lower = report.lower()
    text = lower if len(lower) == len(report) else "".join(character.lower()[0] for character in report)
    found = []
    for start, end in _sentences(text):
        sentence = text[start:end]
        clauses: list[tuple[int, int]] = []
        for rule in compiled.rules:
            for mention in rule.mention.finditer(sentence):
                clauses = clauses or _clauses(sentence)
                first, last = next(clause for clause in clauses if mention.start() < clause[1])
                clause = sentence[first : max(last, mention.end())]
                if rule.require and not rule.require.search(clause):
                    continue
                if rule.forbid and rule.forbid.search(clause):
                    continue
                if rule.forbid_in_item and rule.forbid_in_item.search(
                    sentence, *_item(sentence, *mention.span())
                ):
                    continue
                status = _status(clause, mention.start() - first, mention.end() - first)
                span = (start + mention.start(), start + mention.end())
                found.append(Evidence(rule.label, status, span, report[slice(*span)]))
    return sorted(found, key=lambda evidence: evidence.span)


def label_report(
    report: str, *, uncertain: Literal["positive", "negative", "ignore"] = "positive"
) -> dict[str, int | None]:
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
    """Label many reports.

    Returns:
        `np.ndarray` of shape `(reports, 18)`, int8, columns in the order of `LABELS`.
    """
    if uncertain not in ("positive", "negative"):
        raise ValueError(
            f'`uncertain` must be "positive" or "negative" for an array of labels, got {uncertain!r}. '
            "Use `label_report` for labels that may be unknown."
        )
    rows = [list(label_report(report, uncertain=uncertain).values()) for report in reports]
    return np.asarray(rows, dtype=np.int8).reshape(len(rows), len(LABELS))


@dataclass(frozen=True)
class _CompiledRule:
    label: str
    mention: re.Pattern[str]
    require: re.Pattern[str] | None
    forbid: re.Pattern[str] | None
    forbid_in_item: re.Pattern[str] | None


@dataclass(frozen=True)
class _Compiled:
    rules: tuple[_CompiledRule, ...]
    clause_break: re.Pattern[str]
    clause_join: re.Pattern[str]
    statement: re.Pattern[str]
    verb: re.Pattern[str]
    negation_before: re.Pattern[str]
    pseudo_negation: re.Pattern[str]
    scope_end: re.Pattern[str]
    negation_after: re.Pattern[str]
    hedge_before: re.Pattern[str]
    hedge_after: re.Pattern[str]
    sentence_end: re.Pattern[str]


@cache
def _compiled() -> _Compiled:
    """Compile the rule table on first use, so that importing this module stays cheap."""
    return _Compiled(
        rules=tuple(
            _CompiledRule(
                rule.label,
                _any(rule.mention),
                _any(rule.require) if rule.require else None,
                _any(rule.forbid) if rule.forbid else None,
                _any(rule.forbid_in_item) if rule.forbid_in_item else None,
            )
            for rule in rules.RULES
        ),
        clause_break=_any(rules.CLAUSE_BREAK),
        clause_join=_any(rules.CLAUSE_JOIN),
        statement=_any(rules.STATEMENT),
        verb=_any(rules.VERB),
        negation_before=_any(rules.NEGATION_BEFORE),
        pseudo_negation=_any(rules.PSEUDO_NEGATION),
        scope_end=_any(rules.SCOPE_END),
        negation_after=_any(rules.NEGATION_AFTER),
        hedge_before=_any(rules.HEDGE_BEFORE),
        hedge_after=_any(rules.HEDGE_AFTER),
        # A full stop ends a sentence unless it stands in a number; "?" only outside brackets, as in "(cyst?)".
        sentence_end=re.compile(r"(?<!\d)\.|\.(?!\d)|[!\n\"“”•·;]|\?(?=\s+[^)\s]|\s*$)"),
    )


def _any(patterns: rules.Patterns) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for mark in _compiled().sentence_end.finditer(text):
        if mark.end() > start + 1:
            yield start, mark.end()
        start = mark.end()
    if start < len(text):
        yield start, len(text)


def _clauses(sentence: str) -> list[tuple[int, int]]:
    """Split a sentence where a negation can no longer reach."""
    compiled = _compiled()
    breaks = {match.start() for match in compiled.clause_break.finditer(sentence)}
    joins = {match.start() for match in compiled.clause_join.finditer(sentence)}
    clauses = []
    start = 0
    for mark in sorted(breaks | joins):
        if mark > start and (
            mark in breaks
            or (compiled.statement.search(sentence, start, mark) and compiled.verb.search(sentence, mark))
        ):
            clauses.append((start, mark))
            start = mark
    return [*clauses, (start, len(sentence))]


def _item(sentence: str, start: int, end: int) -> tuple[int, int]:
    """Return the item of an enumeration that holds a mention."""
    bounds = [match.span() for match in _compiled().clause_join.finditer(sentence)]
    first = max((bound[1] for bound in bounds if bound[1] <= start), default=0)
    return first, min((bound[0] for bound in bounds if bound[0] >= end), default=len(sentence))


def _status(clause: str, start: int, end: int) -> Status:
    """Say whether the mention `clause[start:end]` is affirmed, denied or hedged."""
    compiled = _compiled()
    before, after = clause[:start], clause[end:]
    denials = compiled.pseudo_negation.sub(lambda match: " " * len(match[0]), before)
    negations = list(compiled.negation_before.finditer(denials))
    if negations and not compiled.scope_end.search(before, negations[-1].end()):
        return "negative"
    if compiled.negation_after.search(clause, start):
        return "negative"
    if compiled.hedge_before.search(before) or compiled.hedge_after.search(after):
        return "uncertain"
    return "positive"
