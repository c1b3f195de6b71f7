"""What a report scores that was written without looking: the floors every score is read against.

One text for everyone, the report of a random other patient, and the training report whose findings are nearest. The
last is also the bar that wins challenges today, when the labels come from a classifier.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FLOORS = ("constant_normal", "random", "nearest_by_labels")
# Stands in where there are no training reports.
NORMAL_REPORT = (
    "Trachea and both main bronchi are open. Mediastinal structures, heart size and the diameter of the great vessels "
    "are normal. No pericardial effusion. No enlarged lymph nodes. The aeration of both lungs is normal; no nodule, "
    "mass or infiltration. No pleural effusion. The upper abdominal organs in the section are normal. No lytic or "
    "destructive bone lesion."
)
_MOST_COMPARED = 500


def normal_reports(texts: Sequence[str], labels: np.ndarray, *, seed: int = 0) -> list[int]:
    """Rank the training reports that name the fewest findings, the most typical first.

    Typical means: the highest mean ROUGE-1 F1 (plain words) against the training reports, 500 of which are looked at.

    Args:
        texts (`Sequence[str]`): Training reports.
        labels (`np.ndarray` of shape `(texts, labels)`): 0 and 1, `nan` where unknown.
    """
    named = np.nansum(labels, axis=1)
    normal = np.flatnonzero(named == named.min())
    rng = np.random.default_rng(seed)
    normal = np.sort(rng.choice(normal, min(len(normal), _MOST_COMPARED), replace=False))
    compared = np.sort(rng.choice(len(texts), min(len(texts), _MOST_COMPARED), replace=False))
    codes: dict[str, int] = {}

    def code(text: str) -> np.ndarray:
        return np.array([codes.setdefault(word, len(codes)) for word in text.lower().split()], dtype=np.int64)

    mine, theirs = ([code(texts[int(index)]) for index in chosen] for chosen in (normal, compared))
    counts = np.array([np.bincount(words, minlength=len(codes)) for words in mine])
    others = np.array([np.bincount(words, minlength=len(codes)) for words in theirs])
    lengths = np.maximum(counts.sum(1)[:, None] + others.sum(1)[None, :], 1)
    shared = np.array([np.minimum(row, others).sum(axis=1) for row in counts])
    return [int(normal[index]) for index in np.argsort(-(2 * shared / lengths).mean(axis=1), kind="stable")]


def constant_normal(
    texts: Sequence[str], labels: np.ndarray, training_patients: Sequence[str], patients: Sequence[str]
) -> list[str]:
    """Give every study the most typical normal training report; the next one to the patient who wrote it."""
    ranked = normal_reports(texts, labels)
    first = ranked[0]
    given = []
    for patient in patients:
        index = next((index for index in ranked if training_patients[index] != patient), first)
        given.append(texts[index])
    return given


def random_reports(
    texts: Sequence[str], training_patients: Sequence[str], patients: Sequence[str], *, seed: int = 0
) -> list[str]:
    """Give every study the report of a random other patient."""
    rng = np.random.default_rng(seed)
    owners = np.asarray(training_patients)
    return [texts[int(rng.choice(np.flatnonzero(_others(owners, patient))))] for patient in patients]


def nearest_by_labels(
    labels: np.ndarray,
    training_labels: np.ndarray,
    *,
    patients: Sequence[str] | None = None,
    training_patients: Sequence[str] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Find, for each study, the training report whose labels are nearest.

    With the reference labels this is an oracle that knows every finding and copies a report; with those that a
    classifier predicts it is the lookup that a report generator has to beat. The distance is the number of labels that
    differ, of probabilities the expected one: low ones ask for a normal report. Ties are drawn.

    Args:
        labels (`np.ndarray` of shape `(studies, labels)`): Labels or probabilities, from 0 to 1; `nan` where unknown.
        training_labels (`np.ndarray` of shape `(reports, labels)`): Labels of the training reports.
        patients, training_patients (`Sequence[str]`, *optional*): Given both, no patient gets a report of their own.

    Returns:
        `np.ndarray` of shape `(studies,)`: rows of `training_labels`.
    """
    wanted, offered = np.asarray(labels, dtype=float), np.asarray(training_labels, dtype=float)
    if wanted.ndim != 2 or offered.ndim != 2 or wanted.shape[1] != offered.shape[1] or not len(offered):
        raise ValueError(
            "Labels must be two arrays (rows, labels) with the same labels and at least one training report, got "
            f"{wanted.shape} and {offered.shape}. Label both with `label_reports`."
        )
    if np.nanmin(wanted, initial=0) < 0 or np.nanmax(wanted, initial=0) > 1:
        raise ValueError(
            "Labels must lie between 0 and 1, got values outside. Turn logits into probabilities first."
        )
    known, given = ~np.isnan(wanted), ~np.isnan(offered)
    wanted, offered = np.where(known, wanted, 0.0), np.where(given, offered, 0.0)
    # sum of p (1 - y) + (1 - p) y over labels that both sides know; unknown ones count half
    both = known.astype(float) @ given.T.astype(float)
    distance = wanted @ given.T + known @ offered.T - 2 * wanted @ offered.T + 0.5 * (wanted.shape[1] - both)
    if patients is not None and training_patients is not None:
        owners = np.asarray(training_patients)
        for row, patient in enumerate(patients):
            distance[row, ~_others(owners, patient)] = np.inf
    order = np.random.default_rng(seed).permutation(len(offered))
    return order[np.argmin(np.round(distance[:, order], 9), axis=1)]


def nearest_reports(
    labels: np.ndarray,
    texts: Sequence[str],
    training_labels: np.ndarray,
    *,
    patients: Sequence[str] | None = None,
    training_patients: Sequence[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """Answer each study with the training report nearest by labels; see [`nearest_by_labels`]."""
    rows = nearest_by_labels(
        labels, training_labels, patients=patients, training_patients=training_patients, seed=seed
    )
    return [texts[row] for row in rows]


def floor_reports(
    labels: np.ndarray,
    patients: Sequence[str],
    texts: Sequence[str],
    training_labels: np.ndarray,
    training_patients: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Answer each study with every floor, by its name in `FLOORS`.

    Args:
        labels (`np.ndarray` of shape `(studies, labels)`): What is true of the studies.
        patients (`Sequence[str]`): Whose the studies are: nobody is given a report of their own.
        texts (`Sequence[str]`): Training reports, with `training_labels` of shape `(reports, labels)`.
    """
    return {
        "constant_normal": constant_normal(texts, training_labels, training_patients, patients),
        "random": random_reports(texts, training_patients, patients, seed=seed),
        "nearest_by_labels": nearest_reports(
            labels, texts, training_labels, patients=patients, training_patients=training_patients, seed=seed
        ),
    }


def _others(owners: np.ndarray, patient: str) -> np.ndarray:
    others = owners != patient
    return others if others.any() else np.ones_like(others)
