"""Generate a report for every study of a dataset: greedy, batched, resumable, on one process or many.

Reads: studies (see `studies.py`), a checkpoint.
Writes: one JSON object per study (notice, study_id, candidate, finish_reason, volumes) and a manifest beside it.
"""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hf_mu2.files import replace_file
from hf_mu2.reporting.environment import describe_command, library_versions
from hf_mu2.reporting.inference import Reader, process_state, to_json
from hf_mu2.reporting.studies import Batch, Studies, read_batches


@dataclass(frozen=True)
class Prediction:
    """What a finished prediction left behind; `failed` says why per refused study."""

    out: Path
    manifest: Path
    num_studies: int
    failed: dict[str, str]


def predict(
    studies: Studies,
    out: str | Path,
    reader: Reader,
    *,
    question: str | None = None,
    batch_size: int = 4,
    max_new_tokens: int = 512,
    show_progress: bool = False,
) -> Prediction:
    """Generate a candidate report for every study and write them in the dataset's order.

    Each process appends finished batches to its own partial file and skips what any partial file already holds, so a
    killed job continues where it was, also with another number of processes. The main process merges and renames.

    Args:
        studies (`Studies`): From `open_studies`.
        out (`str` or `Path`): The JSONL file to write; the manifest goes beside it.
        reader (`Reader`): From `load_reader`, on this process's device.
        question (`str`, *optional*): Asked of every study instead of the dataset's own prompt.
    """
    out, state, started = Path(out), process_state(), time.perf_counter()
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
    if out.exists():
        raise ValueError(f"`{out}` exists and is complete. Delete it, or name another file to predict again.")
    if state.is_main_process:
        out.parent.mkdir(parents=True, exist_ok=True)
        _claim(out, settings)
    state.wait_for_everyone()
    done = _finished_rows(out, studies)
    state.wait_for_everyone()  # nobody writes before everybody has read
    todo = [index for index, study_id in enumerate(studies.ids) if study_id not in done]
    shard = todo[state.process_index :: state.num_processes]
    with (
        _open_partial(out, state.process_index) as file,
        tqdm(total=len(shard), unit="study", disable=not (show_progress and state.is_main_process)) as bar,
    ):
        for batch in read_batches(studies, shard, reader, question, batch_size):
            rows = _answer_batch(batch, reader, max_new_tokens)
            file.write(_to_lines(rows))
            file.flush()
            bar.update(len(rows))
    state.wait_for_everyone()
    finished = _finished_rows(out, studies)
    failed = {study_id: row["error"] for study_id, row in finished.items() if "error" in row}
    state.wait_for_everyone()
    manifest = out.with_name(f"{out.stem}.manifest.json")
    if state.is_main_process:
        record = {
            "notice": reader.notice,
            "warnings": reader.caveats,
            "command": describe_command(
                "hf-mu2 predict DATASET --out FILE",
                {
                    "model": reader.name,
                    "question": None if question is None else "QUESTION",
                    "split": studies.split,
                    "batch_size": batch_size,
                    "max_new_tokens": max_new_tokens,
                },
            ),
            **settings,
            "batch_size": batch_size,
            "num_processes": state.num_processes,
            "num_resumed": len(done),
            "seconds": round(time.perf_counter() - started, 1),
            "failed": failed,
            "versions": library_versions(),
        }
        replace_file(manifest, to_json(record))
        replace_file(
            out, _to_lines([finished[study_id] for study_id in studies.ids if study_id not in failed])
        )
        for path in _leftovers(out):
            path.unlink()
    state.wait_for_everyone()
    return Prediction(out, manifest, len(studies.ids) - len(failed), failed)


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


def _to_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _leftovers(out: Path) -> list[Path]:
    """List the files of an unfinished prediction."""
    name = re.compile(rf"\.{re.escape(out.name)}\.(\d+\.partial|settings\.json)")
    return sorted(path for path in out.parent.iterdir() if name.fullmatch(path.name))


def _open_partial(out: Path, process_index: int) -> Any:
    """Open this process's partial file for appending, cut back to its last whole line."""
    path = out.with_name(f".{out.name}.{process_index}.partial")
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    return path.open("a", encoding="utf-8")


def _finished_rows(out: Path, studies: Studies) -> dict[str, dict[str, Any]]:
    """Read what every process has finished; a line that a killed process left unfinished does not count."""
    ids = set(studies.ids)
    return {row["study_id"]: row for row in _partial_rows(out) if row["study_id"] in ids}


def _partial_rows(out: Path) -> Iterator[dict[str, Any]]:
    for path in _leftovers(out):
        if path.suffix == ".partial":
            for line in path.read_bytes().split(b"\n")[:-1]:
                yield json.loads(line)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Tie partial files to the settings they are made with."""
    path = out.with_name(f".{out.name}.settings.json")
    if path.exists() and (found := json.loads(path.read_text(encoding="utf-8"))) != settings:
        different = ", ".join(name for name in {**settings, **found} if found.get(name) != settings.get(name))
        raise ValueError(
            f"An unfinished prediction must be resumed with its own settings, got another {different} for `{out}`. "
            f"Repeat the first command to finish it, or delete the files `.{out.name}.*` beside it."
        )
    replace_file(path, to_json(settings))
