"""Read sides and sizes from the text of a report. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Side = Literal["left", "right", "both"]


@dataclass(frozen=True)
class SideMention:
    """A word that says a side, and where it stands (characters of the text)."""

    side: Side
    span: tuple[int, int]


@dataclass(frozen=True)
class Size:
    """A length as written, in millimetres, and where it stands (characters of the text).

    Args:
        mm (`tuple[float, ...]`): One length per axis: `"3 x 4 cm"` is `(30.0, 40.0)`; of a range the upper end.
        span (`tuple[int, int]`): Start and end of the number with its unit.
    """

    mm: tuple[float, ...]
    span: tuple[int, int]

    @property
    def largest_mm(self) -> float:
        return max(self.mm)


_SIDE = re.compile(
    r"\b(?:(?P<both>bilateral(?:ly)?|both|right and left|left and right)|(?P<left>left|lt|lingula\w*|lingular)|"
    r"(?P<right>right|rt|middle lobe))\b",
    re.IGNORECASE,
)
# Chambers and vessels whose name holds a side that locates nothing.
_NAME = re.compile(
    r"[\s-]+(?:(?:side of the )?heart|atri\w+|ventric\w+|auric\w+|(?:main )?coronary|anterior descending|circumflex)\b",
    re.IGNORECASE,
)
_NUMBER = r"\d{1,4}(?:[.,]\d{1,2})?"
_UNIT = r"[\s-]*(?:mm|cm|milli-?met(?:er|re)s?|centi-?met(?:er|re)s?)\b"
_JOINT = r"\s*(?:[x×*]|\bby\b|-|–|\bto\b)\s*"
_SIZE = re.compile(
    rf"(?<![\w.,]){_NUMBER}(?:{_UNIT})?(?:{_JOINT}{_NUMBER}(?:{_UNIT})?){{0,3}}(?<=[mres])", re.IGNORECASE
)
_PART = re.compile(rf"(?P<joint>{_JOINT})?(?P<number>{_NUMBER})(?P<unit>{_UNIT})?", re.IGNORECASE)
# What follows an area or volume, the position of something, or the thickness of the slices.
_NOT_A_SIZE = re.compile(
    r"\s?[²³]|[23]\b|\s*/|\s+(?:away\b|from (?!\d)|above\b|below\b|(?:proximal|distal|superior|inferior|cranial|caudal|"
    r"anterior|posterior|medial|lateral)(?:ly)? to\b)|[\s-]*(?:thick(?:ness)?[\s-]+)?(?:axial\s+)?"
    r"(?:slices?|sections?|collimation|reconstruction\w*|increments?|intervals?)\b",
    re.IGNORECASE,
)
_BEFORE_NO_SIZE = re.compile(
    r"(?:\b(?:slice|section)s?(?: thickness)?(?: of| was| is|:)?|"
    r"\b(?:previous(?:ly)?|formerly|earlier|prior)(?: \w+){0,3}|(?<!ranging )\bfrom|"
    r"\b(?:compared (?:to|with)|versus|vs\.?))\s*$",
    re.IGNORECASE,
)


def find_sides(text: str) -> list[SideMention]:
    """Find every word that locates something on a side; the lingula is left, the middle lobe right.

    Names of chambers and coronary arteries ("left atrium", "right coronary artery") locate nothing and are skipped.
    """
    return [
        SideMention(match.lastgroup, match.span())  # type: ignore[arg-type]
        for match in _SIDE.finditer(text)
        if not (match["left"] or match["right"]) or not _NAME.match(text, match.end())
    ]


def one_side(mentions: Iterable[SideMention]) -> Side | None:
    """Combine mentions of a side: left and right together are `"both"`; `None` without any."""
    sides = {mention.side for mention in mentions}
    if not sides:
        return None
    return sides.pop() if len(sides) == 1 else "both"


def find_sizes(text: str) -> list[Size]:
    """Find every length with its unit ("6 mm", "3x4 mm", "1,5 x 2 cm", "4-5 mm"), in millimetres.

    Areas, volumes, distances to a landmark ("3 cm above the carina"), the thickness of slices and the sizes of an
    earlier examination ("previously 8 mm", "from 8 mm") are left out.
    """
    sizes = []
    for match in _SIZE.finditer(text):
        parts = list(_PART.finditer(match[0]))
        changes = len(parts) > 1 and (parts[-1]["joint"] or "").strip().lower() == "to"
        before = text[max(0, match.start() - 40) : match.start()]
        if _NOT_A_SIZE.match(text, match.end()) or (_BEFORE_NO_SIZE.search(before) and not changes):
            continue
        lengths: list[float] = []
        unit = ""
        for part in reversed(parts):  # a number without a unit has that of the next number
            unit = (part["unit"] or unit).strip(" -\n\t").lower()
            lengths.insert(0, float(part["number"].replace(",", ".")) * (10 if unit.startswith("c") else 1))
        if any((part["joint"] or "").strip().lower() in ("-", "–", "to") for part in parts):
            # A change ends at its last length, a range at its upper one.
            lengths = [lengths[-1] if before.rstrip().lower().endswith(" from") else max(lengths)]
        sizes.append(Size(tuple(round(length, 3) for length in lengths), match.span()))
    return sizes
