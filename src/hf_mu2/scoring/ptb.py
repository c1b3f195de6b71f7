"""Tokenize as the Penn Treebank tokenizer of pycocoevalcap does, without Java, or with it.

The Java tokenizer decides `coco` scores; this one follows its rules where reports need them. How far the scores lie
apart is measured in `tests/scoring/test_lexical.py` wherever Java is present.
"""

from __future__ import annotations

import re

# What pycocoevalcap drops after tokenizing. Brackets stay: its list has them as "-LRB-", its tokens are lower-cased.
_DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"', "“", "”", "–"}
_SPELLED = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TOKEN = re.compile(
    r"""\d*(?:[.,]\d+)+                            # 12.5, .5
    |(?:[^\W\d_]\.){2,}                            # e.g.
    |can(?=not\b)|(?:ct|dr|mr|mrs|st|vs)\.(?=\s)   # can not; abbreviations (ct. is Connecticut)
    |[^\W_]+(?:[-/&][^\W_]+|(?<=[^\W\d_])\.[^\W\d_][^\W_]*)*  # ground-glass, and/or, 10-15, end.Start
    |'(?:s|re|ve|ll|d|m)\b                         # the patient's
    |\.{3}|--|[^\s]""",
    re.VERBOSE,
)


def ptb_tokenize(text: str) -> list[str]:
    """Tokenize one text, lower-cased already, and drop punctuation."""
    return [_SPELLED.get(token, token) for token in _TOKEN.findall(text) if token not in _DROPPED]


def ptb_tokenize_java(texts: list[str]) -> list[list[str]]:
    """Tokenize with the Java tokenizer that pycocoevalcap carries."""
    try:
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError as error:
        raise ImportError(
            "The Java tokenizer comes with the package `pycocoevalcap`, which is not installed. "
            'Run `pip install "hf_mu2[coco]"`, or leave out `java`.'
        ) from error
    if not texts:
        return []
    captions = {number: [{"caption": " ".join(text.split())}] for number, text in enumerate(texts)}
    try:
        tokenized = PTBTokenizer().tokenize(captions)
    except FileNotFoundError as error:
        raise ValueError(
            "The tokenizer of pycocoevalcap needs `java` on the path, and there is none. Install a Java runtime, or "
            "leave out `java`: our reading of its rules needs none."
        ) from error
    return [tokenized[number][0].split() for number in range(len(texts))]
