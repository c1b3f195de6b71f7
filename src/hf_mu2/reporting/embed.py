"""Embed studies: one vector per study, the mean of the soft prompts that the language model would read.

Reads: studies (see `studies.py`), a checkpoint.
Writes: `.npz` with `study_id` and `embedding`, or `.parquet` with the same two columns. Notice, command and input
digests go beside them: as further arrays, or into the metadata of the table.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import BatchFeature

from hf_mu2.files import replace_file
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.reporting.environment import describe_command, library_versions
from hf_mu2.reporting.inference import Reader
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

    The embedding depends on the question, as the visual tokens do. Every study is asked the same one, by default
    `DEFAULT_QUESTION`, and the dataset's own prompts are left aside: vectors under different questions do not compare.
    """
    out = Path(out)
    if out.suffix not in (".npz", ".parquet"):
        raise ValueError(
            f"Embeddings are written as .npz or .parquet, got `{out}`. Choose one of the two endings."
        )
    question = question or DEFAULT_QUESTION
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    failed: dict[str, str] = {}
    with tqdm(total=len(studies.ids), unit="study", disable=not show_progress) as bar:
        for batch in read_batches(studies, list(range(len(studies.ids))), reader, question, batch_size):
            failed |= batch.refused
            if batch.inputs is not None:
                ids += [study.study_id for study in batch.studies]
                vectors.append(embed_batch(batch.studies, batch.inputs, reader))
            bar.update(len(batch.studies) + len(batch.refused))
    facts = {
        "notice": reader.notice,
        "command": describe_command(
            "hf-mu2 embed DATASET --out FILE",
            {"model": reader.name, "question": "QUESTION", "split": studies.split, "batch_size": batch_size},
        ),
        "question": question,
        "model_digest": reader.digest,
        "dataset_digest": studies.digest,
        "versions": json.dumps(library_versions()),
    }
    embeddings = np.concatenate(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)
    out.parent.mkdir(parents=True, exist_ok=True)
    to_bytes = _to_npz if out.suffix == ".npz" else _to_parquet
    replace_file(out, to_bytes(ids, embeddings, facts))
    return failed


@torch.inference_mode()
def embed_batch(studies: list[LoadedStudy], inputs: BatchFeature, reader: Reader) -> np.ndarray:
    """Average the soft prompts of each study over its volumes and tokens, shape `(studies, hidden_size)`."""
    _, soft_prompts = reader.model.model.embed_inputs(
        inputs["input_ids"], inputs["pixel_values"], inputs["pixel_attention_mask"]
    )
    per_volume = soft_prompts.float().mean(dim=1).split([len(study.volume_ids) for study in studies])
    return torch.stack([volumes.mean(dim=0) for volumes in per_volume]).cpu().numpy()


def _to_npz(ids: list[str], embeddings: np.ndarray, facts: dict[str, str]) -> bytes:
    arrays: dict[str, Any] = {"study_id": np.array(ids), "embedding": embeddings, **facts}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _to_parquet(ids: list[str], embeddings: np.ndarray, facts: dict[str, str]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            'Writing Parquet needs pyarrow: pip install "hf_mu2[train]", or write .npz.'
        ) from error
    table = pyarrow.table({"study_id": ids, "embedding": list(embeddings)}, metadata=facts)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()
