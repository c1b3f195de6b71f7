"""Embed studies: one vector each, of the soft prompts the language model would read or of the patches of the tower.

Reads: studies (see `studies.py`), a checkpoint.
Writes: `.npz` with `study_id` and `embedding`, or `.parquet` with the same two columns. Notice, command and input
digests go beside them: as further arrays, or into the metadata of the table.
"""

import io
import json
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from tqdm import tqdm
from transformers import BatchFeature

from hf_mu2.files import replace_file
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.reporting.environment import describe_command, library_versions
from hf_mu2.reporting.inference import Reader
from hf_mu2.reporting.pooling import pool_patches
from hf_mu2.reporting.studies import LoadedStudy, Studies, read_batches

Layer = Literal["soft_prompts", "tower"]


def embed(
    studies: Studies,
    out: str | Path,
    reader: Reader,
    *,
    layer: Layer = "soft_prompts",
    question: str | None = None,
    batch_size: int = 4,
    show_progress: bool = False,
) -> dict[str, str]:
    """Embed every study and write one table; returns the refused studies and why.

    Args:
        layer (`str`): `"soft_prompts"`: their mean, of the language model's width. `"tower"`: mean and maximum over the
            patches of the vision tower that hold anatomy, of twice its width; what a linear probe reads.
        question (`str`, *optional*): Soft prompts depend on it. Every study is asked the same one, by default
            `DEFAULT_QUESTION`, and the dataset's own prompts are left aside: vectors under different questions do not
            compare. The tower reads no question.

    Raises:
        ValueError: if `out` has another ending, there is no such layer, or the tower is asked a question.
    """
    out = Path(out)
    if out.suffix not in (".npz", ".parquet"):
        raise ValueError(
            f"Embeddings are written as .npz or .parquet, got `{out}`. Choose one of the two endings."
        )
    if layer not in get_args(Layer) or (layer == "tower" and question):
        raise ValueError(
            f"A layer is one of {', '.join(get_args(Layer))}, and only soft prompts depend on a question, got `{layer}`"
            f"{' and a question' if question else ''}. Choose one, and leave the question out for the tower."
        )
    asked = question or DEFAULT_QUESTION
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    failed: dict[str, str] = {}
    with tqdm(total=len(studies.ids), unit="study", disable=not show_progress) as bar:
        for batch in read_batches(studies, list(range(len(studies.ids))), reader, asked, batch_size):
            failed |= batch.refused
            if batch.inputs is not None:
                ids += [study.study_id for study in batch.studies]
                vectors.append(embed_batch(batch.studies, batch.inputs, reader, layer))
            bar.update(len(batch.studies) + len(batch.refused))
    facts = {
        "notice": reader.notice,
        "command": describe_command(
            "hf-mu2 embed DATASET --out FILE",
            {"model": reader.name, "layer": layer}
            | ({"question": "QUESTION"} if layer == "soft_prompts" else {})
            | {"split": studies.split, "batch_size": batch_size},
        ),
        "layer": layer,
        "question": asked if layer == "soft_prompts" else "",
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
def embed_batch(
    studies: list[LoadedStudy], inputs: BatchFeature, reader: Reader, layer: Layer = "soft_prompts"
) -> np.ndarray:
    """Embed the volumes of a batch and average over those of a study, shape `(studies, width)`."""
    model = reader.model.model
    pixels, patches = inputs.get("pixel_values"), inputs.get("vision_hidden_states")
    mask = inputs["pixel_attention_mask"]
    if layer == "tower":
        patches = model.vision_tower(pixels, mask).last_hidden_state if patches is None else patches
        vectors = pool_patches(patches, mask)
    else:
        _, soft_prompts = model.embed_inputs(inputs["input_ids"], pixels, mask, vision_hidden_states=patches)
        vectors = soft_prompts.float().mean(dim=1)
    per_study = vectors.split([len(study.volume_ids) for study in studies])
    return torch.stack([volumes.mean(dim=0) for volumes in per_study]).cpu().numpy()


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
