"""Read the records of a large JSON file one at a time: only a block of it and the places of records are in memory.

Corpora keep whole splits as one document, `{"training": [{...}, ...], ...}` or `[{...}, ...]`, up to 1.2 GB long.
Parsed at once it takes many times its size.
"""

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .corpus import CorpusError

Span = tuple[int, int]

_BLOCK = 2**18  # bytes read at a time
_MAX_RECORD = 2**26  # bytes after which a record that does not end is damaged
_BETWEEN = re.compile(r"[\s,:]*")


class JsonRecords:
    """The records of a JSON document: the objects of its list, or of every list that it holds by name.

    Raises:
        CorpusError: if the file is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.stat().st_size == 0:
            raise self._damaged("there is nothing: it is empty")
        with path.open("rb") as stream:
            self._content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def __enter__(self) -> "JsonRecords":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._content.close()

    def places(self) -> Iterator[tuple[str, Span, dict[str, Any]]]:
        """Yield the list's name (`""` for a document that is a list), the place of each of its records, and the record.

        The record is read one letter per byte: structure and ASCII text are right, other letters are not. [`read`] it
        from its place to have them.

        Raises:
            CorpusError: if the document is cut off or damaged, holds no list, or is one of anything but records.
        """
        cursor = _Cursor(self._content)
        num_lists = 0
        try:
            if cursor.mark() == "[":
                yield from self._list(cursor, "")
                return
            if cursor.mark() == "{":
                cursor.at += 1
                while cursor.mark() == '"':
                    name = cursor.value()[1].encode("latin-1").decode("utf-8", "replace")
                    if cursor.mark() == "[":
                        num_lists += 1
                        yield from self._list(cursor, name)
                    else:
                        cursor.value()
        except json.JSONDecodeError as error:
            raise self._damaged(f"what starts at byte {cursor.place} ends early or is not JSON") from error
        if cursor.mark() != "}" or not num_lists:
            raise self._damaged(f"byte {cursor.place} is not where it ends, or it holds no list")

    def read(self, span: Span, *, errors: str = "strict") -> dict[str, Any]:
        """Parse the record at a place.

        Raises:
            UnicodeDecodeError: if it is not UTF-8 and `errors` is `"strict"`.
        """
        return json.loads(self._content[span[0] : span[1]].decode("utf-8", errors), strict=False)

    def _list(self, cursor: "_Cursor", name: str) -> Iterator[tuple[str, Span, dict[str, Any]]]:
        cursor.at += 1
        while cursor.mark() not in ("]", ""):
            span, record = cursor.value()
            if isinstance(record, dict):
                yield name, span, record
            elif not name:
                raise self._damaged(f"byte {span[0]} begins no record")
        if cursor.mark() != "]":
            raise self._damaged("it ends early")
        cursor.at += 1

    def _damaged(self, reason: str) -> CorpusError:
        return CorpusError(
            f"A corpus index must be complete JSON, in `{self.path.name}` {reason}. Download it again."
        )


class _Cursor:
    """A place in a document and the text from there on, one letter per byte so that places in it are bytes."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._decode = json.JSONDecoder(strict=False).raw_decode
        self._start = 3 if content[:3] == b"\xef\xbb\xbf" else 0  # the byte of text[0]
        self._text = ""
        self.at = 0

    @property
    def place(self) -> int:
        """Return the byte that comes next."""
        return self._start + self.at

    def mark(self) -> str:
        """Go to the next mark and return it; `""` at the end."""
        while True:
            self.at = _BETWEEN.match(self._text, self.at).end()
            if self.at < len(self._text) or not self._read_on():
                return self._text[self.at : self.at + 1]

    def value(self) -> tuple[Span, Any]:
        """Read a value and go behind it.

        Raises:
            json.JSONDecodeError: if it is none, or does not end.
        """
        while True:
            try:
                value, end = self._decode(self._text, self.at)
            except json.JSONDecodeError:
                if len(self._text) - self.at > _MAX_RECORD or not self._read_on():
                    raise
                continue
            if end == len(self._text) and self._read_on():
                continue  # a number may go on in the next block
            span = self.place, self._start + end
            self.at = end
            return span, value

    def _read_on(self) -> bool:
        """Forget what lies behind and add a block; tell whether there was one."""
        end = self._start + len(self._text)
        block = self._content[end : end + _BLOCK]
        self._text, self._start, self.at = self._text[self.at :] + block.decode("latin-1"), self.place, 0
        return bool(block)
