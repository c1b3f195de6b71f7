"""Compare what candidate reports say with what reference reports say: labels, sides and sizes of findings.

Arrays of labels are `(reports, labels)`; columns follow `LABELS` when there are 18 of them.

Coverage and Accuracy have no formula in the paper that reports them; here Coverage is the share of positive reference
cells that are positive in the candidate, Accuracy the share of equal cells. Accuracy means nothing without that of a
candidate that denies everything, which stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .findings import SIZED_LABELS, Findings
from .labels import LABELS

MacroOver = Literal["occurring", "all"]
METRICS = (
    "macro_f1",
    "micro_f1",
    "weighted_f1",
    "report_f1",
    "micro_precision",
    "micro_recall",
    "macro_precision",
    "macro_recall",
    "coverage",
    "coverage_under_3mm",
    "coverage_3_to_6mm",
    "coverage_6_to_10mm",
    "coverage_over_10mm",
    "accuracy",
    "accuracy_all_negative",
    "exact_match",
    "crg",
    "side_agreement",
    "size_agreement",
)
_SIZE_NAMES = ("under_3mm", "3_to_6mm", "6_to_10mm", "over_10mm")


def clinical_columns(references: Sequence[Findings], candidates: Sequence[Findings]) -> dict[str, np.ndarray]:
    """Count what clinical scores are computed from, one row per report; sums of rows go to [`clinical_scores`].

    A label that is unknown (`nan`) in the reference is left out. A candidate that cannot be read, such as a Chinese
    one, reports nothing, so that no system escapes by its language. Sides agree when they are the same word (left,
    right, both), sizes when the largest ones differ by at most 2 mm or a fifth of the reference, whichever is more.
    """
    reference = np.array([findings.labels for findings in references])
    candidate = np.array([findings.labels for findings in candidates])
    known = ~np.isnan(reference)
    positive, found = (reference == 1) & known, (candidate == 1) & known
    hits, support, predicted = positive & found, positive.sum(axis=1), found.sum(axis=1)
    read = known.any(axis=1)
    # A report without findings, read as one without findings, is a full success where F1 is 0 / 0.
    report_f1 = np.where(support + predicted == 0, 1.0, _ratio(2 * hits.sum(axis=1), support + predicted))
    columns = {
        "hits": hits,
        "support": positive,
        "predicted": found,
        "cells": known,
        "report_f1": (report_f1 * read)[:, None],
        "exact": (((positive == found) | ~known).all(axis=1) & read)[:, None],
        "read": read[:, None],
    }
    columns["sides"] = np.array([_side_agreement(*pair) for pair in zip(references, candidates)])
    columns["sizes"] = np.array([_size_agreement(*pair) for pair in zip(references, candidates)])
    columns["lesions"] = np.array([_covered_lesions(*pair) for pair in zip(references, candidates)])
    return {name: np.asarray(column, dtype=float) for name, column in columns.items()}


def clinical_scores(
    sums: Mapping[str, np.ndarray], *, macro_over: MacroOver = "occurring"
) -> dict[str, np.ndarray]:
    """Turn sums of [`clinical_columns`], of shape `(..., width)`, into one score per leading index.

    A score that nothing can be said about (no side stated twice, no lesion of a size, no readable report) is `nan`.

    Args:
        macro_over (`str`): Macro averages over the labels that occur in the references (`"occurring"`) or over `"all"`,
            where a label that neither side names counts 0.
    """
    hits, support, predicted, cells = (sums[name] for name in ("hits", "support", "predicted", "cells"))
    tp, positives, named, total = (array.sum(axis=-1) for array in (hits, support, predicted, cells))
    f1 = _ratio(2 * hits, support + predicted)
    counted = support > 0 if macro_over == "occurring" else np.ones_like(support, dtype=bool)
    read = sums["read"][..., 0]
    silent = (positives + named == 0) & (read > 0)
    fp, fn = named - tp, positives - tp

    def averaged(per_label: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.where(
            silent, 1.0, np.where(read > 0, _ratio((per_label * weights).sum(-1), weights.sum(-1)), np.nan)
        )

    lesions = sums["lesions"]
    scores = {
        "macro_f1": averaged(f1, counted),
        "micro_f1": averaged(_ratio(2 * tp, positives + named)[..., None], np.ones(1)),
        "weighted_f1": averaged(f1, support),
        "report_f1": _ratio(sums["report_f1"][..., 0], read, np.nan),
        "micro_precision": averaged(_ratio(tp, named)[..., None], np.ones(1)),
        "micro_recall": averaged(_ratio(tp, positives)[..., None], np.ones(1)),
        "macro_precision": averaged(_ratio(hits, predicted), counted),
        "macro_recall": averaged(_ratio(hits, support), counted),
        "coverage": _ratio(tp, positives, np.nan),
        "accuracy": _ratio(total - fp - fn, total, np.nan),
        "accuracy_all_negative": _ratio(total - positives, total, np.nan),
        "exact_match": _ratio(sums["exact"][..., 0], read, np.nan),
        "crg": crg(tp, fn, fp, total),
        "side_agreement": _ratio(sums["sides"][..., 0], sums["sides"][..., 1], np.nan),
        "size_agreement": _ratio(sums["sizes"][..., 0], sums["sizes"][..., 1], np.nan),
    }
    for index, name in enumerate(_SIZE_NAMES):
        scores[f"coverage_{name}"] = _ratio(lesions[..., index], lesions[..., index + 4], np.nan)
    return {name: scores[name] for name in METRICS}


def crg(
    tp: np.ndarray | float, fn: np.ndarray | float, fp: np.ndarray | float, cells: np.ndarray | float
) -> np.ndarray:
    """Compute the CRG score (https://huggingface.co/papers/2505.17167) from counts over report-label cells.

    With A positive cells of T, each hit earns w = (T - A) / 2A, each miss costs w and each false alarm 1; then
    CRG = S / (2S - s) for the sum s and S = A w. All right is 1, s = 0 is 1/2, all negative and all positive are 1/3.

    Two cases divide by zero in the paper. Without a positive cell there is nothing to miss: S = T / 2 and
    s = S - FP. Where all cells are positive there is nothing to invent: w = 1. Both keep 1 for all right and 1/3 for
    all wrong. Without any cell the score is `nan`.
    """
    tp, fn, fp, cells = (np.asarray(value, dtype=float) for value in (tp, fn, fp, cells))
    positives = tp + fn
    weight = np.where(positives < cells, _ratio(cells - positives, 2 * positives), 1.0)
    best = np.where(positives > 0, positives * weight, cells / 2)
    score = np.where(positives > 0, (tp - fn) * weight - fp, best - fp)
    return _ratio(best, 2 * best - score, np.nan)


def label_rows(sums: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Tabulate sums of [`clinical_columns`] over reports per label."""
    return _label_table(LABELS, sums["hits"], sums["support"], sums["predicted"])


def f1_table(
    reference: np.ndarray, candidate: np.ndarray, *, macro_over: MacroOver = "occurring"
) -> dict[str, Any]:
    """Tabulate precision, recall and F1 per label, and the two averages.

    A ratio whose denominator is 0 is 0. Macro-F1 averages the labels with at least one positive reference: a label
    that never occurs cannot be learned or missed, and its false positives still count in micro-F1. Without any
    positive reference macro-F1 is 0. `macro_over="all"` averages all labels.

    Returns:
        `dict`: `labels` (per label: `precision`, `recall`, `f1`, `support`, `predicted`), `micro` (`precision`,
        `recall`, `f1`), `macro_f1`, `macro_labels` (how many labels the average holds) and `reports`.
    """
    reference, candidate = _check(reference, candidate)
    names = (
        LABELS if reference.shape[1] == len(LABELS) else [str(column) for column in range(reference.shape[1])]
    )
    hits, support, predicted = _counts(reference, candidate)
    return {
        "labels": _label_table(names, hits, support, predicted),
        "micro": {
            "precision": float(_ratio(hits.sum(), predicted.sum())),
            "recall": float(_ratio(hits.sum(), support.sum())),
            "f1": float(_ratio(2 * hits.sum(), support.sum() + predicted.sum())),
        },
        "macro_f1": _macro_f1(hits, support, predicted, macro_over),
        "macro_labels": int((support > 0).sum()) if macro_over == "occurring" else len(support),
        "reports": len(reference),
    }


def shuffled_gap(
    reference: np.ndarray,
    candidate: np.ndarray,
    patients: Sequence[str] | None = None,
    *,
    num_shuffles: int = 100,
    num_bootstraps: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how much of macro-F1 comes from looking at the right study.

    The floor is the macro-F1 of the same candidates dealt to other studies, averaged over `num_shuffles` cyclic
    shifts of a random order, so that no candidate stays with its own study. The interval is the 2.5th to 97.5th
    percentile of `macro-F1 - floor` over bootstrap resamples of patients, with a fresh shuffle in each.

    Args:
        reference, candidate (`np.ndarray` of shape `(reports, labels)`): 0 and 1.
        patients (`Sequence[str]`, *optional*): The patient of each report; every report its own when not given.

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
    owners = np.arange(num_reports) if patients is None else np.unique(patients, return_inverse=True)[1]
    num_patients = int(owners.max()) + 1
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
        times_drawn = rng.multinomial(num_patients, np.full(num_patients, 1 / num_patients))
        rows = np.repeat(np.arange(num_reports), times_drawn[owners])
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


def _ratio(
    numerator: np.ndarray | float, denominator: np.ndarray | float, otherwise: float = 0.0
) -> np.ndarray:
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    )
    return np.divide(numerator, denominator, out=np.full(numerator.shape, otherwise), where=denominator > 0)


def _macro_f1(
    hits: np.ndarray, support: np.ndarray, predicted: np.ndarray, macro_over: MacroOver = "occurring"
) -> float:
    counted = support > 0 if macro_over == "occurring" else np.ones_like(support, dtype=bool)
    return float(_ratio(2 * hits, support + predicted)[counted].mean()) if counted.any() else 0.0


def _label_table(
    names: Sequence[str], hits: np.ndarray, support: np.ndarray, predicted: np.ndarray
) -> dict[str, dict[str, float]]:
    precision, recall = _ratio(hits, predicted), _ratio(hits, support)
    f1 = _ratio(2 * hits, support + predicted)
    return {
        name: {
            "precision": float(precision[column]),
            "recall": float(recall[column]),
            "f1": float(f1[column]),
            "support": int(support[column]),
            "predicted": int(predicted[column]),
        }
        for column, name in enumerate(names)
    }


def _both_positive(reference: Findings, candidate: Findings) -> set[str]:
    both = (reference.labels == 1) & (candidate.labels == 1)
    return {LABELS[column] for column in np.flatnonzero(both)}


def _side_agreement(reference: Findings, candidate: Findings) -> tuple[int, int]:
    """Count findings with the same side, and findings that both reports state with a side."""
    shared = _both_positive(reference, candidate) & set(reference.sides) & set(candidate.sides)
    return sum(reference.sides[label] == candidate.sides[label] for label in shared), len(shared)


def _size_agreement(reference: Findings, candidate: Findings) -> tuple[int, int]:
    shared = _both_positive(reference, candidate) & set(reference.sizes_mm) & set(candidate.sizes_mm)
    agreeing = 0
    for label in shared:
        expected, told = reference.sizes_mm[label][0], candidate.sizes_mm[label][0]
        agreeing += abs(expected - told) <= max(2.0, 0.2 * expected)
    return agreeing, len(shared)


def _covered_lesions(reference: Findings, candidate: Findings) -> np.ndarray:
    """Count, per size bin, the lesions whose finding the candidate names, then all lesions of that size."""
    counts = np.zeros(8)
    for label, sizes in reference.sizes_mm.items():
        column = LABELS.index(label)
        if label not in SIZED_LABELS or reference.labels[column] != 1:
            continue
        for size in sizes:
            place = int(size >= 3) + int(size >= 6) + int(size > 10)
            counts[place] += candidate.labels[column] == 1
            counts[place + 4] += 1
    return counts


def _derangement(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a permutation that leaves nothing in place: a random cyclic order, shifted by one."""
    order = rng.permutation(size)
    dealt = np.empty(size, dtype=np.int64)
    dealt[order] = np.roll(order, 1)
    return dealt
