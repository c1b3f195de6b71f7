"""Finished answers beside the file being written, so that a killed run continues where it was.

`Journal` serves one process: the first line of its file says what the answers are made with, each further one is an
answer with its `key`. `SharedJournal` serves several, each of which appends to a file of its own.
"""

import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_mu2.files import replace_file
from hf_mu2.reporting.environment import library_versions
from hf_mu2.reporting.inference import to_json
from hf_mu2.tables import to_lines, write_rows


class Journal:
    """Answers to be written to `out`, of which a killed run may have left some in `finished`.

    Args:
        out (`Path`): The file in the end; must not exist yet.
        settings (`dict`): What the answers depend on; a run is continued with equal settings only.

    Raises:
        ValueError: if `out` exists, or the answers that are there were made with other settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any]):
        if out.exists():
            raise ValueError(f"`{out}` exists and is complete. Delete it, or name another file.")
        self.out, self.path = out, out.with_name(f".{out.name}.journal")
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        lines = [line for line in lines if line.endswith(b"\n")]
        if lines and json.loads(lines[0]) != settings:
            raise ValueError(
                f"A run is continued only with the model and questions it was begun with, `{self.path}` is of others. "
                "Delete it, or name another file."
            )
        replace_file(self.path, b"".join(lines) or json.dumps(settings) + "\n")
        self.finished: dict[str, dict[str, Any]] = {}
        for line in lines[1:]:
            answer = json.loads(line)
            self.finished[answer.pop("key")] = answer

    def add(self, answers: dict[str, dict[str, Any]]) -> None:
        """Keep finished answers by key."""
        with self.path.open("a", encoding="utf-8") as file:
            for key, answer in answers.items():
                file.write(json.dumps(answer | {"key": key}, ensure_ascii=False) + "\n")
        self.finished |= answers

    def close(self, keys: Iterable[str]) -> list[dict[str, Any]]:
        """Write the answers to `out` in the order of `keys`, and return them."""
        answers = [self.finished[key] for key in keys]
        replace_file(self.out, "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))
        self.path.unlink()
        return answers


@dataclass(frozen=True)
class Finished:
    """What a finished run left behind; `failed` says why per refused study."""

    out: Path
    manifest: Path
    num_studies: int
    failed: dict[str, str]


class SharedJournal:
    """Rows of studies that several processes write, one file in the end.

    Each process appends to its own partial file and finds what any partial file holds, so that a killed run continues
    where it was, also with another number of processes. All of them make a journal, add rows and close it.

    Args:
        out (`Path`): The file in the end, Parquet or JSONL by its ending; must not exist yet.
        settings (`dict`): What the rows depend on; a run is continued with equal settings only.
        study_ids (`Sequence[str]`): The studies, in the order of the file. Rows of others are ignored.
        state (`PartialState`): From `process_state`.

    Raises:
        ValueError: if `out` exists, or the rows that are there were made with other settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any], study_ids: Sequence[str], state: PartialState):
        if out.exists():
            raise ValueError(f"`{out}` exists and is complete. Delete it, or name another file.")
        self.out, self.settings, self.study_ids, self.state = out, settings, study_ids, state
        self.path = out.with_name(f".{out.name}.{state.process_index}.partial")
        self._started = time.perf_counter()
        if state.is_main_process:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._claim()
        state.wait_for_everyone()
        self.finished = self._read()
        state.wait_for_everyone()  # nobody writes before everybody has read
        if self.path.exists():
            with self.path.open("r+b") as file:  # a killed process may have left half a line
                file.truncate(file.read().rfind(b"\n") + 1)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows, in one write; one with `error` says why its study is left out."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_lines(rows))

    def close(self, record: dict[str, Any]) -> Finished:
        """Write the file and its manifest when all processes are done.

        Args:
            record (`dict`): What the manifest says beside the settings, put first.
        """
        self.state.wait_for_everyone()
        rows = self._read()
        self.state.wait_for_everyone()
        failed = {study_id: row["error"] for study_id, row in rows.items() if "error" in row}
        manifest = self.out.with_name(f"{self.out.stem}.manifest.json")
        if self.state.is_main_process:
            facts = {
                "num_processes": self.state.num_processes,
                "num_resumed": len(self.finished),
                "seconds": round(time.perf_counter() - self._started, 1),
                "failed": failed,
                "versions": library_versions(),
            }
            replace_file(manifest, to_json(record | self.settings | facts))
            write_rows(self.out, [rows[study_id] for study_id in self.study_ids if study_id not in failed])
            for path in self._leftovers():
                path.unlink()
        self.state.wait_for_everyone()
        return Finished(self.out, manifest, len(self.study_ids) - len(failed), failed)

    def _claim(self) -> None:
        """Tie partial files to the settings they are made with."""
        path = self.out.with_name(f".{self.out.name}.settings.json")
        if path.exists() and (found := json.loads(path.read_text(encoding="utf-8"))) != self.settings:
            names = {**self.settings, **found}
            different = ", ".join(name for name in names if found.get(name) != self.settings.get(name))
            raise ValueError(
                f"An unfinished run must be resumed with its own settings, got another {different} for `{self.out}`. "
                f"Repeat the first command to finish it, or delete the files `.{self.out.name}.*` beside it."
            )
        replace_file(path, to_json(self.settings))

    def _read(self) -> dict[str, dict[str, Any]]:
        """Read what every process has finished; a line that a killed process left unfinished does not count."""
        ids, rows = set(self.study_ids), {}
        for path in self._leftovers():
            if path.suffix == ".partial":
                for line in path.read_bytes().split(b"\n")[:-1]:
                    row = json.loads(line)
                    if row["study_id"] in ids:
                        rows[row["study_id"]] = row
        return rows

    def _leftovers(self) -> list[Path]:
        """List the files of an unfinished run."""
        name = re.compile(rf"\.{re.escape(self.out.name)}\.(\d+\.partial|settings\.json)")
        return sorted(path for path in self.out.parent.iterdir() if name.fullmatch(path.name))
