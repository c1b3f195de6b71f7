"""Generate a report for every study of a dataset: greedy, batched, resumable, on one process or many.

Reads: studies (see `studies.py`), a checkpoint.
Writes: one JSON object per study (notice, study_id, candidate, finish_reason, volumes) and a manifest beside it.
"""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from hf_mu2.reporting.environment import describe_command
from hf_mu2.reporting.inference import Reader, process_state
from hf_mu2.reporting.journal import Finished, SharedJournal
from hf_mu2.reporting.studies import Batch, Studies, read_batches


def predict(
    studies: Studies,
    out: str | Path,
    reader: Reader,
    *,
    question: str | None = None,
    batch_size: int = 4,
    max_new_tokens: int = 512,
    show_progress: bool = False,
) -> Finished:
    """Generate a candidate report for every study and write them in the dataset's order.

    A killed job continues where it was, also with another number of processes, see `SharedJournal`.

    Args:
        studies (`Studies`): From `open_studies`.
        out (`str` or `Path`): The JSONL file to write; the manifest goes beside it.
        reader (`Reader`): From `load_reader`, on this process's device.
        question (`str`, *optional*): Asked of every study instead of the dataset's own prompt.
    """
    state = process_state()
    settings = {
        "model": reader.name,
        "model_digest": reader.digest,
        "dataset_digest": studies.digest,
        "split": studies.split,
        "question": question,
        "max_new_tokens": max_new_tokens,
        "decoding": "greedy",
        "num_studies": len(studies.ids),
    }
    journal = SharedJournal(Path(out), settings, studies.ids, state)
    todo = [index for index, study_id in enumerate(studies.ids) if study_id not in journal.finished]
    shard = todo[state.process_index :: state.num_processes]
    with tqdm(total=len(shard), unit="study", disable=not (show_progress and state.is_main_process)) as bar:
        for batch in read_batches(studies, shard, reader, question, batch_size):
            rows = _answer_batch(batch, reader, max_new_tokens)
            journal.add(rows)
            bar.update(len(rows))
    options = {
        "model": reader.name,
        "question": None if question is None else "QUESTION",
        "split": studies.split,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
    }
    return journal.close(
        {
            "notice": reader.notice,
            "warnings": reader.caveats,
            "command": describe_command("hf-mu2 predict DATASET --out FILE", options),
            "batch_size": batch_size,
        }
    )


def _answer_batch(batch: Batch, reader: Reader, max_new_tokens: int) -> list[dict[str, Any]]:
    """Generate for a batch; a refused study gives a row with the reason."""
    answers = [] if batch.inputs is None else reader.answer(batch.inputs, max_new_tokens)
    return [
        {
            "notice": reader.notice,
            "study_id": study.study_id,
            "candidate": answer.text,
            "finish_reason": answer.finish_reason,
            "volumes": study.volume_ids,
        }
        for study, answer in zip(batch.studies, answers)
    ] + [{"study_id": study_id, "error": error} for study_id, error in batch.refused.items()]
