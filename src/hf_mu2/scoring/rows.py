"""Read predictions and references from the files people have, and pair them by study.

Reads: JSONL, JSON (also that of the VLM3D challenge), CSV, Parquet, or rows in memory.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hf_mu2.tables import ENDINGS
from hf_mu2.tables import read_rows as read_table

from .hygiene import clean_candidate, clean_reference, is_chinese, patient_of, study_of
from .labels import LABELS

Section = Literal["both", "findings", "impression"]
Rows = str | Path | Iterable[Mapping[str, Any]]

_STUDY = ("study_id", "AccessionNo", "input_image_name", "VolumeName")
_CANDIDATE = ("candidate", "report", "text")
_REFERENCE = ("reference", "report_text", "report")
_SECTIONS = (("findings", "impression"), ("Findings_EN", "Impressions_EN"))
_IMPRESSION = re.compile(r"\bimpressions?\s*:", re.IGNORECASE)
_FINDINGS = re.compile(r"\bfindings?\s*:", re.IGNORECASE)


@dataclass(frozen=True)
class Report:
    """One text and whose it is; `labels` holds 0, 1 and `nan` where the file had labels, `egress` what it said."""

    study_id: str
    patient_id: str
    text: str
    labels: np.ndarray | None = None
    egress: bool | None = None


@dataclass(frozen=True)
class Pairs:
    """References in order, one candidate each, and what was left out or mended on the way."""

    references: list[Report]
    candidates: list[str]
    statuses: list[str]
    counts: dict[str, int]


def read_rows(source: Rows) -> list[Mapping[str, Any]]:
    """Read a table of reports as rows."""
    if not isinstance(source, str | Path):
        return list(source)
    path = Path(source)
    if path.suffix.lower() == ".json":
        return _read_json(path)
    if not path.name.lower().endswith(ENDINGS):
        raise ValueError(
            f"Reports are read from .json, {', '.join(ENDINGS)}, got `{path.name}`. "
            "Write one row per study with `study_id` and the text."
        )
    csv.field_size_limit(sys.maxsize)
    return list(read_table(path))


def _read_json(path: Path) -> list[Mapping[str, Any]]:
    """Read a list of rows, one row, or what the VLM3D challenge asks for."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # not UTF-8, or not JSON; the decoder's own message may quote the text
        raise ValueError(
            f"A file of reports must be complete JSON in UTF-8, `{path.name}` is "
            f"{'not UTF-8' if isinstance(error, UnicodeDecodeError) else 'damaged'}. Write it again."
        ) from error
    rows = content if isinstance(content, list) else [content]
    for part in rows:
        if isinstance(part, Mapping) and "generated_reports" in part:
            rows = part["generated_reports"]
            break
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(
            f"A file of reports is a list with one object per study, got something else in `{path.name}`. "
            'Write [{"study_id": ..., "candidate": ...}, ...].'
        )
    return rows


def read_references(source: Rows, *, section: Section = "both") -> tuple[list[Report], dict[str, int]]:
    """Read references, one per study: rows that repeat a study's text are one, empty ones are left out.

    Returns:
        the references, and counts: `repeated_references`, `empty_references`, `chinese_references`.
    """
    found: dict[str, Report] = {}
    counts = Counter(repeated_references=0, empty_references=0, chinese_references=0)
    for row in read_rows(source):
        study_id = _study(row)
        text = clean_reference(take_section(_reference_text(row, study_id), section))
        if study_id in found:
            if found[study_id].text != text:
                raise ValueError(
                    f"A study has one reference, got two different texts for `{study_id}`. "
                    "Keep one of them, or give the studies different ids."
                )
            counts["repeated_references"] += 1
            continue
        patient = str(row.get("patient_id") or patient_of(study_id))
        found[study_id] = Report(study_id, patient, text, _labels(row), row.get("egress"))
    references = [report for report in found.values() if report.text]
    counts["empty_references"] = len(found) - len(references)
    counts["chinese_references"] = sum(is_chinese(report.text) for report in references)
    return references, dict(counts)


def read_patients(source: Rows) -> dict[str, str]:
    """Read the patient of every study, from rows with `study_id` and `patient_id`."""
    found = {}
    for row in read_rows(source):
        study_id = _study(row)
        if row.get("patient_id") in (None, ""):
            raise ValueError(
                f"A row must name the patient in `patient_id`, got none for study `{study_id}`. Add the column, or "
                "leave the row out."
            )
        found[study_id] = str(row["patient_id"])
    return found


def pair_reports(predictions: Rows, references: Rows | None = None, *, section: Section = "both") -> Pairs:
    """Pair every reference with the candidate of its study, `""` where the system has none.

    Args:
        predictions (`Rows`): A file, or rows with `study_id` and `candidate`.
        references (`Rows`, *optional*): The same with `reference`; left out, each prediction carries its reference.
        section (`str`): What is compared: `"both"`, `"findings"` or `"impression"`. Of texts with headings the other
            part is cut away, on both sides; texts without headings stay whole.
    """
    rows = read_rows(predictions)
    kept, counts = read_references(rows if references is None else references, section=section)
    if not kept:
        raise ValueError(
            f"Scoring needs references, got {counts['empty_references']} studies and all of them empty. "
            "Check the column of the reference text."
        )
    texts: dict[str, str | None] = {}
    counts |= {"repeated_candidates": 0}
    for row in rows:
        study_id = _study(row)
        if study_id in texts:
            counts["repeated_candidates"] += 1
        else:
            texts[study_id] = _first(row, _CANDIDATE, "a candidate", study_id)
    shared = texts.keys() & {report.study_id for report in kept}
    if not shared:
        raise ValueError(
            "Predictions and references must name the same studies, got none in common: predictions start with "
            f"`{next(iter(texts), 'nothing')}`, references with `{kept[0].study_id}`. Write the same `study_id` "
            "in both."
        )
    cleaned = [clean_candidate(texts.get(report.study_id)) for report in kept]
    candidates = [take_section(text, section) for text, _ in cleaned]
    statuses = [
        status if report.study_id in shared else "missing" for report, (_, status) in zip(kept, cleaned)
    ]
    counts |= {f"{status}_candidates": statuses.count(status) for status in _STATUSES}
    counts["candidates_without_reference"] = len(texts) - len(shared)
    counts["chinese_candidates"] = sum(map(is_chinese, candidates))
    return Pairs(kept, candidates, statuses, counts)


def take_section(text: str | None, section: Section) -> str:
    """Cut a report to its findings or impression; one without headings stays whole."""
    text = text if isinstance(text, str) else ""
    impression = _IMPRESSION.search(text)
    if section == "both" or not (impression or _FINDINGS.search(text)):
        return text
    if section == "impression":
        return text[impression.end() :].strip() if impression else ""
    findings = text[: impression.start()] if impression else text
    return _FINDINGS.sub("", findings, count=1).strip()


_STATUSES = ("missing", "empty", "unclosed_reasoning")


def _study(row: Mapping[str, Any]) -> str:
    for name in _STUDY:
        if row.get(name) not in (None, ""):
            return study_of(row[name])
    raise ValueError(
        f"A row must name its study in one of {_STUDY}, got the columns {sorted(map(str, row))[:12]}. "
        "Add a column `study_id`."
    )


def _first(row: Mapping[str, Any], names: tuple[str, ...], what: str, study_id: str) -> str | None:
    for name in names:
        if name in row:
            return row[name]
    raise ValueError(
        f"A row must hold {what} in one of {names}, got the columns {sorted(map(str, row))[:12]} in study "
        f"`{study_id}`. Rename the column of the text."
    )


def _reference_text(row: Mapping[str, Any], study_id: str) -> str | None:
    for findings, impression in _SECTIONS:
        if findings in row or impression in row:
            parts = {"Findings": row.get(findings), "Impression": row.get(impression)}
            return "\n".join(f"{name}: {text}" for name, text in parts.items() if clean_reference(text))
    return _first(row, _REFERENCE, "a reference", study_id)


def _labels(row: Mapping[str, Any]) -> np.ndarray | None:
    labels = row.get("labels") if isinstance(row.get("labels"), Mapping) else row
    assert labels is not None
    numbers = np.array([_label(labels.get(label)) for label in LABELS])
    odd = ~np.isnan(numbers) & ~np.isin(numbers, (0, 1))
    if odd.any():
        value = numbers[odd][0]
        raise ValueError(
            f"A label is 0, 1 or empty, got {'text' if np.isinf(value) else format(value, 'g')} for "
            f"{LABELS[int(np.argmax(odd))]} in study `{_study(row)}`. Threshold probabilities first."
        )
    return None if np.isnan(numbers).all() else numbers


def _label(value: Any) -> float:
    """Read a cell: `nan` for an empty one, infinity for what is no number."""
    if value in (None, ""):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("inf")
