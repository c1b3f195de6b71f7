"""The question files of CT-RATE, up to 1.2 GB of JSON, read item by item."""

import re
from array import array
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from .corpus import Drops
from .json_records import JsonRecords

_TOKEN = re.compile(r"<(image|report_generation|long_answer|short_answer|multiple_choice)>")
_LONG = ("conversation", "free_response", "description")  # answered at length, as CT-CHAT maps them
_OPTION = re.compile(r"\(([a-zA-Z])\)\s*")
_LETTER = re.compile(r"\s*(?:\(([a-zA-Z])\)|([a-zA-Z])[).:](?=\s|$)|([a-zA-Z])\s*$)")


class VqaIndex:
    """Where the items of each volume are in a question file; items are read when asked for.

    Raises:
        CorpusError: if the file is empty or damaged.
    """

    def __init__(self, path: Path, name_of: Callable[[str], str | None], drops: Drops):
        self._records = JsonRecords(path)
        self._places: dict[str, array] = {}
        for _, span, item in self._records.places():
            name = name_of(str(item.get("image", "")))
            if name is not None:
                self._places.setdefault(name, array("q")).extend(span)
            else:
                drops.note("questions about an article, without a volume", str(item.get("id", "")))

    def __enter__(self) -> "VqaIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self._records.close()

    def questions(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the questions of several volumes, those of all reconstructions of a scan, each once."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for name in names:
            places = self._places.get(name, array("q"))
            for span in zip(places[::2], places[1::2]):
                for question in read_item(self._records.read(span)):
                    found.setdefault((question["question"], question["answer"]), question)
        return list(found.values())


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
