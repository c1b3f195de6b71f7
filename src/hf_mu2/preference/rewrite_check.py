"""Say whether a paraphrase of a report may stand for it: whole, in form, and the same in every finding.

A paraphrase is refused for the first reason that applies (`REASONS`). What counts as a change: a finding or a denial
that one text states and the other does not; another side, place, size, number or severity of a finding that both
state. A lost "no pneumothorax" is a lost statement, as a lost pneumothorax would be: a report is also what it denies.
Findings and impression are compared each with its own original. Refusing too much costs a paraphrase, refusing too
little costs a false report in the training data: where the two pull apart, the check refuses.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from hf_mu2.scoring.hygiene import clean_candidate
from hf_mu2.scoring.judge_cache import Reply
from hf_mu2.scoring.measures import find_sides, find_sizes
from hf_mu2.scoring.regions import (
    REGIONS,
    FindingsComparison,
    RegionFinding,
    compare_findings,
    read_findings,
)
from hf_mu2.scoring.statements import even_text, sentences

VERSION = "rewrite-1"
Status = Literal["checked", "unchecked", "refused"]
REASONS = (
    "no reply",
    "empty",
    "truncated",
    "preamble",
    "markup",
    "layout",
    "script",
    "too short",
    "too long",
    "duplicate",
    "added",
    "lost",
    "moved",
    "resized",
    "number",
    "severity",
)
# Words of the paraphrase per word of the original. Dictated phrases say "No effusion" for "There is no evidence of an
# effusion"; below or above these something else than the wording has changed.
SHORTEST, LONGEST = 0.4, 2.2
WHOLE = (None, "stop", "eos_token")  # servers that name no reason for the end are believed
_PREAMBLE = re.compile(
    r"^\W*(?:sure\b|certainly\b|of course\b|okay\b|ok\b|absolutely\b|here(?:'s| is| are)\b|below (?:is|are)\b|"
    r"as requested\b|note\b|i(?:'m| am| cannot| can't| have|'ve)\b|as an ai\b|sorry\b|(?:the )?(?:re-?)?(?:written|"
    r"rewrite|rewritten|rephrased|revised|paraphrased?|paraphrase)\b|(?:version|style|option) \d|"
    r"(?:this|the following) is\b)",
    re.IGNORECASE,
)
_AFTERWORD = re.compile(
    r"\b(?:let me know|feel free|i hope|hope this|please note that i|i (?:have|'ve) (?:re|kept|preserved)|"
    r"(?:this|the) (?:re(?:write|wording|vised|phrased)|paraphrased?|above) (?:report|version|text)?|"
    r"language model|original (?:report|meaning|text))\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"```|\*\*|^\s*#{1,6} |</?\w+>|^\s*\|.*\|\s*$", re.MULTILINE)
_HEADING = re.compile(r"^\s*(findings|impression)\s*:\s*", re.IGNORECASE | re.MULTILINE)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Verdict:
    """What became of a rewrite.

    Args:
        status (`str`): `"checked"`: the readers read both texts in full and they agree; `"unchecked"`: nothing differs
            that they can read, but something was not read; `"refused"`.
        reason (`str`): One of `REASONS` where refused.
        detail (`str`): What differs, in the readers' own terms; never words of a report.
        texts (`dict[str, str]`): The accepted text by section.
    """

    status: Status
    reason: str = ""
    detail: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)


def check_paraphrase(
    reply: Reply, original: Mapping[str, str], region: str, taken: Collection[str] = ()
) -> Verdict:
    """Check the reply to a paraphrase prompt.

    Args:
        reply (`Reply`): Text, finish reason, or the error of a call that failed.
        original (`Mapping[str, str]`): The sections of the report that have a text, `findings` and `impression`.
        region (`str`): Of the study row, e.g. `"chest"` or `"abdomen+pelvis"`; nothing is `"checked"` where the
            readers know none of its parts.
        taken (`Collection[str]`): `bare_words` of paraphrases of this report that were accepted before.
    """
    if reply.error is not None:
        return Verdict("refused", "no reply", reply.error)
    text, state = clean_candidate(reply.text)
    if reply.finish_reason not in WHOLE or state == "unclosed_reasoning":
        return Verdict("refused", "truncated", f"finish reason {reply.finish_reason}")
    if not text:
        return Verdict("refused", "empty")
    if reason := _wrong_form(text, original):
        return Verdict("refused", reason)
    texts = split_sections(text)
    if texts is None or set(texts) != set(original):
        return Verdict("refused", "layout", f"sections {sorted(texts or ())} for {sorted(original)}")
    for name in texts:
        words, wanted = len(texts[name].split()), len(original[name].split())
        if not SHORTEST * wanted <= words <= LONGEST * wanted + 5:
            return Verdict(
                "refused", "too short" if words < wanted else "too long", f"{words} words for {wanted}"
            )
    if bare_words(texts) in {bare_words(original), *taken}:
        return Verdict("refused", "duplicate")
    return compare_sections(original, texts, region)


def compare_sections(original: Mapping[str, str], texts: Mapping[str, str], region: str) -> Verdict:
    """Compare what each section says with what its original says; form is not looked at."""
    reader, is_known = reader_region(region)
    status: Status = "checked" if is_known else "unchecked"
    for name, text in texts.items():
        found = compare_findings(original[name], text, region=reader)
        if difference := _difference(found, original[name], text, reader):
            return Verdict("refused", difference[0], f"{name}: {difference[1]}")
        if found.verdict != "agrees":
            status = "unchecked"
    return Verdict(status, texts=dict(texts))


def reader_region(region: str) -> tuple[str, bool]:
    """Name the reader for the region of a study row, and say whether it knows the region.

    Texts of other regions are still compared, since what differs there differs; but agreement proves nothing.
    """
    parts = [part for part in REGIONS if part in region.split("+")]
    return (parts[0] if parts else "chest"), bool(parts)


def split_sections(text: str) -> dict[str, str] | None:
    """Take "Findings: ...\\nImpression: ..." apart; `None` where something stands before, or a section comes twice."""
    marks = list(_HEADING.finditer(text))
    names = [mark[1].lower() for mark in marks]
    if not marks or marks[0].start() != 0 or len(set(names)) < len(names):
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return {name: text[mark.end() : end].strip() for name, mark, end in zip(names, marks, ends)}


def bare_words(texts: Mapping[str, str]) -> str:
    """Reduce sections to their words, so that case, spaces and punctuation make no other paraphrase."""
    return " | ".join(" ".join(_WORD.findall(texts[name].lower())) for name in sorted(texts))


def foreign_scripts(text: str, original: str) -> set[str]:
    """Name the scripts of letters in `text` that `original` has none of; Greek is radiology's too."""
    return _scripts(text) - _scripts(original) - {"LATIN", "GREEK"}


def _wrong_form(text: str, original: Mapping[str, str]) -> str | None:
    """Say what is wrong with a reply before it is read as a report."""
    if _PREAMBLE.search(text):
        return "preamble"
    written = " ".join(original.values())
    if (found := _AFTERWORD.search(text)) and found[0].lower() not in written.lower():
        return "preamble"
    if _MARKUP.search(text) and not _MARKUP.search(written):
        return "markup"
    return "script" if foreign_scripts(text, written) else None


def _scripts(text: str) -> set[str]:
    letters = {character for character in text if character.isalpha() and not character.isascii()}
    names = (unicodedata.name(letter, "UNKNOWN").partition(" ")[0] for letter in letters)
    return {
        name for name in names if name not in ("MICRO", "FEMININE", "MASCULINE", "MODIFIER", "SUPERSCRIPT")
    }


def _difference(found: FindingsComparison, original: str, text: str, reader: str) -> tuple[str, str] | None:
    """Return why a section does not say what its original says, and how the readers put it."""
    if found.moved:
        old, new = found.moved[0]
        return "moved", f"{_name(old)} from {old.side or 'no side'} to {new.side or 'no side'}"
    if found.resized:
        old, new = found.resized[0]
        return "resized", f"{_name(old)} from {_mm(old.size_mm)} to {_mm(new.size_mm)}"
    if found.added:
        return "added", _name(found.added[0])
    if found.lost:
        return "lost", _name(found.lost[0])
    sides = [Counter(mention.side for mention in find_sides(each)) for each in (original, text)]
    if _is_traded(*({side: count[side] for side in ("left", "right")} for count in sides)):
        return "moved", "left and right in other proportions"
    # "Both" may stand for left and right, and be left out where it says nothing ("both axillae").
    only = {side for side in ("left", "right") for one, other in (sides, sides[::-1])
            if one[side] and not other[side] and not other["both"]}  # fmt: skip
    if only:
        return "moved", f"only one text says {' and '.join(sorted(only))}"
    sizes = [{size.mm for size in find_sizes(each)} for each in (original, text)]
    if sizes[0] != sizes[1]:
        lengths = sorted(sizes[0] ^ sizes[1])
        return "resized", f"only one text says {', '.join(map(_mm, lengths))}"
    numbers = [numbers_of(each) for each in (original, text)]
    if _is_traded(*numbers):
        return "number", f"from {_list(numbers[0] - numbers[1])} to {_list(numbers[1] - numbers[0])}"
    return _regraded(original, text, reader)


# Words of which a finding has one: another one is a change, none is only less detail.
_AXES: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "moved",
        {
            **dict.fromkeys(("upper", "superior", "apical", "apex", "apices"), "upper"),
            **dict.fromkeys(("middle", "mid", "lingula", "lingular"), "middle"),
            **dict.fromkeys(("lower", "inferior", "basal", "base", "bases", "basilar"), "lower"),
        },
    ),
    ("moved", {"anterior": "anterior", "ventral": "anterior", "posterior": "posterior", "dorsal": "posterior"}),
    ("moved", {"proximal": "proximal", "distal": "distal"}),
    ("moved", {"ascending": "ascending", "descending": "descending", "arch": "arch", "transverse": "transverse"}),
    ("moved", {"central": "central", "peripheral": "peripheral", "subpleural": "peripheral"}),
    ("moved", {"hilar": "hilar", "axillary": "axillary", "mediastinal": "mediastinal", "subcarinal": "mediastinal",
               "paratracheal": "mediastinal"}),
    (
        "severity",
        {
            **dict.fromkeys(("mild", "mildly", "minimal", "minimally", "slight", "slightly", "small", "trace"), "mild"),
            **dict.fromkeys(("moderate", "moderately"), "moderate"),
            **dict.fromkeys(
                ("severe", "severely", "marked", "markedly", "massive", "massively", "large", "extensive"), "severe"
            ),
        },
    ),
)  # fmt: skip
_NUMERAL = {
    word: str(number)
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1
    )
}
# A list's own numbers at the start of a line count nothing.
_NUMBER = re.compile(
    r"(?<![\w.,])(?!(?<=\n)\d+[.)])\d+(?:[.,]\d+)?|\b(?:" + "|".join(list(_NUMERAL)[1:]) + r")\b"
)


def numbers_of(text: str) -> Counter[str]:
    """Read the numbers of a text that are no lengths: counts, segments, vertebrae."""
    rest = list(text.lower())
    for size in find_sizes(text):
        rest[slice(*size.span)] = " " * (size.span[1] - size.span[0])
    return Counter(_NUMERAL.get(match[0], match[0]) for match in _NUMBER.finditer("".join(rest)))


def _is_traded(before: Mapping[str, int], after: Mapping[str, int]) -> bool:
    """Tell whether one of several words that exclude each other became more frequent and another one less.

    Joining and splitting statements makes words of place rarer or more frequent together, not one for the other.
    """
    changes = [after.get(word, 0) - before.get(word, 0) for word in {**before, **after}]
    return min(changes, default=0) < 0 < max(changes, default=0)


def places_of(text: str) -> set[str]:
    """Read the words that place something within an organ, synonyms as one word."""
    words = _WORD.findall(text.lower())
    return {axis[word] for word in words for reason, axis in _AXES if reason == "moved" and word in axis}


def _regraded(original: str, text: str, reader: str) -> tuple[str, str] | None:
    """Find a word of place or severity that stands for one that excludes it, in all of the text or of one finding."""
    words = [_WORD.findall(each.lower()) for each in (original, text)]
    for reason, axis in _AXES:
        counts = [Counter(axis[word] for word in each if word in axis) for each in words]
        if _is_traded(*counts):
            return reason, f"{_list(set(counts[0]))} and {_list(set(counts[1]))} in other proportions"
    before, after = (words_by_finding(each, reader) for each in (original, text))
    for finding in before.keys() & after.keys():
        for reason, axis in _AXES:
            one, other = ({axis[word] for word in found[finding] & axis.keys()} for found in (before, after))
            if one and other and not one & other:
                return reason, f"{finding[1]} ({finding[0]}) from {_list(one)} to {_list(other)}"
    return None


@lru_cache(maxsize=64)  # one original is compared with many rewrites
def words_by_finding(text: str, reader: str) -> dict[tuple[str, str, str | None], set[str]]:
    """Gather the words of the sentences that state each positive finding, by organ, head and side."""
    found: dict[tuple[str, str, str | None], set[str]] = {}
    for sentence in _sentences(text):
        words = set(_WORD.findall(sentence.lower()))
        for finding in read_findings(sentence, region=reader):
            if finding.polarity != "negative":
                found.setdefault((finding.organ, finding.head, finding.side), set()).update(words)
    return found


def _sentences(text: str) -> Iterator[str]:
    even = even_text(text).clean
    return (even[start:end] for start, end in sentences(even))


def _name(finding: RegionFinding) -> str:
    polarity = {"positive": "", "negative": "no ", "uncertain": "possible "}[finding.polarity]
    return f"{polarity}{finding.head} ({finding.organ})"


def _mm(lengths: tuple[float, ...]) -> str:
    return f"{' x '.join(f'{length:g}' for length in lengths)} mm" if lengths else "no size"


def _list(words: Iterable[str]) -> str:
    return " and ".join(sorted(words))
