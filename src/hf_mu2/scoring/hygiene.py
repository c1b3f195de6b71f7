"""Decide what of a text is scored: reasoning, placeholders, unusual characters and scripts, repeated studies.

Every rule is counted where it applies, so that a result says what was done to its texts. Nothing is cut for length:
a report of 10,000 words is scored in full.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

CandidateStatus = Literal["ok", "empty", "unclosed_reasoning"]

# Quotes and dashes that keyboards and translators write in many ways; tokenizers know the ASCII ones only.
_PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-"}
    | {"\r": "\n", "\u2028": "\n", "\u2029": "\n", "\x0b": "\n", "\x0c": "\n", "\x85": "\n"}
)
_HEADING = re.compile(r"\b(?:findings?|impressions?|report)\s*:", re.IGNORECASE)
_PLACEHOLDERS = {"", "not given", "none", "nan", "null", "n/a", "na", "not available"}
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ebef]")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+|(?<=[。！？；])")


def plain_text(text: str | float | None) -> str:
    """Bring a text to composed unicode, ASCII quotes and dashes, plain spaces and no invisible characters.

    `None` and the `nan` of an empty table cell become `""`.
    """
    if not isinstance(text, str):
        return ""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").translate(_PLAIN)
    if text.isascii() and text.isprintable():
        return text.strip()
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if category == "Zs" or character == "\t":
            kept.append(" ")
        elif category not in ("Cc", "Cf", "Cs", "Co") or character == "\n":
            kept.append(character)
    return "".join(kept).strip()


def clean_reference(text: str | float | None) -> str:
    """Return the reference that is scored, `""` where there is none: empty, "Not given." or bare headings."""
    text = plain_text(text)
    parts = [part.strip(" \n.\"'-") for part in _HEADING.split(text)]
    return "" if all(part.lower() in _PLACEHOLDERS for part in parts) else text


def clean_candidate(text: str | float | None) -> tuple[str, CandidateStatus]:
    """Return the candidate that is scored and what happened to it.

    Reasoning is stripped: the candidate is the text after the last `</think>`. Reasoning that never ends leaves
    nothing. An empty candidate stays in every mean, as a report that says nothing.
    """
    text = plain_text(text)
    answer = text.rpartition("</think>")[2].strip()
    if "<think>" in answer:
        return "", "unclosed_reasoning"
    return answer, "ok" if answer else "empty"


def is_chinese(text: str) -> bool:
    """Tell whether at least a fifth of the letters are Han characters: the finding labeler cannot read such a text."""
    letters = sum(map(str.isalpha, text))
    return letters > 0 and len(_HAN.findall(text)) >= 0.2 * letters


def separate_han(text: str) -> str:
    """Put spaces around every Han character, so that each counts as one word."""
    return text if text.isascii() else _HAN.sub(r" \g<0> ", text)


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences, each lower-cased and with single spaces: the unit of the template share."""
    sentences = (" ".join(part.lower().split()).strip(" \"'•-.;!?") for part in _SENTENCE_END.split(text))
    return [sentence for sentence in sentences if sentence]


def study_of(name: str) -> str:
    """Name the study of a CT-RATE volume (`valid_1_a_2.nii.gz` is a reconstruction of study `valid_1_a`).

    Other names lose the ending of a volume file and stay as they are.
    """
    name = re.sub(r"\.(?:nii\.gz|nii|mha)$", "", str(name))
    match = re.fullmatch(r"((?:train|valid)_\d+_[a-z]+)_\d+", name)
    return match[1] if match else name


def patient_of(study_id: str) -> str:
    """Name the patient of a CT-RATE study (`valid_1_a` is of patient `valid_1`); other studies stand for themselves."""
    match = re.fullmatch(r"((?:train|valid)_\d+)(?:_[a-z]+(?:_\d+)?)?", study_id)
    return match[1] if match else study_id
