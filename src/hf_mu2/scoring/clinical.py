"""Compare finding labels of candidate reports with those of reference reports.

All arrays are `(reports, labels)` of 0 and 1; columns follow `LABELS` when there are 18 of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .labels import LABELS


def f1_table(reference: np.ndarray, candidate: np.ndarray) -> dict[str, Any]:
    """Tabulate precision, recall and F1 per label, and the two averages.

    A ratio whose denominator is 0 is 0. Macro-F1 averages the labels with at least one positive reference: a label
    that never occurs cannot be learned or missed, and its false positives still count in micro-F1. Without any
    positive reference macro-F1 is 0.

    Returns:
        `dict`: `labels` (per label: `precision`, `recall`, `f1`, `support`, `predicted`), `micro` (`precision`,
        `recall`, `f1`), `macro_f1`, `macro_labels` (how many labels the average holds) and `reports`.
    """
    reference, candidate = _check(reference, candidate)
    names = (
        LABELS if reference.shape[1] == len(LABELS) else [str(column) for column in range(reference.shape[1])]
    )
    hits, support, predicted = _counts(reference, candidate)
    f1 = _ratio(2 * hits, support + predicted)
    precision, recall = _ratio(hits, predicted), _ratio(hits, support)
    return {
        "labels": {
            name: {
                "precision": float(precision[column]),
                "recall": float(recall[column]),
                "f1": float(f1[column]),
                "support": int(support[column]),
                "predicted": int(predicted[column]),
            }
            for column, name in enumerate(names)
        },
        "micro": {
            "precision": float(_ratio(hits.sum(), predicted.sum())),
            "recall": float(_ratio(hits.sum(), support.sum())),
            "f1": float(_ratio(2 * hits.sum(), support.sum() + predicted.sum())),
        },
        "macro_f1": _macro_f1(hits, support, predicted),
        "macro_labels": int((support > 0).sum()),
        "reports": len(reference),
    }


def shuffled_gap(
    reference: np.ndarray,
    candidate: np.ndarray,
    *,
    num_shuffles: int = 100,
    num_bootstraps: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how much of macro-F1 comes from looking at the right study.

    The floor is the macro-F1 of the same candidates dealt to other studies, averaged over `num_shuffles` cyclic
    shifts of a random order, so that no candidate stays with its own study. The interval is the 2.5th to 97.5th
    percentile of `macro-F1 - floor` over bootstrap resamples of studies, with a fresh shuffle in each.

    Returns:
        `dict`: `macro_f1`, `floor`, `gap`, `low`, `high` (95 % interval of the gap), `num_shuffles`,
        `num_bootstraps`, `seed` and `reports`.
    """
    reference, candidate = _check(reference, candidate)
    num_reports = len(reference)
    if num_reports < 2 or num_shuffles < 1 or num_bootstraps < 1:
        raise ValueError(
            "Shuffling between studies needs at least 2 reports, 1 shuffle and 1 bootstrap, got "
            f"{num_reports}, {num_shuffles} and {num_bootstraps}. Score more reports."
        )
    rng = np.random.default_rng(seed)
    macro_f1 = _macro_f1(*_counts(reference, candidate))
    floor = float(
        np.mean(
            [
                _macro_f1(*_counts(reference, candidate[_derangement(num_reports, rng)]))
                for _ in range(num_shuffles)
            ]
        )
    )
    gaps = np.empty(num_bootstraps)
    for bootstrap in range(num_bootstraps):
        rows = rng.integers(0, num_reports, num_reports)
        dealt = candidate[_derangement(num_reports, rng)]
        gaps[bootstrap] = _macro_f1(*_counts(reference[rows], candidate[rows])) - _macro_f1(
            *_counts(reference[rows], dealt[rows])
        )
    low, high = np.percentile(gaps, [2.5, 97.5])
    return {
        "macro_f1": macro_f1,
        "floor": floor,
        "gap": macro_f1 - floor,
        "low": float(low),
        "high": float(high),
        "num_shuffles": num_shuffles,
        "num_bootstraps": num_bootstraps,
        "seed": seed,
        "reports": num_reports,
    }


def _check(reference: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference, candidate = np.asarray(reference), np.asarray(candidate)
    if reference.ndim != 2 or reference.shape != candidate.shape or not len(reference):
        raise ValueError(
            f"Labels must be two arrays of one shape (reports, labels), got {reference.shape} and {candidate.shape}. "
            "Label the candidates of the same studies, in the same order, as the references."
        )
    for name, labels in (("reference", reference), ("candidate", candidate)):
        if not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"Labels must be 0 or 1, got other values in `{name}`. Decide what uncertain findings become first, "
                'e.g. `label_reports(reports, uncertain="positive")`.'
            )
    return reference.astype(bool), candidate.astype(bool)


def _counts(reference: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count hits, reference positives and candidate positives per label."""
    return (reference & candidate).sum(axis=0), reference.sum(axis=0), candidate.sum(axis=0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)


def _macro_f1(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> float:
    occurring = support > 0
    return float(_ratio(2 * hits, support + predicted)[occurring].mean()) if occurring.any() else 0.0


def _derangement(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a permutation that leaves nothing in place: a random cyclic order, shifted by one."""
    order = rng.permutation(size)
    dealt = np.empty(size, dtype=np.int64)
    dealt[order] = np.roll(order, 1)
    return dealt
