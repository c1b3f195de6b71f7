"""Score pairs of studies that are one finding apart: does what is written change with what is there, and only there.

A pair is passed when the report of the study without the finding does not name it, that of the study with it does, and
no other label differs between the two. The first half says that the model looks, the second that it does not guess.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .labels import LABELS


def paired_change(without: np.ndarray, with_it: np.ndarray, changed: Sequence[str]) -> np.ndarray:
    """Say which pairs are passed.

    Args:
        without, with_it (`np.ndarray` of shape `(pairs, 18)`): Labels of what was written of the study without and with
            the finding, as of `label_reports`.
        changed (`Sequence[str]`): The label that each pair is apart in.

    Returns:
        `np.ndarray` of shape `(pairs, 3)`, bool: passed; the changed label alone is right in both; no other differs.
    """
    column = np.array([LABELS.index(label) for label in changed])
    rows = np.arange(len(column))
    found = (without[rows, column] == 0) & (with_it[rows, column] == 1)
    differs = without != with_it
    differs[rows, column] = False
    steady = ~differs.any(axis=1)
    return np.stack([found & steady, found, steady], axis=1)


def paired_change_floor(
    without: np.ndarray, with_it: np.ndarray, changed: Sequence[str], *, num_deals: int = 200, seed: int = 0
) -> np.ndarray:
    """Return the shares of [`paired_change`] when the second reports are dealt to other pairs: chance, `(3,)`."""
    rng = np.random.default_rng(seed)
    deals = [rng.permutation(len(changed)) for _ in range(num_deals)]
    return np.mean([paired_change(without, with_it[deal], changed).mean(axis=0) for deal in deals], axis=0)
