"""Intervals and paired tests over patients, computed from sums of per-report statistics, never from text.

Several studies may be of one patient, so patients are drawn, not studies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Columns = Mapping[str, np.ndarray]
Scores = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]

_CHUNK = 250  # resamples at a time: 250 x 25,000 patients are 50 MB


def total(columns: Columns) -> dict[str, np.ndarray]:
    """Sum columns over reports."""
    return {name: column.sum(axis=0) for name, column in columns.items()}


def bootstrap(
    columns: Columns, patients: Sequence[str], scores: Scores, *, num_resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Score resamples of patients drawn with replacement.

    Args:
        columns (`Columns`): Statistics of shape `(reports, width)`.
        patients (`Sequence[str]`): The patient of each report.
        scores: Turns sums of shape `(resamples, width)` into scores of shape `(resamples, ...)`.

    Returns:
        `dict[str, np.ndarray]`: per score, its value in each resample.
    """
    packed, widths, num_patients = _pack(columns, patients)
    rng = np.random.default_rng(seed)
    found: list[dict[str, np.ndarray]] = []
    for start in range(0, num_resamples, _CHUNK):
        draws = rng.multinomial(
            num_patients, np.full(num_patients, 1 / num_patients), min(_CHUNK, num_resamples - start)
        )
        found.append(scores(_unpack(draws @ packed, widths)))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of resampled scores, `nan` where too few of them are defined."""
    defined = values[~np.isnan(values)]
    if len(defined) < 0.9 * len(values) or not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def paired_randomisation(
    first: Columns,
    second: Columns,
    patients: Sequence[str],
    scores: Scores,
    *,
    num_shuffles: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """Test whether two systems differ: how often swapping them, patient by patient, differs as much as they do.

    Returns:
        `dict[str, float]`: per score, the two-sided p-value, never below 1 / (shuffles + 1); `nan` where undefined.
    """
    a, widths, num_patients = _pack(first, patients)
    b, _, _ = _pack(second, patients)
    observed = _difference(a.sum(axis=0), b.sum(axis=0), widths, scores)
    rng = np.random.default_rng(seed)
    as_extreme = dict.fromkeys(observed, 1)
    for start in range(0, num_shuffles, _CHUNK):
        swaps = rng.random((min(_CHUNK, num_shuffles - start), num_patients)) < 0.5
        moved = swaps @ (b - a)
        shuffled = _difference(a.sum(axis=0) + moved, b.sum(axis=0) - moved, widths, scores)
        for name, value in observed.items():
            # Sums in another order differ in the last bits.
            as_extreme[name] += int((np.abs(shuffled[name]) >= abs(value) - 1e-12).sum())
    return {
        name: as_extreme[name] / (num_shuffles + 1) if np.isfinite(value) else float("nan")
        for name, value in observed.items()
    }


def _difference(
    a: np.ndarray, b: np.ndarray, widths: dict[str, int], scores: Scores
) -> dict[str, np.ndarray]:
    of_a, of_b = scores(_unpack(a, widths)), scores(_unpack(b, widths))
    return {name: of_a[name] - of_b[name] for name in of_a}


def _pack(columns: Columns, patients: Sequence[str]) -> tuple[np.ndarray, dict[str, int], int]:
    """Lay columns side by side and sum them per patient."""
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    num_patients = int(patient.max()) + 1
    rows = np.hstack(list(columns.values()))
    packed = np.zeros((num_patients, rows.shape[1]))
    np.add.at(packed, patient, rows)
    return packed, {name: column.shape[1] for name, column in columns.items()}, num_patients


def _unpack(packed: np.ndarray, widths: dict[str, int]) -> dict[str, np.ndarray]:
    ends = np.cumsum(list(widths.values()))
    return dict(zip(widths, np.split(packed, ends[:-1], axis=-1)))
