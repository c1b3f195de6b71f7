"""Sample several candidate reports per study: one pass of the vision tower and one prefill, however many.

Reads: studies (see `reporting/studies.py`), a checkpoint.
Writes: one row per study, JSONL or Parquet by the ending of the file, and `<stem>.manifest.json` beside it.

A row is what `hf-mu2 score` and `hf-mu2 pairs` read:

    {"notice": "Research software ...",
     "study_id": "train_1_a", "patient_id": "train_1" or null, "egress": true, false or null,
     "images": ["/data/train_1_a_1.nii.gz"],               paths or volume references, as the dataset has them
     "prompt": [{"role": "user", "content": "Write ..."}], what was asked, as the dataset has it
     "volumes": ["ct-0f...", ...],                         ids of the voxels that were read
     "candidates": [{"index": 0, "text": "Findings: ...", "finish_reason": "eos" or "length", "num_tokens": 81,
                     "seed": 7150...}, ...]}

`images` is null where the dataset holds the voxels themselves, for volumes are never copied. `hf-mu2 score` adds to the
row `reference` (null without one) and `signature`, and to every candidate `scores` ({"label_f1": 0.5, "total": 0.5},
null where there is none; `label_f1` is always among them, `total` is what `--by` asked for) and `status`, `"ok"` or why
there is no total.

Generation of transformers takes no generator, so the global one is seeded per batch, in a fork that leaves the caller's
alone. Batches are the same whoever does them, so resumed and sharded runs give the same candidates on one kind of
machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import GenerationConfig

from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.reporting.environment import describe_command
from hf_mu2.reporting.inference import Answer, Reader, process_state
from hf_mu2.reporting.journal import Finished, SharedJournal
from hf_mu2.reporting.sampling import sample_seeded, sampling_config
from hf_mu2.reporting.studies import Batch, LoadedStudy, Studies, read_batches

ENDINGS = (".jsonl", ".parquet")


def sample(
    studies: Studies,
    out: str | Path,
    reader: Reader,
    *,
    num_candidates: int = 8,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int = 0,
    question: str | None = None,
    batch_size: int = 4,
    max_new_tokens: int = 512,
    show_progress: bool = False,
) -> Finished:
    """Sample candidates for every study and write them in the dataset's order.

    A killed job goes on at the next batch, also with another number of processes, and ends in the same candidates. A
    study that cannot be read, its volume gone, is left out and named in the manifest.

    Args:
        studies (`Studies`): From `open_studies`.
        out (`str` or `Path`): File to write, `.jsonl` or `.parquet`.
        reader (`Reader`): From `load_reader`, on this process's device.
        num_candidates (`int`): Candidates per study; 8 in the official code of mu2, with these settings.
        temperature (`float`): Above 0; 1 leaves the model's distribution as it is.
        top_p (`float`): Only the likeliest tokens that together have this probability are drawn.
        seed (`int`): Each batch is seeded from it and the first study of the batch.
        question (`str`, *optional*): Asked of every study instead of the dataset's own prompt.
        batch_size (`int`): Studies sampled together; other candidates come with another size.

    Raises:
        ValueError: if `out` exists, was begun with other settings or ends otherwise, or a setting is out of range.
    """
    out, state = Path(out), process_state()
    check_ending(out)
    _check_at_least_one(num_candidates=num_candidates, batch_size=batch_size, max_new_tokens=max_new_tokens)
    config = sampling_config(reader, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    decoding = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    settings = {
        "model": reader.name,
        "model_digest": reader.digest,
        "dataset_digest": studies.digest,
        "split": studies.split,
        "question": question,
        **decoding,
        "num_candidates": num_candidates,
        "seed": seed,
        "batch_size": batch_size,
        "num_studies": len(studies.ids),
    }
    journal = SharedJournal(out, settings, studies.ids, state)
    batches = [
        range(start, min(start + batch_size, len(studies.ids)))
        for start in range(0, len(studies.ids), batch_size)
    ]
    # A batch that was cut off in its middle is done again as a whole: its candidates are those of all its studies.
    todo = [batch for batch in batches if any(studies.ids[index] not in journal.finished for index in batch)]
    mine = todo[state.process_index :: state.num_processes]
    indices = [index for batch in mine for index in batch]
    with tqdm(total=len(indices), unit="study", disable=not (show_progress and state.is_main_process)) as bar:
        for numbers, batch in zip(mine, read_batches(studies, indices, reader, question, batch_size)):
            batch_seed = seed_of_batch(seed, studies.ids[numbers[0]])
            answers = _sample_batch(batch, reader, num_candidates, config, batch_seed)
            described = {studies.ids[index]: studies.describe(index) for index in numbers}
            rows = [
                {"notice": reader.notice}
                | _row(study, described[study.study_id], question, candidates, batch_seed)
                for study, candidates in zip(batch.studies, answers)
            ]
            refused = [{"study_id": study_id, "error": error} for study_id, error in batch.refused.items()]
            journal.add(rows + refused)
            bar.update(len(numbers))
    options = {
        "model": reader.name,
        "num_candidates": num_candidates,
        **decoding,
        "seed": seed,
        "question": None if question is None else "QUESTION",
        "split": studies.split,
        "batch_size": batch_size,
    }
    return journal.close(
        {
            "notice": reader.notice,
            "warnings": reader.caveats,
            "command": describe_command("hf-mu2 sample DATASET --out FILE", options),
        }
    )


def check_ending(out: Path) -> None:
    """Refuse to write candidates to a file of another kind than `ENDINGS`."""
    if out.suffix.lower() not in ENDINGS:
        raise ValueError(f"Candidates are written as {' or '.join(ENDINGS)}, got `{out.name}`. Name it so.")


def seed_of_batch(seed: int, first_study_id: str) -> int:
    """Derive the seed of a batch, the same in every run and process: 48 bits, which any JSON reader keeps whole."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{first_study_id}".encode(), digest_size=6).digest())


def _sample_batch(
    batch: Batch, reader: Reader, num_candidates: int, config: GenerationConfig, batch_seed: int
) -> list[list[Answer]]:
    if batch.inputs is None:
        return []
    return sample_seeded(reader, batch.inputs, num_candidates, config, batch_seed)


def _row(
    study: LoadedStudy,
    described: Mapping[str, Any],
    question: str | None,
    candidates: list[Answer],
    batch_seed: int,
) -> dict[str, Any]:
    prompt = None if question is not None else study.prompt
    return {
        "study_id": study.study_id,
        "patient_id": described.get("patient_id"),
        "egress": described.get("egress"),
        "images": _references(study.sources),
        "prompt": prompt or [{"role": "user", "content": question or DEFAULT_QUESTION}],
        "volumes": study.volume_ids,
        "candidates": [
            {"index": index, **vars(candidate), "seed": batch_seed}
            for index, candidate in enumerate(candidates)
        ],
    }


def _references(sources: list[Any]) -> list[str] | None:
    """Name the volumes as the dataset does; a file of voxels inside a table has no name elsewhere."""
    if any(isinstance(source, dict) and source.get("bytes") is not None for source in sources):
        return None
    return [str(source["path"] if isinstance(source, dict) else source) for source in sources]


def _check_at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"`{name}` must be at least 1, got {number}. Raise it.")
