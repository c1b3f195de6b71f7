"""Numbers that others published, with their protocol and their misprints; drawn hollow beside measured ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class PublishedValue:
    """One printed number.

    Args:
        block (`str`): Name of the table it stands in; only values of one block share a protocol.
        system, metric (`str`): Of whom, and what; metrics are named as ours where they mean the same.
        value (`float`): As printed, from 0 to 1.
        badge (`str`): How it was computed, in words.
        protocol (`str`, *optional*): Our protocol that computes it the same way, if one does.
        source (`str`): Where it is printed.
        misprint (`str`, *optional*): Why it cannot be right.
    """

    block: str
    system: str
    metric: str
    value: float
    badge: str
    protocol: str | None
    source: str
    misprint: str | None


def published_blocks() -> dict[str, dict[str, Any]]:
    """Return every block as it is on file: source, dataset, badge, rows, notes and misprints."""
    return json.loads(_text())["blocks"]


def published_values(block: str, *, misprints: bool = False) -> list[PublishedValue]:
    """List the values of a block, without its misprints unless they are asked for."""
    blocks = published_blocks()
    if block not in blocks:
        raise ValueError(
            f"A block of published numbers must be one of {tuple(blocks)}, got {block!r}. Choose one."
        )
    entry = blocks[block]
    wrong = {(item["system"], item["metric"]): item["why"] for item in entry["misprints"]}
    values = [
        PublishedValue(
            block,
            row["system"],
            metric,
            value,
            entry["badge"],
            entry["protocol"],
            entry["source"],
            wrong.get((row["system"], metric)),
        )
        for row in entry["rows"]
        for metric, value in row.items()
        if metric != "system"
    ]
    return [value for value in values if misprints or value.misprint is None]


@cache
def _text() -> str:
    return files(__package__).joinpath("published.json").read_text(encoding="utf-8")
