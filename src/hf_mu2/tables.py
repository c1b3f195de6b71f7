"""Read a table row by row: csv, tsv, JSON lines or Parquet, packed with gzip or not. Write the latter two."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from hf_mu2.files import replace_file, replacing

T = TypeVar("T")

ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")


class TableError(ValueError):
    """A table cannot be read as one."""


def read_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as dictionaries, holding one (of Parquet: one batch) in memory.

    Cells of csv and tsv are text, those of JSON lines and Parquet what they are there.

    Args:
        columns (`Sequence[str]`): Columns that must be there.

    Raises:
        TableError: if the file is none of `ENDINGS`, damaged, empty, not UTF-8, or lacks a column.
    """
    name = path.name.lower()
    if not name.endswith(ENDINGS):
        raise TableError(f"A table ends in one of {', '.join(ENDINGS)}, got `{path.name}`. Convert it.")
    try:
        rows = _read_parquet(path) if name.endswith(".parquet") else _read_text(path, name)
        number = 0
        for number, row in enumerate(rows, 1):
            missing = [column for column in columns if column not in row]
            if missing:
                raise TableError(
                    f"`{path.name}` must have the columns {', '.join(columns)}; row {number} has no {missing}, there "
                    f"are {list(row)[:40]}. Rename the columns, or download the file again."
                )
            yield row
    except (
        UnicodeDecodeError,
        EOFError,
        gzip.BadGzipFile,
        zlib.error,
        csv.Error,
        json.JSONDecodeError,
    ) as error:
        what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else f"damaged ({error})"
        raise TableError(
            f"A table must be complete and in UTF-8, `{path.name}` is {what} after row {number}. Download it again, or "
            "convert it to UTF-8."
        ) from error
    if number == 0:
        raise TableError(f"A table must have rows, `{path.name}` has none. Download it again.")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows under a temporary name and rename it: Parquet if the name ends so, else JSON lines."""
    if path.suffix.lower() != ".parquet":
        replace_file(path, to_lines(rows))
        return
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f'Writing `{path.name}` needs pyarrow: pip install "hf_mu2[train]".') from error

    with replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)


def to_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Write rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items, the last one shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _read_text(path: Path, name: str) -> Iterator[dict[str, Any]]:
    with _open(path) as stream:
        if ".jsonl" in name:
            for number, line in enumerate(filter(str.strip, stream), 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TableError(
                        f"A line of JSON lines is an object, line {number} of `{path.name}` is a {type(row).__name__}. "
                        'Write {"column": value, ...} per row.'
                    )
                yield row
            return
        reader = csv.reader(stream, delimiter="\t" if ".tsv" in name else ",", strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            twice = sorted({column for column in header if header.count(column) > 1})
            raise TableError(
                f"A column comes once, {twice} come again in `{path.name}`. Rename or remove them."
            )
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise TableError(
                    f"A row has one cell per column, line {reader.line_num} of `{path.name}` has {len(cells)} for "
                    f"{len(header)} columns. Quote cells that hold a comma or a line break."
                )
            yield dict(zip(header, cells))


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f'Reading `{path.name}` needs pyarrow: pip install "hf_mu2[train]".') from error

    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise TableError(f"`{path.name}` cannot be read as Parquet ({error}). Write it again.") from error
