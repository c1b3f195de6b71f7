"""Read the vectors of `hf-mu2 embed`, one per study, and what made them.

Reads: `.npz` or `.parquet` with `study_id` and `embedding`.
Writes: nothing.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_MADE_WITH = ("layer", "question", "model_digest")


@dataclass(frozen=True)
class Embeddings:
    """Vectors of studies, `(studies, width)`, float32; `made_with` is what the file states of `_MADE_WITH`."""

    study_ids: list[str]
    vectors: np.ndarray
    made_with: dict[str, str]


def read_embedding_table(path: str | Path) -> Embeddings:
    """Read all vectors of a file.

    Raises:
        ValueError: if the file is of another kind, damaged or empty, or lacks a column.
        ImportError: if a Parquet file is read without pyarrow.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(
            f"Embeddings are the .npz or .parquet of `hf-mu2 embed`, got `{path.name}`. Name one of them."
        )
    try:
        ids, vectors, facts = _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"Embeddings have the columns `study_id` and `embedding`, vectors of one width, `{path.name}` has not or "
            "is damaged. Write it again with `hf-mu2 embed`."
        ) from error
    if vectors.ndim != 2 or not vectors.size or len(ids) != len(vectors):
        raise ValueError(
            f"Embeddings are one vector for each of at least one study, got {len(ids)} studies and the shape "
            f"{vectors.shape} in `{path.name}`. Embed studies that can be read."
        )
    return Embeddings(ids, vectors, {name: facts[name] for name in _MADE_WITH if name in facts})


def read_embeddings(path: str | Path, study_ids: Sequence[str]) -> np.ndarray:
    """Read the vectors of `hf-mu2 embed` in the order of studies, `(studies, width)`.

    Raises:
        ValueError: as for [`read_embedding_table`], or if a study has no vector.
    """
    table = read_embedding_table(path)
    found = dict(zip(table.study_ids, table.vectors))
    missing = [study_id for study_id in study_ids if study_id not in found]
    if missing:
        raise ValueError(
            f"Every study needs a vector, {len(missing)} of {len(study_ids)} have none in `{Path(path).name}`, e.g. "
            f"`{missing[0]}`. Embed the split that is trained on."
        )
    return np.array([found[study_id] for study_id in study_ids], dtype=np.float32)


def check_comparable(one: Embeddings, other: Embeddings) -> None:
    """Refuse vectors that do not compare: of another width, layer, question or model.

    Raises:
        ValueError: if they differ in one of these, as far as both files state it.
    """
    differing = [
        f"{name} `{one.made_with[name]}` and `{other.made_with[name]}`"
        for name in one.made_with.keys() & other.made_with.keys()
        if one.made_with[name] != other.made_with[name]
    ]
    if (width := one.vectors.shape[1]) != other.vectors.shape[1]:
        differing.append(f"width {width} and {other.vectors.shape[1]}")
    if differing:
        raise ValueError(
            "Embeddings compare only if one checkpoint made them from one layer, under one question, got "
            f"{', '.join(sorted(differing))}. Embed both with the same command."
        )


def _read_npz(path: Path) -> tuple[list[str], np.ndarray, dict[str, str]]:
    with np.load(path) as arrays:
        facts = {name: str(arrays[name]) for name in _MADE_WITH if name in arrays.files}
        return arrays["study_id"].tolist(), arrays["embedding"].astype(np.float32), facts


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray, dict[str, str]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f'Reading `{path.name}` needs pyarrow: pip install "hf_mu2[train]", or write .npz.'
        ) from error
    table = pyarrow.parquet.read_table(path, columns=["study_id", "embedding"])
    facts = {name.decode(): text.decode() for name, text in (table.schema.metadata or {}).items()}
    return table["study_id"].to_pylist(), np.array(table["embedding"].to_pylist(), dtype=np.float32), facts
