"""Label the reports of a file, and read the labels a person gave them.

Reads: .txt (one report), or what `rows.read_rows` reads: one row per report.
Returns: one record per report, ready for CSV or JSONL.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_mu2.files import replace_text

from .hygiene import is_chinese
from .labels import LABELS, VERSION, Uncertain, find_labels, label_report, label_reports
from .rows import read_rows

logger = logging.getLogger(__name__)

_TEXT = ("report_text", "report", "text", "reference", "candidate", "findings", "Findings_EN")
_ID = ("study_id", "AccessionNo", "VolumeName", "id")


def read_reports(
    path: str | Path, *, text_column: str | None = None
) -> tuple[list[str], list[str], list[Mapping[str, Any]]]:
    """Read ids, texts and whole rows of the reports of a file; an absent text is `""`.

    Args:
        path (`str | Path`): A .txt with one report, or a table with one row per report.
        text_column (`str`, *optional*): Column of the text; else the first known one: report_text, report, text,
            reference, candidate, findings, Findings_EN.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        try:
            return [path.stem], [path.read_text(encoding="utf-8-sig")], [{}]
        except UnicodeDecodeError as error:
            raise ValueError(f"A report must be in UTF-8, `{path.name}` is not. Convert it.") from error
    rows = read_rows(path)
    columns = list(rows[0]) if rows else []
    text_column = text_column or next((name for name in _TEXT if name in columns), None)
    if text_column not in columns:
        raise ValueError(
            f"A table of reports needs a column with their text, got {', '.join(columns) or 'no rows'} in "
            f"`{path.name}`. Name it with `text_column` (--text-column)."
        )
    id_column = next((name for name in _ID if name in columns), None)
    ids = [str(row.get(id_column) or number) if id_column else str(number) for number, row in enumerate(rows)]
    return ids, [str(row.get(text_column) or "") for row in rows], rows


def label_file(
    path: str | Path,
    *,
    text_column: str | None = None,
    uncertain: Uncertain = "positive",
    evidence: bool = False,
) -> list[dict[str, Any]]:
    """Label every report of a file.

    Returns:
        `list[dict]`: `study_id`, `labels` (1, 0 or `None` per label), `labeler`, and with `evidence` the mentions:
        `label`, `status`, `start`, `end` and `text`.
    """
    ids, texts, _ = read_reports(path, text_column=text_column)
    if num_chinese := sum(map(is_chinese, texts)):
        logger.warning(
            "%d of %d reports are in Chinese, which the rules do not read: their zeros mean nothing. Leave them out.",
            *(num_chinese, len(texts)),
        )
    if uncertain == "ignore":
        labels = [label_report(text, uncertain=uncertain) for text in texts]
    else:
        labels = [
            dict(zip(LABELS, row, strict=True)) for row in label_reports(texts, uncertain=uncertain).tolist()
        ]
    records = []
    for study_id, text, found in zip(ids, texts, labels, strict=True):
        record: dict[str, Any] = {"study_id": study_id, "labels": found, "labeler": VERSION}
        if evidence:
            record["evidence"] = [
                {
                    "label": mention.label,
                    "status": mention.status,
                    "start": mention.span[0],
                    "end": mention.span[1],
                    "text": mention.text,
                }
                for mention in find_labels(text)
            ]
        records.append(record)
    return records


def write_labels(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write records as .jsonl, or as .csv with one column per label and an empty cell for an unknown one."""
    path = Path(path)
    if path.suffix == ".jsonl":
        replace_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    elif path.suffix == ".csv" and not any("evidence" in record for record in records):
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["study_id", *LABELS])
        writer.writerows([record["study_id"], *record["labels"].values()] for record in records)
        replace_text(path, table.getvalue())
    else:
        raise ValueError(
            f"Labels are written as .csv or .jsonl, with their evidence as .jsonl only, got `{path.name}`. "
            "Choose another name."
        )


def read_given_labels(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Read the 18 columns of 0 and 1 that a person filled.

    Returns:
        `np.ndarray` of shape `(reports, 18)`, int8.
    """
    missing = [label for label in LABELS if not rows or label not in rows[0]]
    if missing:
        raise ValueError(
            f"Validation needs one column of 0 and 1 per label, and there is none for {', '.join(missing)}. "
            "Use a table with all 18 labels, such as CT-RATE's."
        )
    values = [[str(row[label]).strip() for label in LABELS] for row in rows]
    for number, row in enumerate(values):
        wrong = next((value for value in row if value not in ("0", "1", "0.0", "1.0")), None)
        if wrong is not None:
            raise ValueError(f"A label is 0 or 1, got {wrong!r} in row {number}. Fill or drop that row.")
    return np.array([[value[0] == "1" for value in row] for row in values], dtype=np.int8)
