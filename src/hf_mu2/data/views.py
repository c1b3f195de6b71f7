"""From study rows to what trainers read: SFT, preference, impression and question answering.

Each function maps one study row to zero or more training rows, in TRL's conversational format; `view_dataset`
applies one to a whole dataset. Rows keep `study_id`, `patient_id` and `egress`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .prompts import IMPRESSION_INSTRUCTION, report_prompt

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Row = Mapping[str, Any]


def report_text(study: Row, target: str = "report") -> str:
    """Write the wanted sections as one text, `""` where the study has none of them.

    Args:
        target (`str`): `"report"` ("Findings: ...\\nImpression: ..."), `"findings"` or `"impression"` (no heading).
    """
    if target not in ("report", "findings", "impression"):
        raise ValueError(
            f'`target` is "report", "findings" or "impression", got "{target}". Pass one of them.'
        )
    if target != "report":
        return study[target].strip()
    parts = [(name.capitalize(), study[name].strip()) for name in ("findings", "impression")]
    return "\n".join(f"{name}: {text}" for name, text in parts if text)


def sft_rows(study: Row, *, target: str = "report") -> list[dict[str, Any]]:
    """Ask for the report, answer with it. Studies without a volume or without the wanted text give no row."""
    answer = report_text(study, target)
    if not answer or not study["images"]:
        return []
    question = report_prompt(study["study_id"], study["region"], target)
    return [_row(study, question, completion=_says("assistant", answer), images=study["images"])]


def preference_rows(study: Row, *, rejected: str, target: str = "report") -> list[dict[str, Any]]:
    """Prefer the reference over `rejected`. Nothing to prefer, no row."""
    chosen = report_text(study, target)
    if not chosen or not rejected or chosen == rejected or not study["images"]:
        return []
    question = report_prompt(study["study_id"], study["region"], target)
    answers = {"chosen": _says("assistant", chosen), "rejected": _says("assistant", rejected)}
    return [_row(study, question, images=study["images"], **answers)]


def impression_rows(study: Row) -> list[dict[str, Any]]:
    """Derive the impression from the findings, text only (Radiology-Llama2)."""
    findings, impression = study["findings"].strip(), study["impression"].strip()
    if not findings or not impression:
        return []
    question = f"{IMPRESSION_INSTRUCTION}\n\nFindings: {findings}"
    return [_row(study, question, completion=_says("assistant", impression))]


def vqa_rows(study: Row) -> list[dict[str, Any]]:
    """Ask every question of the study; options are lettered, and the answer is the letter and its text."""
    rows = []
    for item in study["questions"] if study["images"] else ():
        question, answer, options = item["question"], item["answer"], list(item["options"] or ())
        if options:
            letters = [chr(ord("A") + index) for index in range(len(options))]
            question += "".join(f"\n{letter}. {option}" for letter, option in zip(letters, options))
            answer = f"{letters[options.index(answer)]}. {answer}"
        row = _row(study, question, completion=_says("assistant", answer), images=study["images"])
        rows.append(row | {"options": options, "kind": item["kind"]})
    return rows


def view_dataset(dataset: Dataset | IterableDataset, view: str, **options: Any) -> Dataset | IterableDataset:
    """Turn a dataset of studies into one of training rows.

    Args:
        view (`str`): `"sft"`, `"impression"` or `"vqa"`. Preference rows need rejected reports: see `preference_rows`.
        options: Options of the view, e.g. `target="findings"`.
    """
    raise NotImplementedError


def _row(study: Row, question: str, **columns: Any) -> dict[str, Any]:
    kept = {name: study[name] for name in ("study_id", "patient_id", "egress")}
    return kept | {"prompt": _says("user", question)} | columns


def _says(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]
