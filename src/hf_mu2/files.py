"""Write files and folders so that a reader sees the old one or the new one, never half of it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What the name of an unfinished file starts with; `datasets` skips names that start with a dot.
PARTIAL = ".partial_"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` when the block ends without an error.

    The folder is made if it is missing. The name keeps its endings (`.partial_x.nii.gz`), since many writers choose
    their format by them. What a killed writer left is overwritten by the next one; so two processes must not write
    one path at the same time.

    Raises:
        OSError: if the disk is full or the folder is not writable; `path` is then as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL + path.name)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(path: str | Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes to `path` under a temporary name, then rename it."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def replace_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 under a temporary name, then rename it."""
    replace_file(path, text)


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `output`, and rename it to `output` when the block ends without an error.

    Raises:
        ValueError: if `output` holds something already.
    """
    output = Path(output)
    check_new_folder(output)
    partial = output.with_name(PARTIAL + output.name)
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    partial.mkdir(parents=True)
    try:
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new_folder(output: Path) -> None:
    """Refuse an output folder that holds something already; worth asking before long work too."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"The output must be a new or empty folder, `{output}` is not. Remove it or choose another."
        )
