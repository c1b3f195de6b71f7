"""Keep a judge's replies on disk, so that a killed run loses none and pays for none twice.

Reads, writes: `<folder>/replies-<random>.jsonl`, one file per process, each written by that process alone and only
ever appended to. A line is one reply, or one failed call, which is asked again the next time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from .judge_backends import Backend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """A judge's answer: its text and why it ended (`stop`, `length`, ...), or the error of a call that failed."""

    text: str = ""
    finish_reason: str | None = None
    error: str | None = None


class ReplyCache:
    """Replies by key, in memory and, with a folder, on disk.

    A process killed while it writes leaves half a line at the end of its file; reading drops it. Files are never
    repaired in place, so any number of processes may share a folder.

    Args:
        folder (`str` or `Path`, *optional*): Where to keep them; by default in memory only.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.replies: dict[str, Reply] = {}
        self.failures: dict[str, Reply] = {}
        self._file: TextIO | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have written since."""
        if self.folder is None or not self.folder.is_dir():
            return
        # Oldest first, so that of two failures the last is told.
        for path in sorted(
            self.folder.glob("replies-*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name)
        ):
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                logger.info("%s ends in half a line: that reply is asked for again.", path.name)
            for number, line in enumerate(whole.decode("utf-8").splitlines(), start=1):
                self._remember(*_read_line(line, path, number))

    def add(self, replies: dict[str, Reply], about: dict[str, Any]) -> None:
        """Store replies by key, in one write; `about` says who answered, for people who read the file."""
        for key, reply in replies.items():
            self._remember(key, reply)
        if self.folder is None:
            return
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / f"replies-{uuid.uuid4().hex}.jsonl").open("x", encoding="utf-8")
        self._file.write("".join(_to_line(key, reply, about) for key, reply in replies.items()))
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _remember(self, key: str, reply: Reply) -> None:
        if reply.error is None:
            self.replies.setdefault(key, reply)
        else:
            self.failures[key] = reply


def reply_key(identity: dict[str, Any], prompt: str) -> str:
    """Name a reply by everything it depends on."""
    return hashlib.sha256(json.dumps([identity, prompt], sort_keys=True).encode()).hexdigest()


async def fetch_replies(
    backend: Backend,
    cache: ReplyCache,
    batches: Iterable[list[str]],
    identity: dict[str, Any],
    *,
    total: int | None = None,
    show_progress: bool = True,
) -> None:
    """Ask for the replies that the cache lacks, each once, and store them as they come.

    Args:
        batches (`Iterable[list[str]]`): Prompts; taken only as fast as they are answered.
        identity (`dict`): What a reply depends on beside its prompt, see `reply_key`.

    Raises:
        ConnectionError: if an endpoint keeps failing; replies so far are in the cache.
    """
    seen: set[str] = set()

    def is_new(prompt: str) -> bool:
        key = reply_key(identity, prompt)
        if key in seen or key in cache.replies:
            return False
        seen.add(key)
        return True

    missing = (new for batch in batches if (new := list(filter(is_new, batch))))
    with tqdm(total=total, unit="reply", disable=None if show_progress else True) as bar:
        async for replies in backend.replies(missing):
            found = {reply_key(identity, prompt): reply for prompt, reply in replies.items()}
            cache.add(found, {"judge": backend.identity["model"]})
            bar.update(len(replies))


def _to_line(key: str, reply: Reply, about: dict[str, Any]) -> str:
    answer = (
        {"error": reply.error}
        if reply.error is not None
        else {"finish_reason": reply.finish_reason, "reply": reply.text}
    )
    # json escapes every line break, and the other characters that `splitlines` would split at with ensure_ascii.
    return json.dumps({"key": key, **about, **answer}) + "\n"


def _read_line(line: str, path: Path, number: int) -> tuple[str, Reply]:
    try:
        record = json.loads(line)
        return record["key"], Reply(record.get("reply", ""), record.get("finish_reason"), record.get("error"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Every line of a reply cache is one JSON object with a key, line {number} of `{path}` is not. "
            "The file was edited or damaged: delete that line, and its reply is asked for again."
        ) from error
