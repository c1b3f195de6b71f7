"""Write a report in which each finding has sentences of its own, with or without the habits of a template.

The words about a finding depend on nothing but the finding, its label and the seed: the reports of two studies that
are one finding apart differ in what they say about that finding, and in nothing else. `text_shortcut` moves a report
between two extremes. At 0 it says what is there, in varied words, and nothing else. At 1 it is a filled-in template:
a long sentence that is always the same for every organ, another one for every organ without a finding, and each
finding a short clause. Most words of such a report can be learned without the volume.
"""

import random
import zlib
from collections.abc import Sequence

from .report import Finding, PhantomReport, tell
from .vocabulary import Vocabulary

NOTHING = "No abnormality is seen."


def write_steady_report(
    findings: Sequence[Finding], seed: int, words: Vocabulary, text_shortcut: float | None = None
) -> PhantomReport:
    """Write the report of a phantom from the vocabulary of its region.

    Args:
        text_shortcut (`float`, *optional*): 0 to 1. When not given, organs without a finding get one of several
            normal sentences. A sentence of the template that is there at one value is there at every larger one.
    """
    by_label: dict[str, list[Finding]] = {}
    for finding in findings:
        by_label.setdefault(finding.label, []).append(finding)
    told = []
    for number, organ in enumerate(words.organs):
        rng = _stream(seed, f"organ {number}")
        has_habit, has_normal = (rng.random() < (text_shortcut or 0.0) for _ in range(2))
        if has_habit:
            told.append(organ.habit)
        present = [label for label in organ.labels if label in by_label]
        for label in present:
            told += [_clause(words, finding, seed, text_shortcut) for finding in by_label[label]]
        if not present and text_shortcut is None:
            told.append(rng.choice(organ.normals))
        elif not present and has_normal:
            told.append(organ.fixed)
    concluded = [
        tell(words.impressions[label], finding, _stream(seed, f"impression {label}"))
        for label in words.importance
        for finding in by_label.get(label, ())
    ]
    normal = words.impression_normal[0]
    if text_shortcut is None:
        normal = _stream(seed, "impression").choice(words.impression_normal)
    return PhantomReport(" ".join(told) or NOTHING, " ".join(concluded) or normal)


def _clause(words: Vocabulary, finding: Finding, seed: int, text_shortcut: float | None) -> str:
    """Write the sentence about one finding: varied, or as short as a template leaves it."""
    rng = _stream(seed, finding.label)
    is_short = rng.random() < (text_shortcut or 0.0)
    noun = words.nouns[finding.label][0]
    short = (f"[{{severity}} ]{noun}[ {{place}}][, {{size}}].",)
    return tell(short if is_short else words.positives[finding.label], finding, rng)


def _stream(seed: int, name: str) -> random.Random:
    return random.Random((seed << 32) + zlib.crc32(name.encode()))
