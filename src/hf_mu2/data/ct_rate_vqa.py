"""The question files of CT-RATE, up to 1.2 GB of JSON, read item by item."""

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from .corpus import CorpusError, Drops

MAX_ITEM_BYTES = 2**26

_SEPARATORS = re.compile(r"[\s,]*")
_TOKEN = re.compile(r"<(image|report_generation|long_answer|short_answer|multiple_choice)>")
_LONG = ("conversation", "free_response", "description")  # answered at length, as CT-CHAT maps them
_OPTION = re.compile(r"\(([a-zA-Z])\)\s*")
_LETTER = re.compile(r"\s*(?:\(([a-zA-Z])\)|([a-zA-Z])[).:](?=\s|$)|([a-zA-Z])\s*$)")


class VqaIndex:
    """Where the items of each volume are in a question file; items are read when asked for.

    Raises:
        CorpusError: if the file is not one JSON array of objects.
    """

    def __init__(self, path: Path, name_of: Callable[[str], str | None], drops: Drops):
        self._stream = path.open("rb")
        self._places: dict[str, array] = {}
        for start, end, item in json_items(self._stream, path.name):
            name = name_of(str(item.get("image", "")))
            if name is not None:
                self._places.setdefault(name, array("q")).extend((start, end))
            else:
                drops.note("questions about an article, without a volume", str(item.get("id", "")))

    def __enter__(self) -> "VqaIndex":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def questions(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the questions of several volumes, those of all reconstructions of a scan, each once."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for name in names:
            places = self._places.get(name, array("q"))
            for start, end in zip(places[::2], places[1::2]):
                self._stream.seek(start)
                for question in read_item(json.loads(self._stream.read(end - start))):
                    found.setdefault((question["question"], question["answer"]), question)
        return list(found.values())


def json_items(stream: BinaryIO, name: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield the objects of a JSON array with the bytes they lie between, holding one block of the file at a time.

    Bytes are decoded one by one (latin-1) so that places in the text are places in the file: structure and names are
    right, letters beyond ASCII are not. Read an item again from its bytes to have them.
    """
    decode = json.JSONDecoder().raw_decode
    text = stream.read(2**20).decode("latin-1")
    place = _SEPARATORS.match(text, 3 if text.startswith("\xef\xbb\xbf") else 0).end()
    start = 0  # the byte of text[0]
    if text[place : place + 1] != "[":
        raise CorpusError(f"`{name}` must be a JSON array, it does not begin with `[`. Download it again.")
    place += 1
    while True:
        place = _SEPARATORS.match(text, place).end()
        if text[place : place + 1] == "]":
            return
        try:
            item, end = decode(text, place)
        except json.JSONDecodeError as error:
            block = stream.read(2**20)
            if not block or len(text) - place > MAX_ITEM_BYTES:
                raise CorpusError(
                    f"`{name}` must be a complete JSON array, it is damaged or cut off at byte {start + place}. "
                    "Download it again."
                ) from error
            text, start, place = text[place:] + block.decode("latin-1"), start + place, 0
            continue
        if not isinstance(item, dict):
            raise CorpusError(f"`{name}` must hold objects, byte {start + place} is none. Download it again.")
        yield start + place, start + end, item
        place = end


def read_item(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Take the question-answer pairs out of a conversation, without the marks that CT-CHAT puts into the text.

    `kind` is the file's own type. The options of a multiple choice become `options`, its answer one of them; where the
    text cannot be taken apart it stays as it is.
    """
    questions = []
    turns = item.get("conversations", [])
    for asked, answered in pairwise(turns):
        if asked["from"] != "human" or answered["from"] != "gpt":
            continue
        marks = set(_TOKEN.findall(asked["value"])) - {"image"}
        text = " ".join(_TOKEN.sub(" ", asked["value"]).split())
        answer = " ".join(answered["value"].split())
        kind = asked.get("type") or (marks.pop() if marks else "")
        if not text or not answer:
            continue
        question = {"question": text, "answer": answer, "kind": "long_answer" if kind in _LONG else kind}
        questions.append(question | _options(text, answer) if kind == "multiple_choice" else question)
    return questions


def _options(text: str, answer: str) -> dict[str, Any]:
    """Split "... (a) this (b) that" with the answer "(b) that"; nothing if it is written otherwise."""
    marks = list(_OPTION.finditer(text))
    letters = [mark[1].lower() for mark in marks]
    if len(marks) < 2 or letters != [chr(ord("a") + index) for index in range(len(marks))]:
        return {}
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    options = [text[mark.end() : end].strip(" ,;") for mark, end in zip(marks, ends)]
    chosen = _LETTER.match(answer)
    letter = next(filter(None, chosen.groups()), "").lower() if chosen else ""
    if letter in letters:
        answer = options[letters.index(letter)]
    stem = text[: marks[0].start()].strip()
    if not stem or answer not in options or len(set(options)) < len(options) or not all(options):
        return {}
    return {"question": stem, "options": options, "answer": answer}
