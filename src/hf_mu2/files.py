"""Write files so that a reader sees the old one or the new one, never half of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = (
    ".partial_"  # what an unfinished file's name starts with; `datasets` skips names that start with a dot
)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` when the block ends without an error.

    The folder is made if it is missing. The name keeps its endings (`.partial_<process>_x.nii.gz`), since many
    writers choose their format by them, and holds the process id, so that two writers never share a file.

    Raises:
        OSError: if the disk is full or the folder is not writable; `path` is then as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL}{os.getpid()}_{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def replace_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 under a temporary name, then rename it."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def replace_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` under a temporary name, then rename it."""
    with replacing(path) as partial:
        partial.write_bytes(content)
