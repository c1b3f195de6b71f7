"""Read question-answer pairs that a language model wrote about a report, and say whether the report answers so.

Question and answer together make a statement ("Where is the nodule" + "in the left upper lobe"); every finding, side,
size, number and word of place in it must be the report's own. What the report does not mention it does not answer:
"No" is right only where the report denies the finding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_mu2.scoring.hygiene import clean_candidate
from hf_mu2.scoring.judge_cache import Reply
from hf_mu2.scoring.measures import find_sides, find_sizes
from hf_mu2.scoring.regions import RegionFinding, read_findings

from .rewrite_check import (
    WHOLE,
    Status,
    foreign_scripts,
    numbers_of,
    places_of,
    reader_region,
    words_by_finding,
)
from .rewrite_prompts import KINDS

# Beside those of a reply as a whole ("no reply", "empty", "truncated").
REASONS = (
    "unparsed",
    "incomplete",
    "kind",
    "script",
    "options",
    "duplicate",
    "names the report",
    "not stated",
    "contradicted",
    "ambiguous",
)
_YES_NO = re.compile(r"^\W*(yes|no)\b[\s.,:;-]*", re.IGNORECASE)
_REPORT = re.compile(r"\b(?:report|text|passage|author|radiologist)s?\b", re.IGNORECASE)
_LETTER = re.compile(r"^\(?[A-Da-d][).:]\s+")
_MAX_WORDS = 60


@dataclass(frozen=True)
class PairVerdict:
    """What became of a question-answer pair: `status` and `reason` as for a paraphrase, the pair as a study has it."""

    status: Status
    reason: str = ""
    detail: str = ""
    pair: Mapping[str, Any] = field(default_factory=dict)


def check_questions(reply: Reply, report: str, region: str, count: int) -> list[PairVerdict]:
    """Check the reply to a questions prompt: a verdict per pair, or a single refusal of the whole.

    Args:
        report (`str`): The report that was asked about.
        region (`str`): Of the study row.
        count (`int`): How many pairs were asked for; what comes beyond is left out.
    """
    if reply.error is not None:
        return [PairVerdict("refused", "no reply", reply.error)]
    text, state = clean_candidate(reply.text)
    if reply.finish_reason not in WHOLE or state == "unclosed_reasoning":
        return [PairVerdict("refused", "truncated", f"finish reason {reply.finish_reason}")]
    if not text:
        return [PairVerdict("refused", "empty")]
    items = _parse(text)
    if items is None:
        return [PairVerdict("refused", "unparsed")]
    verdicts: list[PairVerdict] = []
    asked: set[str] = set()
    facts = _Report.read(report, region)
    for item in items[:count]:
        verdict = _check_pair(item, facts, asked)
        asked.add(_bare(str(item.get("question", ""))))
        verdicts.append(verdict)
    return verdicts or [PairVerdict("refused", "empty")]


@dataclass(frozen=True)
class _Report:
    text: str
    reader: str
    is_known: bool
    findings: tuple[RegionFinding, ...]
    sizes: frozenset[float]
    sides: frozenset[str]
    numbers: frozenset[str]
    places: frozenset[str]

    @classmethod
    def read(cls, text: str, region: str) -> _Report:
        reader, is_known = reader_region(region)
        return cls(
            text,
            reader,
            is_known,
            tuple(read_findings(text, region=reader)),
            frozenset(mm for size in find_sizes(text) for mm in size.mm),
            frozenset(mention.side for mention in find_sides(text)),
            frozenset(numbers_of(text)),
            frozenset(places_of(text)),
        )


def _parse(text: str) -> list[dict[str, Any]] | None:
    """Take the JSON array out of a reply; a fence around it is no harm."""
    start, end = text.find("["), text.rfind("]")
    try:
        items = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except ValueError:
        return None
    return items if isinstance(items, list) and all(isinstance(item, dict) for item in items) else None


def _check_pair(item: Mapping[str, Any], facts: _Report, asked: Collection[str]) -> PairVerdict:
    kind, question, answer, options = (item.get(name) for name in ("kind", "question", "answer", "options"))
    if (
        not isinstance(question, str)
        or not isinstance(answer, str)
        or not question.strip()
        or not answer.strip()
    ):
        return PairVerdict("refused", "incomplete")
    question, answer = " ".join(question.split()), " ".join(answer.split())
    if kind not in KINDS:
        return PairVerdict("refused", "kind")
    if _bare(question) in asked:
        return PairVerdict("refused", "duplicate")
    if len(f"{question} {answer}".split()) > _MAX_WORDS:
        return PairVerdict("refused", "incomplete", f"more than {_MAX_WORDS} words")
    if _REPORT.search(f"{question} {answer}"):
        return PairVerdict("refused", "names the report")
    if foreign_scripts(f"{question} {answer}", facts.text):
        return PairVerdict("refused", "script")
    choices = _choices(options) if kind == "choice" else []
    if kind == "choice" and (choices is None or answer not in choices):
        return PairVerdict("refused", "options")
    status, reason, detail = (
        _presence(question, answer, facts)
        if kind == "presence"
        else _statement(kind, question, answer, facts)
    )
    if status != "refused" and choices:
        # Another option that the report states as well makes two answers right.
        rivals = [choice for choice in choices if choice != answer]
        if any(_statement(kind, question, rival, facts)[0] == "checked" for rival in rivals):
            return PairVerdict("refused", "ambiguous")
    if status == "refused":
        return PairVerdict(status, reason, detail)
    if kind == "presence":
        answer = _YES_NO.match(answer)[1].capitalize()  # type: ignore[index]
        choices = ["Yes", "No"]
    pair = {"question": question, "answer": answer, "options": choices, "kind": kind}
    return PairVerdict(status if facts.is_known else "unchecked", pair=pair)


def _choices(options: Any) -> list[str] | None:
    """Return the options without letters in front; `None` where they are not two to six different texts."""
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        return None
    choices = [" ".join(option.split()) for option in options]
    is_bad = (
        not 2 <= len(choices) <= 6
        or len(set(map(_bare, choices))) < len(choices)
        or any(map(_LETTER.match, choices))
    )
    return None if is_bad else choices


_Result = tuple[Status, str, str]


def _presence(question: str, answer: str, facts: _Report) -> _Result:
    """Check a question that is answered with yes or no."""
    said = _YES_NO.match(answer)
    if said is None or answer[said.end() :]:
        return "refused", "incomplete", "the answer is neither Yes nor No"
    asked = read_findings(_open(question), region=facts.reader)
    if not asked:
        return "unchecked", "", ""
    polarity = "positive" if said[1].lower() == "yes" else "negative"
    for finding in asked:
        if finding.polarity != "positive":  # "is there no effusion": yes and no are both unclear
            return "refused", "ambiguous", "the question denies"
        if result := _not_stated(finding, polarity, facts):
            return "refused", *result
    if missing := _foreign_facts(_open(question), facts):
        return "refused", "not stated", missing
    return "checked", "", ""


def _statement(kind: str, question: str, answer: str, facts: _Report) -> _Result:
    """Check the statement that a question makes together with its answer."""
    if missing := _foreign_facts(answer, facts):
        return "refused", "not stated", missing
    if kind == "size" and not find_sizes(answer):
        return "refused", "incomplete", "the answer has no size"
    own = read_findings(answer, region=facts.reader)
    # The question only asks: what the answer says itself of the same thing stands ("the lymph nodes" - "not enlarged").
    said = {(finding.organ, finding.head): finding.polarity for finding in own}
    stated = [
        finding
        for finding in read_findings(f"{_open(question)} {answer}", region=facts.reader)
        if said.get((finding.organ, finding.head), finding.polarity) == finding.polarity
        and (finding.head != "abnormality" or finding in own)  # "what abnormality is there" states none
    ]
    for finding in (*stated, *own):
        if result := _not_stated(finding, finding.polarity, facts):
            return "refused", *result
    if elsewhere := places_of(answer) - _places_of(stated, facts):
        return "refused", "contradicted", f"place: {', '.join(sorted(elsewhere))}"
    is_located = bool(find_sides(answer) or places_of(answer))
    is_read = {"size": any(finding.size_mm for finding in stated), "location": is_located}.get(
        kind, bool(own or is_located or find_sizes(answer))
    )
    return ("checked" if stated and is_read else "unchecked"), "", ""


def _places_of(stated: Sequence[RegionFinding], facts: _Report) -> set[str]:
    """Read where the report has findings; everywhere, if it is asked about none."""
    if not stated:
        return set(facts.places)
    names = {(finding.organ, finding.head) for finding in stated}
    words = words_by_finding(facts.text, facts.reader)
    return places_of(" ".join(word for key, found in words.items() if key[:2] in names for word in found))


def _not_stated(finding: RegionFinding, polarity: str, facts: _Report) -> tuple[str, str] | None:
    """Return why the report does not state a finding with this polarity, if it does not."""
    name = f"{finding.head} ({finding.organ})"
    same = [other for other in facts.findings if (other.organ, other.head) == (finding.organ, finding.head)]
    if finding.head == "abnormality" and polarity == "positive":
        same += [
            other for other in facts.findings if other.organ == finding.organ and other.polarity == "positive"
        ]
    alike = [other for other in same if other.polarity == polarity]
    sides = {other.side for other in alike}
    if polarity == "negative":
        stands_against = [
            other
            for other in same
            if other.polarity != "negative"
            and (finding.side is None or other.side in (finding.side, "both", None))
        ]
        if stands_against:
            return "contradicted", f"the report states {name}"
        # A finding that is denied altogether is denied on either side.
        return (
            None
            if sides & {None, finding.side, "both"} or (finding.side is None and alike)
            else ("not stated", f"no {name}")
        )
    if not alike:
        return ("contradicted" if same else "not stated"), name
    if (
        finding.side is not None
        and finding.side not in sides
        and not (finding.side == "both" and {"left", "right"} <= sides)
    ):
        return "contradicted", f"{name} on another side"
    sizes = {mm for other in alike for mm in other.size_mm}
    if not set(finding.size_mm) <= sizes:
        return "contradicted", f"{name} of another size"
    return None


def _foreign_facts(text: str, facts: _Report) -> str:
    """Name sizes, sides, numbers and words of place that the report does not have."""
    sizes = {mm for size in find_sizes(text) for mm in size.mm} - facts.sizes
    if sizes:
        return f"{', '.join(f'{mm:g}' for mm in sorted(sizes))} mm"
    if (
        sides := {mention.side for mention in find_sides(text)}
        - facts.sides
        - ({"both"} if {"left", "right"} <= facts.sides else set())
    ):
        return " and ".join(sorted(sides))
    return ", ".join(sorted((set(numbers_of(text)) - facts.numbers) | (places_of(text) - facts.places)))


def _open(question: str) -> str:
    """Take the question mark away, so that the answer goes on in the same sentence."""
    return question.rstrip(" ?.")


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
