"""A file of finished answers beside the one being written, so that a killed run continues where it was.

Its first line says what the answers are made with; each further one is an answer with its `key`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_mu2.files import replace_file


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
