"""Tell a model that repeats a template from one that reads the study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .findings import Findings
from .hygiene import split_sentences

TEMPLATE_SHARE = 0.01


def template_sentences(training: Sequence[str], *, share: float = TEMPLATE_SHARE) -> set[str]:
    """Find the sentences that at least `share` of the training reports hold."""
    counts = Counter(sentence for text in training for sentence in set(split_sentences(text)))
    return {sentence for sentence, count in counts.items() if count >= max(share * len(training), 2)}


def without_template(text: str, template: set[str]) -> tuple[str, float]:
    """Return what is left of a text without template sentences, and the share of its words that went."""
    sentences = split_sentences(text)
    left = [sentence for sentence in sentences if sentence not in template]
    words = sum(len(sentence.split()) for sentence in sentences)
    kept = sum(len(sentence.split()) for sentence in left)
    return ". ".join(left), 1 - kept / words if words else 0.0


def degeneracy(
    candidates: Sequence[str],
    references: Sequence[str],
    candidate_findings: Sequence[Findings],
    reference_findings: Sequence[Findings],
    template: set[str] | None,
) -> dict[str, dict[str, Any]]:
    """Compare how varied, how long, how normal and how templated candidates and references are.

    Returns:
        `dict`: for `candidate` and `reference`: `unique_share` (different texts, case and spaces aside),
        `most_repeated` (reports that share the most frequent text), `mean_words`, `all_normal_share` (no finding
        reported, among reports that could be read), `template_share` (share of words in template sentences, mean of
        reports; `None` without training references); and `length_ratio`, candidate words per reference word.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, texts, findings in (
        ("candidate", candidates, candidate_findings),
        ("reference", references, reference_findings),
    ):
        repeats = Counter(" ".join(text.lower().split()) for text in texts)
        words = np.array([len(text.split()) for text in texts])
        labels = np.array([item.labels for item in findings])
        read = ~np.isnan(labels).all(axis=1)
        normal = np.nansum(labels, axis=1) == 0
        found[name] = {
            "unique_share": len(repeats) / len(texts),
            "most_repeated": repeats.most_common(1)[0][1],
            "mean_words": float(words.mean()),
            "all_normal_share": float(normal[read].mean()) if read.any() else None,
            "template_share": None
            if template is None
            else float(np.mean([without_template(text, template)[1] for text in texts])),
        }
    ratio = found["candidate"]["mean_words"] / max(found["reference"]["mean_words"], 1e-9)
    return found | {"length_ratio": {"candidate": ratio, "reference": 1.0}}
