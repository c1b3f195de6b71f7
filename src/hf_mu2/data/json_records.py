"""Read the records of a large JSON file one at a time: only where they lie is held in memory.

Corpora keep whole splits as one document, `{"training": [{...}, ...], ...}` or `[{...}, ...]`. Parsed at once it takes
many times its size; here brackets are counted over a memory map, and a record is parsed when it is asked for.
"""

import json
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .corpus import CorpusError

Span = tuple[int, int]

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_OPENING, _CLOSING = {b"{": b"}", b"[": b"]"}, (b"}", b"]")


class JsonRecords:
    """The records of an open JSON document; make one with [`open_records`]."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self._content = path, content

    def spans(self) -> Iterator[tuple[str, Span]]:
        """Yield the list's name (`""` for a document that is a list) and the place of each of its records.

        Raises:
            CorpusError: if the document is cut off, or its brackets do not match.
        """
        expected: list[bytes] = []  # closing brackets still to come
        name, start = "", 0
        for token in _TOKEN.finditer(self._content):
            mark = token[0]
            if mark in _OPENING:
                if self._is_record(expected):
                    start = token.start()
                expected.append(_OPENING[mark])
            elif mark in _CLOSING:
                if not expected or expected.pop() != mark:
                    raise self._damaged(f"unexpected `{mark.decode()}` at byte {token.start()}")
                if mark == b"}" and self._is_record(expected):
                    yield name, (start, token.end())
            elif expected == [b"}"]:
                name = mark[1:-1].decode("utf-8", "replace")
        if expected or self._content[:1] == b"":
            raise self._damaged("it ends early")

    def read(self, span: Span, *, errors: str = "strict") -> dict[str, Any]:
        """Parse the record at a place.

        Raises:
            UnicodeDecodeError: if it is not UTF-8 and `errors` is `"strict"`.
            CorpusError: if it is not JSON.
        """
        text = self._content[span[0] : span[1]].decode("utf-8", errors)
        try:
            return json.loads(text, strict=False)
        except json.JSONDecodeError as error:
            raise self._damaged(f"the record at byte {span[0]} is not JSON ({error.msg})") from None

    @staticmethod
    def _is_record(expected: list[bytes]) -> bool:
        """Tell whether the brackets around a place are those of a list of records."""
        return expected == [b"]"] or expected == [b"}", b"]"]

    def _damaged(self, reason: str) -> CorpusError:
        return CorpusError(
            f"A corpus index must be complete JSON, in `{self.path.name}` {reason}. Download it again."
        )


@contextmanager
def open_records(path: Path) -> Iterator[JsonRecords]:
    """Open a JSON document for reading record by record.

    Raises:
        CorpusError: if the file is empty.
    """
    if path.stat().st_size == 0:
        raise CorpusError(f"A corpus index must be complete JSON, `{path.name}` is empty. Download it again.")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield JsonRecords(path, content)
