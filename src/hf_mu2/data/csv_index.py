"""Find the rows of a large csv table by a key, with only the keys and the places of their rows in memory."""

import csv
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from .corpus import CorpusError, Drops


class CsvIndex:
    """The rows of a csv table, grouped by one column and read from disk when asked for.

    Args:
        path (`Path`): A csv file in UTF-8, with or without a byte order mark.
        key (`str`): Column that names the row. Its capitals in the file do not matter.
        columns (`Sequence[str]`): Columns that must be there.
        name_of (`Callable`): Maps a cell of the key column to the key, or `None` for a cell that is no name.
        drops (`Drops`): Counts rows with an odd name or the wrong number of fields.

    Raises:
        CorpusError: if the table is empty, lacks a column, is not UTF-8 or is not csv.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        columns: Sequence[str],
        name_of: Callable[[str], str | None],
        drops: Drops,
    ):
        self.path = path
        self.num_rows = 0
        self._stream: BinaryIO = path.open("rb")
        self._places: dict[str, array] = {}
        rows = self._read(0)
        _, self.columns = next(rows, (0, []))
        self.columns = [key if column.lower() == key.lower() else column for column in self.columns]
        missing = [column for column in (key, *columns) if column not in self.columns]
        if missing:
            self._stream.close()
            raise CorpusError(
                f"`{path.name}` must have the columns {', '.join([key, *columns])}; {missing} are missing, there are "
                f"{self.columns or 'none'}. Download the file again, or undo what renamed them."
            )
        position = self.columns.index(key)
        for place, row in rows:
            self.num_rows += 1
            name = name_of(row[position]) if len(row) == len(self.columns) else None
            if name is not None:
                self._places.setdefault(name, array("q")).append(place)
            elif len(row) != len(self.columns):
                drops.drop(f"row of {path.name} with the wrong number of fields", f"byte {place}")
            else:
                drops.drop(f"row of {path.name} with a name that is none", row[position][:60])

    def __enter__(self) -> "CsvIndex":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def rows(self, name: str) -> list[dict[str, str]]:
        """Return the rows of a key in file order; none if it has none."""
        places = self._places.get(name, ())
        return [dict(zip(self.columns, next(self._read(place))[1])) for place in places]

    def _read(self, place: int) -> Iterator[tuple[int, list[str]]]:
        """Yield each row and the byte it starts at. The csv reader asks for no more lines than its row has."""
        stream, where = self._stream, place

        def lines() -> Iterator[str]:
            nonlocal where
            stream.seek(where)
            for line in stream:
                where += len(line)
                yield line.decode("utf-8-sig" if where == len(line) else "utf-8")

        reader = csv.reader(lines(), strict=True)
        try:
            while True:
                start = where
                row = next(reader, None)
                if row is None:
                    return
                if row:
                    yield start, row
        except (UnicodeDecodeError, csv.Error) as error:
            stream.close()
            what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else f"not csv ({error})"
            raise CorpusError(
                f"A table must be csv in UTF-8, `{self.path.name}` is {what} near byte {where}. Download it again, or "
                "convert it to UTF-8."
            ) from error
