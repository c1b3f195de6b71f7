"""Cut a report into sentences and clauses, and say of a mention whether it is affirmed, denied or hedged.

Shared by the labeler of chest findings (`labels.py`) and by the reader of other regions (`regions.py`). Every pattern
is an alternative over lower-case text.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

Patterns = tuple[str, ...]
Status = Literal["positive", "negative", "uncertain"]

# A full stop ends a sentence unless it stands in a number; "?" only outside brackets, as in "(cyst?)".
SENTENCE_END: Patterns = (r"(?<!\d)\.|\.(?!\d)", r"[!\n\"“”•·;]", r"\?(?=\s+[^)\s]|\s*$)")
# A negation does not reach across these.
CLAUSE_BREAK: Patterns = (
    r"\b(?:but|however|although|though|whereas|except|apart from|other than|aside from)\b",
    r";",
    r",\s*(?:and\s+)?(?=(?:there|it|a|an|mild|mildly|moderate|severe|minimal|small|large|trace|multiple|few|several|"
    r"stable|slight|millimetric|nonspecific|unchanged|status|fusiform|dilat\w+|aneurysm\w+|ectasia|ather\w+|calcif\w+)\b)",
)
# Words of place that open a sentence ("In the aortic arch, calcified plaques are seen") are part of what follows.
OPENING: Patterns = (
    r"^\W*(?:in|at|on|within|along|around|near)\b(?!.*\b(?:is|are|was|were|no|not|without)\b)",
)
# Nor across these, if what is before them is a whole statement and what follows is one with a subject of its own.
CLAUSE_JOIN: Patterns = (r",", r"\band\b")
STATEMENT: Patterns = (
    r"\b(?:is|are|was|were|been)(?: not)?(?: \w+)? (?:detected|observed|seen|present|noted|identified|found|natural|"
    r"normal|open|patent|available)\b",
)
VERB: Patterns = (
    r"^(?:,|and\b)(?!\W*(?:which|is|are|was|were|has|have|had)\b).*\b(?:is|are|was|were|has|have|had)\b",
)

NEGATION_BEFORE: Patterns = (
    r"\b(?:no|without|neither|nor|free of|absence of|absent|negative for|devoid of|resolution of|resolved|rather than|"
    r"loss of (?=consol))\b",
    r"\bnot (?:show\w*|contain\w*|have|demonstrat\w+|reveal\w*|any|evident|suggest\w*|see|seen|accompan\w+)\b",
    r"\bpreviously (?:observed|seen|described|reported) as\b",
)
# A "no" that does not deny what follows it.
PSEUDO_NEGATION: Patterns = (
    r"\bno (?:(?:significant|obvious|interval|appreciable|relevant|remarkable|marked|pathological|other|clear) )*"
    r"(?:(?:change|difference|decrease|regression|progression|growth)s?|"
    r"increase in (?:the )?(?:size|number|dimension)\w*)\b",
    r"\bnot only\b",
    r"\bno (?:longer|doubt)\b",
)
# Between a negation and a mention, these end its reach.
SCOPE_END: Patterns = (
    r"\b(?:which|that|causing|due to|secondary to|because|despite|since|compared|accompan\w+)\b",
    r"\b(?:is|are|was|were) (?:now|observed as|seen as)\b",
    r":",
)
NEGATION_AFTER: Patterns = (
    r"\b(?:not|never|no longer) (?:\w+ ){0,2}?(?:detected|observed|seen|present|identified|noted|found|visible|evident|"
    r"visuali[sz]ed|appreciated|encountered|demonstrated|distinguished|available|enlarged|selected|dilated|thickened|increased)\b"
    r"(?! (?:in )?(?:the |his |her )?(?:previous|prior|old|earlier|before))",
    r"\babsent\b",
    r":\s*(?:none|nil|negative|unremarkable|normal)\b",
    r"\b(?:is|are|was|were) (?:negative|excluded|ruled out|resolved|removed)\b",
    r"\bbeen removed\b",
    r"\b(?:has|have) (?:\w+ )?(?:resolved|disappeared|regressed completely|completely regressed|cleared)\b",
    r"\b(?:completely|totally) (?:regressed|resolved|disappeared)\b",
    r"\bdisappear\w*",
    r"\b(?:full|complete) (?:regression|resolution)\b",
    r"\bno (?:was|were|is|are) (?:detected|observed|seen)\b",
    r"[-–/] ?no (?:\w+ ){1,2}(?:was|were|is|are) (?:detected|observed|seen)\b",
    r"\b(?:is|are|was|were) (?:within )?normal\b",
)
# What an earlier examination held, said of that examination alone.
_EARLIER = (
    r"in (?:the |his |her )?(?:previous|prior|old|earlier)(?: ct)? (?:examination|study|scan|ct)s?"
    r"(?: of the patient)?"
)
PAST: Patterns = (
    rf"^\W*(?:and )?{_EARLIER},? there (?:is|are|was|were)\b",
    r"^\W*(?:and )?there (?:is|are|was|were)\b(?:(?!observed|seen|present|described|detected|compared|measur)[^()])*\b"
    rf"{_EARLIER}(?: \([^)]*\))?\W*$",
)
HEDGE_BEFORE: Patterns = (
    r"\b(?:possibl[ey]|probabl[ey]|suspected|suspicious|questionable|equivocal|may|might|could|cannot|can not|"
    r"to exclude|to rule out|in terms of|concern for|differential)\b",
)
HEDGE_AFTER: Patterns = (
    r"^[^.;,()]{0,12}\?",
    r"\b(?:cannot|can not|could not|not) be (?:excluded|ruled out)",
    r"\b(?:is|are) (?:suspected|possible|questionable)\b",
)


@dataclass(frozen=True)
class Text:
    """The text of a report made even for matching: lower case, one space between words, a line break between lines.

    Args:
        clean (`str`): The even text.
        words (`tuple[tuple[int, int], ...]`): Where each word starts in `clean` and in the report.
    """

    clean: str
    words: tuple[tuple[int, int], ...]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the characters of the report that `clean[start:end]` was made of."""
        first, last = (
            self.words[bisect(self.words, (place, len(self.clean))) - 1] for place in (start, end - 1)
        )
        return first[1] + start - first[0], last[1] + end - last[0]


def even_text(report: str) -> Text:
    """Make a report even for matching, so that case, spaces, tabs and the wrapping of lines change nothing.

    A line of one word or of at least 60 characters that ends without a mark is wrapped: it goes on in the next one, and
    without a space where it ends in the hyphen of a word.
    Every other line is a statement of its own, as in a list.
    """
    lower = report.lower()
    if len(lower) != len(report):  # a few capitals grow when lowered
        lower = "".join(character.lower()[0] for character in report)
    lower = lower.translate(_PLAIN)
    words: list[tuple[int, int]] = []
    parts: list[str] = []
    length = line_start = num_words = 0
    end = 0
    for match in _WORD.finditer(lower):
        if match.start() > end or not words:
            gap = lower[end : match.start()]
            if words:
                wraps = num_words == 1 or length - line_start >= 60
                ends_line = "\n" in gap and (
                    gap.count("\n") > 1 or not wraps or _LIST_ITEM.match(lower, match.start())
                )
                is_hyphen = "\n" in gap and not ends_line and re.search(r"\w-$", parts[-1])
                parts.append("\n" if ends_line else "" if is_hyphen else " ")
                length += len(parts[-1])
                if "\n" in gap:
                    line_start, num_words = length, 0
        words.append((length, match.start()))
        parts.append(match[0])
        length += len(match[0])
        num_words += 1
        end = match.end()
    return Text("".join(parts), tuple(words))


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of every sentence of an even text, without the spaces around it."""
    start = 0
    for mark in [*(match.end() for match in _compiled().sentence_end.finditer(text)), len(text)]:
        sentence = text[start:mark]
        words = sentence.strip()
        if len(words) > 1:
            first = start + sentence.index(words[0])
            yield first, first + len(words)
        start = mark


def clauses(sentence: str) -> list[tuple[int, int]]:
    """Split a sentence where a negation can no longer reach."""
    compiled = _compiled()
    breaks = {match.start() for match in compiled.clause_break.finditer(sentence)}
    joins = {match.start() for match in compiled.clause_join.finditer(sentence)}
    parts = []
    start = 0
    for mark in sorted(breaks | joins):
        if mark > start and (
            (mark in breaks and not compiled.opening.search(sentence[start:mark]))
            or (compiled.statement.search(sentence, start, mark) and compiled.verb.search(sentence[mark:]))
        ):
            parts.append((start, mark))
            start = mark
    return [*parts, (start, len(sentence))]


def item(sentence: str, start: int, end: int) -> tuple[int, int]:
    """Return the item of an enumeration that holds `sentence[start:end]`."""
    bounds = [match.span() for match in _compiled().clause_join.finditer(sentence)]
    first = max((bound[1] for bound in bounds if bound[1] <= start), default=0)
    return first, min((bound[0] for bound in bounds if bound[0] >= end), default=len(sentence))


def status_of(clause: str, start: int, end: int) -> Status:
    """Say whether the mention `clause[start:end]` is affirmed, denied or hedged."""
    compiled = _compiled()
    before, after = clause[:start], clause[end:]
    denials = compiled.pseudo_negation.sub(lambda match: " " * len(match[0]), before)
    negations = list(compiled.negation_before.finditer(denials))
    if negations and not compiled.scope_end.search(before, negations[-1].end()):
        return "negative"
    if compiled.negation_after.search(clause, start) or compiled.past.search(clause):
        return "negative"
    if compiled.hedge_before.search(before) or compiled.hedge_after.search(after):
        return "uncertain"
    return "positive"


def any_of(patterns: Patterns) -> re.Pattern[str]:
    """Compile alternatives into one pattern."""
    return re.compile("|".join(patterns))


_WORD = re.compile(r"\S+")
_PLAIN = str.maketrans("‐‑−’\u00a0", "---' ")
_LIST_ITEM = re.compile(r"[-*•] +\w|\d+[.)] +\w|[a-z][a-z /,-]{2,40}:")


@dataclass(frozen=True)
class _Compiled:
    sentence_end: re.Pattern[str]
    clause_break: re.Pattern[str]
    opening: re.Pattern[str]
    clause_join: re.Pattern[str]
    statement: re.Pattern[str]
    verb: re.Pattern[str]
    negation_before: re.Pattern[str]
    pseudo_negation: re.Pattern[str]
    scope_end: re.Pattern[str]
    negation_after: re.Pattern[str]
    past: re.Pattern[str]
    hedge_before: re.Pattern[str]
    hedge_after: re.Pattern[str]


@cache
def _compiled() -> _Compiled:
    """Compile the tables on first use, so that importing this module stays cheap."""
    return _Compiled(
        *(
            any_of(patterns)
            for patterns in (
                SENTENCE_END,
                CLAUSE_BREAK,
                OPENING,
                CLAUSE_JOIN,
                STATEMENT,
                VERB,
                NEGATION_BEFORE,
                PSEUDO_NEGATION,
                SCOPE_END,
                NEGATION_AFTER,
                PAST,
                HEDGE_BEFORE,
                HEDGE_AFTER,
            )
        )
    )
