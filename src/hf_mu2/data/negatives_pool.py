"""What negatives are drawn from: patients, labels and looks of the studies of one split.

Reads: study rows, or CT-RATE's label tables; the vectors of `hf-mu2 embed` where they are given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .ct_rate import label_table
from .embeddings import read_embeddings
from .negatives import Candidates
from .study import FINDING_LABELS

_NAMED_FACTS = (
    "sex",
    "manufacturer",
    "model",
    "kernel",
)  # of CT-RATE's metadata, as `read_studies` keeps them
_MEASURED_FACTS = {"age": 20.0, "slice_spacing_mm": 1.0}  # and what counts as one step apart


def study_candidates(
    studies: Iterable[Mapping[str, Any]],
    *,
    labels: np.ndarray | None = None,
    embeddings: str | Path | None = None,
) -> Candidates:
    """Gather candidates from study rows of one split; volumes are not opened.

    Looks come from `embeddings`, or else from the sex, age, scanner, kernel and slice spacing that the rows know.

    Args:
        studies: Rows with `study_id`, and where known `patient_id`, `labels` and `metadata`.
        labels (`np.ndarray` of shape `(studies, 18)`, *optional*): In place of the rows' own.
        embeddings (`str` or `Path`, *optional*): `.npz` or `.parquet` of `hf-mu2 embed`, a vector for every study.

    Raises:
        ValueError: if there are no labels, or a study has no vector.
    """
    rows = list(studies)
    ids = [str(row["study_id"]) for row in rows]
    if labels is None:
        unlabelled = next((row["study_id"] for row in rows if not row.get("labels")), None)
        if unlabelled is not None:
            raise ValueError(
                f"Negatives are chosen by labels, study `{unlabelled}` has none. Add the column `labels`, or choose "
                "Gaussian negatives, which need none."
            )
        names = (*rows[0]["labels"],) if rows else FINDING_LABELS
        labels = np.array(
            [[-1 if row["labels"][name] is None else row["labels"][name] for name in names] for row in rows],
            dtype=np.int8,
        )
    else:
        names = FINDING_LABELS
    metadata = [json.loads(row.get("metadata") or "{}") for row in rows]
    pairs = [facts.get("pair", {}).get("other", "") for facts in metadata]
    return Candidates(
        study_ids=ids,
        patient_ids=[str(row.get("patient_id") or row["study_id"]) for row in rows],
        labels=labels,
        label_names=names,
        appearance=_look_of(metadata) if embeddings is None else read_embeddings(embeddings, ids),
        pair_of=pairs if any(pairs) else None,
    )


def ct_rate_candidates(
    root: str | Path, split: str = "train", *, embeddings: str | Path | None = None
) -> Candidates:
    """Gather candidates from CT-RATE's label tables alone: no report or volume is needed.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"` of this package, or `"all_train"`: official train, which
            holds the first two.
    """
    table = label_table(root)
    wanted = ("train", "validation") if split == "all_train" else (split,)
    kept = np.flatnonzero([own in wanted for own in table.splits])
    if not len(kept):
        raise ValueError(
            f"`split` is one of {', '.join(sorted(set(table.splits)))} or all_train, got `{split}`. Pass one of them."
        )
    ids = [table.study_ids[index] for index in kept]
    return Candidates(
        ids,
        [table.patient_ids[index] for index in kept],
        table.labels[kept],
        appearance=None if embeddings is None else read_embeddings(embeddings, ids),
    )


def _look_of(metadata: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Describe studies by what is known of patient and scanner, `None` where nothing is."""
    columns = []
    for name in _NAMED_FACTS:
        values = np.array([str(facts.get(name, "")) for facts in metadata])
        columns += [values == value for value in np.unique(values) if value]
    for name, step in _MEASURED_FACTS.items():
        numbers = np.array([_number(facts.get(name)) for facts in metadata])
        if not np.isnan(numbers).all():
            columns.append(np.nan_to_num((numbers - np.nanmean(numbers)) / step))
    return np.stack(columns, axis=1).astype(np.float32) if columns else None


def _number(value: Any) -> float:
    """Read 0.75, "0.75" or an age such as "063Y"."""
    try:
        return float(str(value).rstrip("Yy"))
    except ValueError:
        return float("nan")
