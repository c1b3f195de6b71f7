"""Read a GREEN judge's reply: errors per category, matched findings, the score, and whether to trust it.

GREEN (https://huggingface.co/papers/2405.03595) = matched / (matched + clinically significant errors). Two parsers:

- `strict` gives a score only for a reply that it read in full. What it could not read is `None` with a status.
- `reference` gives the number of the released scorer (`green-score` 0.0.12) to the bit, failures included, beside the
  status that the strict reading arrived at: a 0 that stands for a cut-off reply can be told from a real 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Parser = Literal["strict", "reference"]
# `failed` is a call without a reply; the others say how a reply read.
Status = Literal["ok", "truncated", "unparsed", "empty", "failed"]
STATUSES: tuple[Status, ...] = ("ok", "truncated", "unparsed", "empty", "failed")

CATEGORIES = {
    "a": "false finding",
    "b": "missing finding",
    "c": "wrong location",
    "d": "wrong severity",
    "e": "comparison that the reference lacks",
    "f": "omitted comparison with a prior study",
}


@dataclass(frozen=True)
class Reading:
    """What a reply says. Counts are `None` where they could not be read.

    Args:
        status (`str`): `ok`, `truncated` (cut off before the end), `unparsed`, `empty` or `failed`.
        score (`float`, *optional*): GREEN. With nothing matched and no significant error, as for two normal reports,
            it is 1 in the strict parser and 0 in the reference parser.
        matched (`int`, *optional*): Findings that both reports have.
        significant (`dict`, *optional*): Clinically significant errors per category, `a` to `f`.
        insignificant (`dict`, *optional*): The same for clinically insignificant errors; not part of the score.
        errors (`dict`): The significant errors as the judge worded them, per category that has any.
    """

    status: Status
    score: float | None = None
    matched: int | None = None
    significant: dict[str, int] | None = None
    insignificant: dict[str, int] | None = None
    errors: dict[str, list[str]] = field(default_factory=dict)


def read_reply(reply: str, finish_reason: str | None = None, parser: Parser = "strict") -> Reading:
    """Read a reply.

    Args:
        reply (`str`): The judge's text. What precedes the last `</think>` is ignored.
        finish_reason (`str`, *optional*): Why generation ended, as servers say it: `stop`, `length`, ... Without it a
            reply that ends before its last section counts as truncated.
    """
    reply = reply.rpartition("</think>")[2]
    strict = _read_strictly(reply, finish_reason)
    if parser == "strict":
        return strict
    text = _released_cleaning(reply)
    matched = _released_matched(text)
    significant = _released_errors(text, "Clinically Significant Errors")
    return Reading(
        status=strict.status,
        score=matched / (matched + sum(significant.values())) if matched else 0.0,
        matched=matched,
        significant=significant,
        insignificant=_released_errors(text, "Clinically Insignificant Errors"),
        errors=strict.errors,
    )


# --- strict -------------------------------------------------------------------------------------------------------

_NAMES = r"(explanation|clinically significant errors|clinically insignificant errors|matched findings)"
_HEADER = re.compile(rf"[*_#]*\[{_NAMES}\][*_]*\s*:?[*_]*", re.IGNORECASE)
_BARE_HEADER = re.compile(rf"^[ \t>*_#]*{_NAMES}[*_]*\s*(?::[*_]*|$)", re.IGNORECASE | re.MULTILINE)

# A category at the start of a line, or within one where a type, a colon and a number follow.
_ENTRY = r"(?:^[\s>*_•-]*|(?<=[.;\s])(?=\([{0}]\)\s[^:\n;]{{3,90}}:[\s*_]*\d))\(?([{0}])\)[*_]*[\s.:]*"
_LETTERED = re.compile(_ENTRY.format("a-f"), re.IGNORECASE | re.MULTILINE)
_NUMBERED = re.compile(_ENTRY.format("1-6").replace(r"\(?", r"\("), re.MULTILINE)

# A number that counts: `2.`, `**2**.`, `2 - nodule`, `2 errors`, a lone `2`; not `12.5 mm`, `5-6 mm` or `3 mm`.
_COUNT = re.compile(
    r"[*_\s]*(\d{1,3})[*_]*\s*(?:\.(?!\d)[*_]*|[:)]|[-–—]\s|(?:errors?|(?:match(?:ed|es|ing)?\s+)?findings?)\b[.:]?|\n|\Z)"
)
_SENTENCE_COUNT = re.compile(
    r"(?:there (?:are|is|were|was)|total(?: of)?:?)\s+[*_]*(\d{1,3})[*_]*\s+(?:match\w*|findings?\b)",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(r"^[\s*•-]*(\d{1,3})[.)]\s", re.MULTILINE)
_NO_ERRORS = re.compile(
    r"(?:none|nil|n/?a|not applicable|"
    r"(?:there (?:are|were) )?no(?: (?:clinically|significant|insignificant|false|missing|missed|other|such))* "
    r"(?:errors?|findings?|reports?))(?: (?:were|was|are|is))?"
    r"(?: (?:found|identified|noted|present|detected|observed))?",
    re.IGNORECASE,
)
_NO_MATCHES = re.compile(
    r"(?:none|nil|n/?a|(?:there (?:are|were) )?no(?: (?:match\w*|common|shared))? (?:findings?|matches))"
    r"(?: (?:were|was|are|is))?(?: (?:found|identified|noted|present|detected|observed|matched))?",
    re.IGNORECASE,
)


def _read_strictly(reply: str, finish_reason: str | None) -> Reading:
    if finish_reason in ("length", "content_filter"):
        return Reading("truncated")
    if not reply.strip():
        return Reading("empty")
    sections = _split_sections(reply)
    if sections is None:
        return Reading("unparsed")
    if "matched findings" not in sections:
        return Reading("truncated" if sections and finish_reason is None else "unparsed")
    significant, errors = _count_errors(sections.get("clinically significant errors", ""))
    insignificant, _ = _count_errors(sections.get("clinically insignificant errors", ""))
    matched = _count_matched(sections["matched findings"])
    if significant is None or matched is None:
        return Reading("unparsed")
    total = matched + sum(significant.values())
    return Reading("ok", matched / total if total else 1.0, matched, significant, insignificant, errors)


def _split_sections(reply: str) -> dict[str, str] | None:
    """Map section names to bodies, from the last explanation on; `None` if a section is there twice and differs."""
    headers = list(_HEADER.finditer(reply)) or list(_BARE_HEADER.finditer(reply))
    ends = [header.start() for header in headers[1:]] + [len(reply)]
    found = [
        (header.group(1).lower(), reply[header.end() : end].strip(" \n\t`"))
        for header, end in zip(headers, ends)
    ]
    last = max((i for i, (name, _) in enumerate(found) if name == "explanation"), default=0)
    sections: dict[str, str] = {}
    for name, body in found[last:]:
        if sections.setdefault(name, body) != body:
            return None
    return sections


def _count_errors(body: str) -> tuple[dict[str, int] | None, dict[str, list[str]]]:
    """Count errors per category and quote them; `None` if a line does not say how many."""
    counts: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
    errors: dict[str, list[str]] = {}
    entries = list(_LETTERED.finditer(body)) or list(_NUMBERED.finditer(body))
    if not entries:
        return (counts if _says(_NO_ERRORS, body) else None), {}
    ends = [entry.start() for entry in entries[1:]] + [len(body)]
    for entry, end in zip(entries, ends):
        key = entry.group(1).lower()
        category = key if key in CATEGORIES else "abcdef"[int(key) - 1]
        text = body[entry.end() : end].strip()
        after_type = text.partition(":")[2].strip()
        count, wording = _read_count(text) or _read_count(after_type) or (None, "")
        if count is None:
            if not (_says(_NO_ERRORS, text) or _says(_NO_ERRORS, after_type)):
                return None, {}
            continue
        counts[category] += count
        lines = [" ".join(line.split()).strip("*_-•. ") for line in re.split(r";|\n", wording)]
        if count and any(lines):
            errors.setdefault(category, []).extend(line for line in lines if line)
    return counts, errors


def _count_matched(body: str) -> int | None:
    sentence = _SENTENCE_COUNT.match(body)
    if sentence:
        return int(sentence.group(1))
    counted = _read_count(body)
    if counted:
        return counted[0]
    return 0 if _says(_NO_MATCHES, body) else None


def _read_count(text: str) -> tuple[int, str] | None:
    """Return the count a text starts with, and the rest; a list numbered 1, 2, ... counts its lines."""
    numbers = [int(number) for number in _LIST_NUMBER.findall(text)]
    if len(numbers) > 1 and numbers == list(range(1, len(numbers) + 1)) and _LIST_NUMBER.match(text):
        return len(numbers), _LIST_NUMBER.sub("", text)
    count = _COUNT.match(text)
    return (int(count.group(1)), text[count.end() :]) if count else None


def _says(statement: re.Pattern[str], text: str) -> bool:
    return statement.fullmatch(text.strip(" \n\t.;*_-")) is not None


# --- reference: what green-score 0.0.12 computes, quirks included -------------------------------------------------


def _released_cleaning(reply: str) -> str:
    if "[Explanation]:" in reply:
        reply = reply.split("<|assistant|>")[-1]
        # The released test looks for the first spelling only, so an echoed format block wins over the answer after it.
        echoed = "[Explanation]:\n    <Explanation>\n" in reply
        reply = reply.split("[Explanation]:")[1 if echoed else -1]
    return reply.split("<|assistant|>")[-1].replace("</s>", "").replace("<unk>", "")


def _released_section(text: str, name: str) -> str:
    """Return the text under a header up to the first blank line; empty if it is missing or starts with "No"."""
    section = re.search(rf"\[{name}\]:\s*(.*?)(?:\n\s*\n|\Z)", text, re.DOTALL)
    return "" if section is None or section.group(1).startswith("No") else section.group(1)


def _released_matched(text: str) -> int:
    number = re.search(r"^\b\d+\b(?=\.)", _released_section(text, "Matched Findings"))
    return int(number.group()) if number else 0


def _released_errors(text: str, name: str) -> dict[str, int]:
    body, counts = _released_section(text, name), dict.fromkeys(CATEGORIES, 0)
    keys = "abcdef"
    lines = sorted(re.findall(r"\([a-f]\) .*", body))
    if not lines:
        keys, lines = "123456", sorted(re.findall(r"\([1-6]\) .*", body))
    for line in lines:  # of two lines for one category the last in alphabetical order counts
        number = re.search(r"(?<=: )\b\d+\b(?=\.)", line)
        if number:
            counts["abcdef"[keys.index(line[1])]] = int(number.group())
    return counts
