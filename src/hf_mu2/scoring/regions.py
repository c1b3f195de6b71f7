"""Read findings of any region (organ, head, polarity, side, size) and compare two texts by them.

The 18 labels cover the chest only. Outside it, a finding is an organ with a head such as "cyst" or "dilatation";
`region_rules.py` holds the tables. A comparison says "agrees" only of what was read: a sentence without a known
finding, a number, a word of place or a medical term that only one of the texts has makes it "unchecked".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Literal

from .labels import Mention, Uncertain, mentions_in
from .measures import Side, SideMention, Size, find_sides, find_sizes, one_side
from .region_rules import ABDOMEN, CHEST_LABEL_OF, DENIAL, HEADS, ORGANS, Head
from .statements import Status, any_of, clauses, even_text, sentences, status_of

VERSION = "regions-2"
ABDOMEN_LABELS: tuple[str, ...] = tuple(rule.label for rule in ABDOMEN)
REGIONS: tuple[str, ...] = ("chest", "abdomen", "pelvis")

Verdict = Literal["agrees", "differs", "unchecked"]


@dataclass(frozen=True)
class RegionFinding:
    """One finding as a text states it.

    Args:
        organ (`str`): Name of the organ, `"unspecified"` where the text names none; `"chest"` for the 18 labels.
        head (`str`): What is found, e.g. `"cyst"`; `"abnormality"` for statements of normality; a label of the chest.
        polarity (`str`): `"positive"`, `"negative"` or `"uncertain"`.
        side (`str`, *optional*): `"left"`, `"right"` or `"both"`, where the text says one.
        size_mm (`tuple[float, ...]`): Lengths said of it, in millimetres, largest first.
        span (`tuple[int, int]`): Start and end of the head, in characters of the text; two findings that differ in
            nothing else are equal.
    """

    organ: str
    head: str
    polarity: Status
    side: Side | None
    size_mm: tuple[float, ...]
    span: tuple[int, int] = field(compare=False)


@dataclass(frozen=True)
class FindingsComparison:
    """How the findings of a rewritten text differ from those of the original.

    Args:
        verdict (`str`): `"agrees"`, `"differs"`, or `"unchecked"` where something was not read and nothing differs.
        added, lost (`tuple[RegionFinding, ...]`): Findings of one text without a partner in the other.
        moved, resized (`tuple[tuple[RegionFinding, RegionFinding], ...]`): Original and rewritten finding that differ
            in side (moved) or only in size (resized).
        unread (`tuple[str, ...]`): Why a verdict is `"unchecked"`: sentences that hold no finding known to the reader
            and stand in one text only; numbers, words of place and medical terms that no finding took and that differ.
    """

    verdict: Verdict
    added: tuple[RegionFinding, ...] = ()
    lost: tuple[RegionFinding, ...] = ()
    moved: tuple[tuple[RegionFinding, RegionFinding], ...] = ()
    resized: tuple[tuple[RegionFinding, RegionFinding], ...] = ()
    unread: tuple[str, ...] = ()


def read_findings(text: str, *, region: str = "") -> list[RegionFinding]:
    """Read every finding of a text, in reading order, as often as it is stated.

    Args:
        region (`str`): `"chest"` reads the 18 labels first; the tables of organs and heads serve any region.
    """
    return [
        finding for sentence in _read(text, with_labels=region == "chest") for finding in sentence.findings
    ]


def label_abdomen(text: str, *, uncertain: Uncertain = "positive") -> dict[str, int | None]:
    """Label a text on abdomen and pelvis: 1 where a finding is stated, 0 where it is denied or not mentioned.

    Args:
        text (`str`): Findings, impression or both.
        uncertain (`str`): What a finding becomes that is only ever hedged: `"positive"` (1), `"negative"` (0) or
            `"ignore"` (`None`).
    """
    if uncertain not in ("positive", "negative", "ignore"):
        raise ValueError(
            f'`uncertain` must be "positive", "negative" or "ignore", got {uncertain!r}. '
            "It says what a finding becomes that the text only hedges."
        )
    stated = {(finding.organ, finding.head, finding.polarity) for finding in read_findings(text)}
    value_of_hedged = {"positive": 1, "negative": 0, "ignore": None}[uncertain]
    labels: dict[str, int | None] = {}
    for rule in ABDOMEN:
        polarities = {
            polarity for organ, head, polarity in stated if organ in rule.organs and head in rule.heads
        }
        labels[rule.label] = (
            1 if "positive" in polarities else value_of_hedged if "uncertain" in polarities else 0
        )
    return labels


def compare_findings(original: str, rewrite: str, *, region: str) -> FindingsComparison:
    """Say whether a rewritten text states the same findings as the original.

    A finding that is stated twice, or again with less detail, counts once. Polarity is part of a finding: a denial
    that is lost or that became an affirmation is a difference. How severe a finding is called is not compared.

    Args:
        original (`str`): The text as it was.
        rewrite (`str`): The text that must say the same.
        region (`str`): `"chest"`, `"abdomen"` or `"pelvis"`; any other region is `"unchecked"`.
    """
    if region not in REGIONS:
        return FindingsComparison("unchecked", unread=(f"region {region!r}: no findings are known there",))
    texts = [_read(text, with_labels=region == "chest") for text in (original, rewrite)]
    before, after = (
        _distinct([finding for sentence in read for finding in _joined(sentence.findings)]) for read in texts
    )
    lost, added = before - after, after - before
    moved: list[tuple[RegionFinding, RegionFinding]] = []
    resized: list[tuple[RegionFinding, RegionFinding]] = []
    for old in _ordered(lost):
        for new in _ordered(added):
            if (old.organ, old.head, old.polarity) == (new.organ, new.head, new.polarity):
                (moved if old.side != new.side else resized).append((old, new))
                lost.discard(old)
                added.discard(new)
                break
    unread = _unread(*texts)
    if lost or added or moved or resized:
        verdict: Verdict = "differs"
    elif unread or not before:
        verdict = "unchecked"
        unread = unread or ["no finding was read"]
    else:
        verdict = "agrees"
    return FindingsComparison(
        verdict, _ordered(added), _ordered(lost), tuple(moved), tuple(resized), tuple(unread)
    )


@dataclass(frozen=True)
class _Sentence:
    text: str
    findings: tuple[RegionFinding, ...]
    loose: tuple[str, ...]  # numbers, words of place and medical terms that no finding took


@dataclass(frozen=True)
class _Organs:
    names: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True)
class _Draft:
    organs: tuple[str, ...]
    head: str
    polarity: Status
    start: int
    end: int
    clause_start: int
    clause_end: int


_JOINED = re.compile(
    r"[\s,/]*(?:(?:and|or|nor|the|both|left|right|bilateral|glands?|main|parenchyma|no|urinary|in|of)\b[\s,/]*)*"
)
_TITLE = re.compile(r"^(?:findings|impressions?|conclusion|full result)\W")
_HEADING = re.compile(r"[a-z][a-z /,&-]{2,60}:")
_ANSWER = re.compile(r"\W*(?:absent|none|nil|negative|present|no)\b")
_NOT = re.compile(r"\b(?:not|never|non)[ -](?:\w+ ){0,2}$")
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|shows?|demonstrates?|contains?|appears?|measures?)\b")
_PREPOSITION = re.compile(
    r"\b(?:on|in|at|of|to|across|throughout|within|involving|from|along)(?: the| its)?(?: \w+){0,1} ?$"
)
# What may stand between a size and the noun it qualifies: "9 mm nonobstructing left renal stone".
_ATTRIBUTE = re.compile(r"[\s-]*(?:(?!in\b|of\b|at\b|and\b|is\b|was\b|with\b|on\b)[\w-]+\s+){0,5}")
_JOIN = re.compile(r",|\band\b|\bwith\b")
_DENIAL = re.compile(rf"(?:{DENIAL})")
# Sentences on how the study was done; they state no finding.
_TECHNIQUE = re.compile(
    r"\b(?:technique|comparison|clinical|history|indication|reconstruct\w+|reformat\w+|multi-?detector|scanner|"
    r"(?:intravenous|oral|iv|iodinated|nonionic) contrast|dose|acquired|(?:study|examination|exam) (?:was|is|covers))\b"
)
_PLACE = re.compile(
    r"\b(?:upper|lower|middle|mid|anterior|posterior|proximal|distal|superior|inferior|medial|lateral|head|neck|body|tail|"
    r"uncinate|caudate|segment|dome|pole|interpolar|apical|basal|central|peripheral|cranial|caudal|ascending|descending|"
    r"transverse|terminal|infrarenal|suprarenal)\b"
)
# Terms that name a disease or an operation by their ending.
_TERM = re.compile(
    r"\b[a-z]{2,}(?:itis|omas?|os[ie]s|path(?:y|ies)|ectomy|otomy|ostomy|plasty|lithiasis|cele|trophy|megaly)\b"
)
_COUNT = {
    word: str(number)
    for number, word in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=2
    )
}
_NUMBER = re.compile(rf"(?<![\w.,])\d+(?:[.,]\d+)?(?!\w)|\b(?:{'|'.join(_COUNT)})\b")


@lru_cache(maxsize=64)  # one original is compared with many rewrites
def _read(text: str, *, with_labels: bool = False) -> tuple[_Sentence, ...]:
    even = even_text(text)
    read = []
    context: tuple[str, ...] = ()
    for start, end in sentences(even.clean):
        sentence = even.clean[start:end]
        if _TECHNIQUE.search(sentence) or not re.search(r"[a-z]", _TITLE.sub("", sentence)):
            continue
        organs = list(_organ_groups(sentence))
        heading = _HEADING.match(sentence)
        if heading and not any(group.start < heading.end() for group in organs):
            context = ()
        drafts = [
            _Draft(
                ("chest",),
                mention.label,
                mention.status,
                mention.start,
                mention.end,
                *_bounds(sentence, mention),
            )
            for mention in (mentions_in(sentence) if with_labels else ())
        ]
        taken = [(draft.start, draft.end) for draft in drafts]
        for head, first, last, clause in _heads(sentence, organs):
            if not any(first < other[1] and other[0] < last for other in taken):
                # "Nephrolithiasis with a stone of 7 mm": the stone is where the first word puts it.
                same = [draft.organs for draft in drafts if draft.head == head.name and not organs]
                names = same[0] if same else _organs_of(head, first, last, clause, organs, context)
                polarity = _polarity(head, sentence[slice(*clause)], first - clause[0], last - clause[0])
                drafts += _drafts(names, head.name, polarity, (first, last), clause, with_labels)
        if organs:
            context = organs[-1].names
        sides, sizes, loose = _measured(sentence, sorted(drafts, key=lambda draft: draft.start))
        findings = [
            RegionFinding(
                organ,
                draft.head,
                draft.polarity,
                one_side(sides.get(draft, ())),
                tuple(sorted((mm for size in sizes.get(draft, ()) for mm in size.mm), reverse=True)),
                even.span(start + draft.start, start + draft.end),
            )
            for draft in sorted(drafts, key=lambda draft: draft.start)
            for organ in draft.organs
        ]
        read.append(_Sentence(sentence, tuple(findings), loose))
    return tuple(read)


def _drafts(
    names: tuple[str, ...],
    head: str,
    polarity: Status,
    span: tuple[int, int],
    clause: tuple[int, int],
    with_labels: bool,
) -> Iterator[_Draft]:
    """Draft a head of one or several organs; what a label of the chest says too goes by the label's name."""
    labels = {
        name: CHEST_LABEL_OF[name, head] for name in names if with_labels and (name, head) in CHEST_LABEL_OF
    }
    for label in dict.fromkeys(labels.values()):
        yield _Draft(("chest",), label, polarity, *span, *clause)
    if rest := tuple(name for name in names if name not in labels):
        yield _Draft(rest, head, polarity, *span, *clause)


def _organ_groups(sentence: str) -> Iterator[_Organs]:
    """Yield the organs of a sentence; those of one enumeration ("liver, spleen and both kidneys") together."""
    found: list[_Organs] = []
    for name, pattern in _compiled().organs:
        for match in pattern.finditer(sentence):
            if not any(match.start() < other.end and other.start < match.end() for other in found):
                found.append(_Organs((name,), *match.span()))
    group: _Organs | None = None
    for mention in sorted(found, key=lambda mention: mention.start):
        if group and _JOINED.fullmatch(sentence, group.end, mention.start):
            group = _Organs(tuple(dict.fromkeys(group.names + mention.names)), group.start, mention.end)
            continue
        if group:
            yield group
        group = mention
    if group:
        yield group


def _heads(sentence: str, organs: list[_Organs]) -> Iterator[tuple[Head, int, int, tuple[int, int]]]:
    """Yield every head with its span and its clause. A heading is none, unless it is answered ("drains: none")."""
    heading = _HEADING.match(sentence)
    skipped = 0
    if heading and (
        any(group.start < heading.end() for group in organs) or not _ANSWER.match(sentence, heading.end())
    ):
        skipped = heading.end()
    bounds = _region_clauses(sentence, organs)
    taken: list[tuple[int, int]] = []
    found = []
    for head, pattern in _compiled().heads:
        for match in pattern.finditer(sentence, skipped):
            if not any(match.start() < other[1] and other[0] < match.end() for other in taken):
                taken.append(match.span())
                found.append((head, *match.span()))
    for head, start, end in found:
        first, last = next(bound for bound in bounds if start < bound[1])
        yield head, start, end, (first, max(last, end))


def _region_clauses(sentence: str, organs: list[_Organs]) -> list[tuple[int, int]]:
    """Split clauses further where another organ becomes the subject of a verb of its own."""
    bounds = []
    for first, last in clauses(sentence):
        start = first
        for join in _JOIN.finditer(sentence, first, last):
            before, after = (start, join.start()), (join.end(), last)
            following = next((group for group in organs if after[0] <= group.start < after[1]), None)
            if (
                following
                and following.start - join.end() < 25
                and any(before[0] <= group.start < before[1] for group in organs)
                and not any(group.start < join.start() < group.end for group in organs)
                and _VERB.search(sentence, *before)
                and _VERB.search(sentence, following.end, min(last, following.end + 60))
            ):
                bounds.append((start, join.start()))
                start = join.start()
        bounds.append((start, last))
    return bounds


def _organs_of(
    head: Head, start: int, end: int, clause: tuple[int, int], groups: list[_Organs], context: tuple[str, ...]
) -> tuple[str, ...]:
    """Choose the organs of a head: of its clause the nearest, else of the sentence, else of the sentence before."""
    if len(head.organs) == 1:
        return head.organs
    allowed = [
        _Organs(names, group.start, group.end)
        for group in groups
        if (names := tuple(name for name in group.names if not head.organs or name in head.organs))
    ]
    inside = [group for group in allowed if clause[0] <= group.start < clause[1]]
    if nearest := min(
        inside or allowed, key=lambda group: max(group.start - end, start - group.end, 0), default=None
    ):
        return nearest.names
    if head.organs:  # a sentence with organs of its own says nothing of those of the sentence before
        known = tuple(name for name in context if name in head.organs and not groups)
        return known or ((head.default,) if head.default else ())
    return context or ("unspecified",)


def _polarity(head: Head, clause: str, start: int, end: int) -> Status:
    if head.name == "abnormality" and _DENIAL.fullmatch(clause, start, end):
        return "negative"
    if head.is_firm:
        return "positive"
    if _NOT.search(clause[:start]):
        return "negative"
    return status_of(clause, start, end)


def _measured(
    sentence: str, drafts: list[_Draft]
) -> tuple[dict[_Draft, list[SideMention]], dict[_Draft, list[Size]], tuple[str, ...]]:
    """Give each side and size of a sentence to a finding; return the numbers, places and terms that are left."""
    sides: dict[_Draft, list[SideMention]] = {}
    sizes: dict[_Draft, list[Size]] = {}
    rest = sentence
    for mention in find_sides(sentence):
        follows = sentence[slice(*mention.span)] == "bilaterally" or _PREPOSITION.search(
            sentence[: mention.span[0]]
        )
        if owner := _owner(drafts, mention.span, prefer_before=bool(follows)):
            sides.setdefault(owner, []).append(mention)
    sized = [draft for draft in drafts if draft.head not in ("abnormality", "absence")]
    for size in find_sizes(sentence):
        following = next((draft for draft in sized if draft.start >= size.span[1]), None)
        qualifies = following and _ATTRIBUTE.fullmatch(sentence, size.span[1], following.start)
        if owner := _owner(sized, size.span, prefer_before=not qualifies):
            sizes.setdefault(owner, []).append(size)
            rest = rest[: size.span[0]] + " " * (size.span[1] - size.span[0]) + rest[size.span[1] :]
    for draft in drafts:
        rest = rest[: draft.start] + " " * (draft.end - draft.start) + rest[draft.end :]
    numbers = tuple(_COUNT.get(match[0], match[0]) for match in _NUMBER.finditer(rest))
    return sides, sizes, (*numbers, *_PLACE.findall(rest), *_TERM.findall(rest))


def _owner(drafts: list[_Draft], span: tuple[int, int], *, prefer_before: bool) -> _Draft | None:
    """Choose the finding that a side or size is said of: in its clause the one before it or the one after it."""
    inside = [draft for draft in drafts if draft.clause_start <= span[0] < draft.clause_end] or drafts
    before = [draft for draft in inside if draft.start < span[0]][-1:]
    after = [draft for draft in inside if draft.start >= span[0]][:1]
    return next(iter(before + after if prefer_before else after + before), None)


def _bounds(sentence: str, mention: Mention) -> tuple[int, int]:
    first, last = next(part for part in clauses(sentence) if mention.start < part[1])
    return first, max(last, mention.end)


def _joined(findings: tuple[RegionFinding, ...]) -> list[RegionFinding]:
    """Join what a sentence says of a finding in two places, its side in one and its size in the other."""
    joined: list[RegionFinding] = []
    for new in findings:
        for place, old in enumerate(joined):
            if (old.organ, old.head, old.polarity) == (new.organ, new.head, new.polarity) and (
                (old.side is None and not new.size_mm) or (new.side is None and not old.size_mm)
            ):
                joined[place] = replace(old, side=old.side or new.side, size_mm=old.size_mm or new.size_mm)
                break
        else:
            joined.append(new)
    return joined


def _distinct(findings: list[RegionFinding]) -> set[RegionFinding]:
    """Drop repetitions, and mentions that another one of the same finding says with more detail."""
    distinct = set(findings)
    return {
        one
        for one in distinct
        if not any(
            other != one
            and (one.organ, one.head, one.polarity) == (other.organ, other.head, other.polarity)
            and one.side in (None, other.side)
            and not Counter(one.size_mm) - Counter(other.size_mm)
            for other in distinct
        )
    }


def _unread(original: tuple[_Sentence, ...], rewrite: tuple[_Sentence, ...]) -> list[str]:
    """List what only one of the texts holds and no finding took."""
    unread = []
    silent = [
        {sentence.text.strip(" .") for sentence in text if not sentence.findings}
        for text in (original, rewrite)
    ]
    unread += [f"original: {sentence}" for sentence in sorted(silent[0] - silent[1])]
    unread += [f"rewrite: {sentence}" for sentence in sorted(silent[1] - silent[0])]
    loose = [{word for sentence in text for word in sentence.loose} for text in (original, rewrite)]
    unread += [f"original: {word}" for word in sorted(loose[0] - loose[1])]
    unread += [f"rewrite: {word}" for word in sorted(loose[1] - loose[0])]
    return unread


def _ordered(findings: set[RegionFinding]) -> tuple[RegionFinding, ...]:
    return tuple(sorted(findings, key=lambda finding: (finding.span, finding.organ, finding.head)))


@dataclass(frozen=True)
class _Compiled:
    organs: tuple[tuple[str, re.Pattern[str]], ...]
    heads: tuple[tuple[Head, re.Pattern[str]], ...]


@cache
def _compiled() -> _Compiled:
    return _Compiled(
        tuple((organ.name, any_of(organ.mention)) for organ in ORGANS),
        tuple((head, any_of(head.mention)) for head in HEADS),
    )
