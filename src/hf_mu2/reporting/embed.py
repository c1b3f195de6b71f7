"""Embed studies: one vector per study, the mean of the soft prompts that the language model would read.

Reads: studies (see `studies.py`), a checkpoint.
Writes: `.npz` with `study_id` and `embedding`, or `.parquet` with the same two columns.
"""

import io
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hf_mu2.reporting.inference import Reader, write_atomic
from hf_mu2.reporting.studies import LoadedStudy, Studies, read_batches


def embed(
    studies: Studies,
    out: str | Path,
    reader: Reader,
    *,
    question: str | None = None,
    batch_size: int = 4,
    show_progress: bool = False,
) -> dict[str, str]:
    """Embed every study and write one table; returns the refused studies and why.

    The embedding depends on the question, as the visual tokens do: compare studies under the same one.
    """
    out = Path(out)
    if out.suffix not in (".npz", ".parquet"):
        raise ValueError(
            f"Embeddings are written as .npz or .parquet, got `{out}`. Choose one of the two endings."
        )
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    failed: dict[str, str] = {}
    with tqdm(total=len(studies.ids), unit="study", disable=not show_progress) as bar:
        for batch in read_batches(studies, list(range(len(studies.ids))), reader, question, batch_size):
            readable = [study for study in batch if study.error is None]
            failed |= {study.study_id: study.error for study in batch if study.error is not None}
            if readable:
                ids += [study.study_id for study in readable]
                vectors.append(embed_batch(readable, reader))
            bar.update(len(batch))
    embeddings = np.concatenate(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, _to_npz(ids, embeddings) if out.suffix == ".npz" else _to_parquet(ids, embeddings))
    return failed


@torch.inference_mode()
def embed_batch(studies: list[LoadedStudy], reader: Reader) -> np.ndarray:
    """Average the soft prompts of each study over its volumes and tokens, shape `(studies, hidden_size)`."""
    inputs = reader.prepare([study.conversation for study in studies])
    _, soft_prompts = reader.model.model.embed_inputs(
        inputs["input_ids"], inputs["pixel_values"], inputs["pixel_attention_mask"]
    )
    per_volume = soft_prompts.float().mean(dim=1).split([len(study.volume_ids) for study in studies])
    return torch.stack([volumes.mean(dim=0) for volumes in per_volume]).cpu().numpy()


def _to_npz(ids: list[str], embeddings: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, study_id=np.array(ids), embedding=embeddings)
    return buffer.getvalue()


def _to_parquet(ids: list[str], embeddings: np.ndarray) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            'Writing Parquet needs pyarrow: pip install "hf_mu2[train]", or write .npz.'
        ) from error
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"study_id": ids, "embedding": list(embeddings)}), buffer)
    return buffer.getvalue()
