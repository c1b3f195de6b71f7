"""From study rows to what trainers read: SFT, preference, online, impression and question answering.

Each function maps one study row to zero or more training rows, in TRL's conversational format; `view_dataset`
applies one to a whole dataset. Rows keep `study_id`, `patient_id` and `egress`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from .prompts import IMPRESSION_INSTRUCTION, report_prompt

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict

Row = Mapping[str, Any]
logger = logging.getLogger(__name__)


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


def online_rows(study: Row, *, target: str = "report") -> list[dict[str, Any]]:
    """Ask for the report; the radiologist's stands beside it as `reference`, for rewards (GRPO, RLOO)."""
    reference = report_text(study, target)
    if not reference or not study["images"]:
        return []
    question = report_prompt(study["study_id"], study["region"], target)
    return [_row(study, question, reference=reference, images=study["images"])]


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


def view_dataset(
    dataset: Dataset | IterableDataset | DatasetDict | IterableDatasetDict, view: str, **options: Any
) -> Dataset | IterableDataset | DatasetDict | IterableDatasetDict:
    """Turn a dataset of studies into one of training rows.

    `images` keeps its type: what was opened lazily stays lazy, and no volume is touched here. A study becomes its rows
    where it stands, so nobody changes splits.

    Args:
        view (`str`): `"sft"`, `"online"`, `"impression"` or `"vqa"`. Preference rows need rejected reports: see
            `preference_rows`.
        options: Options of the view, e.g. `target="findings"`.

    Raises:
        ValueError: for an unknown view or option, for a dataset that is not one of studies, or if no row is left.
    """
    if not isinstance(dataset, dict):
        rows = _view(dataset, view, options)
        _refuse_empty({view: rows}, view)
        return rows
    viewed = {split: _view(part, view, options) for split, part in dataset.items()}
    _refuse_empty(viewed, view)
    filled = {split: rows for split, rows in viewed.items() if _may_have_rows(rows)}
    if len(filled) < len(viewed):
        logger.warning(
            "The view %s has no rows of %s: left out.", view, ", ".join(sorted(set(viewed) - set(filled)))
        )
    return type(dataset)(filled)


def view_function(view: str, **options: Any) -> Callable[..., list[dict[str, Any]]]:
    """Return the function behind a view's name, refusing options it does not have."""
    if view not in _VIEWS:
        raise ValueError(f"A view is one of {', '.join(_VIEWS)}, got `{view}`. Pass one of them.")
    known = list(signature(_VIEWS[view]).parameters)[1:]
    if set(options) - set(known):
        raise ValueError(
            f"Options of the view `{view}` are {known or 'none'}, got {sorted(set(options) - set(known))}. "
            "Check the spelling."
        )
    return _VIEWS[view]


def view_features(view: str, images: Any) -> Features:
    """Return the columns of a view, with `images` of the given type where it has volumes."""
    from datasets import Features, List, Value

    text = Value("string")
    messages = List({"role": text, "content": text})
    columns = {
        "study_id": text,
        "patient_id": text,
        "egress": Value("bool"),
        "prompt": messages,
        **({"reference": text} if view == "online" else {"completion": messages}),
    }
    if view != "impression":
        columns["images"] = images
    if view == "vqa":
        columns |= {"options": List(text), "kind": text}
    return Features(columns)


def _view(
    dataset: Dataset | IterableDataset, view: str, options: Mapping[str, Any]
) -> Dataset | IterableDataset:
    from datasets import IterableDataset, List, Nifti

    columns = dataset.features or {}
    if "images" not in columns or "egress" not in columns:
        raise ValueError(
            f"A view starts from studies, got a dataset with the columns {list(columns)}. Open one with `load_corpus`."
        )
    features = view_features(view, columns["images"])
    # Paths, not nibabel objects: opening thousands of headers only to write their names again takes minutes.
    entries = columns["images"].feature
    stored = List(Nifti(decode=False)) if isinstance(entries, Nifti) else columns["images"]
    arguments = {
        "batched": True,
        "batch_size": 64,
        "remove_columns": list(columns),
        "fn_kwargs": {
            "make_rows": view_function(view, **options),
            "names": list(features),
            "options": options,
        },
    }
    studies = dataset.cast_column("images", stored)
    if isinstance(studies, IterableDataset):
        return studies.map(_view_batch, **arguments).cast(features)
    return studies.map(_view_batch, features=features, desc=f"view {view}", **arguments)


def _may_have_rows(rows: Dataset | IterableDataset) -> bool:
    from datasets import Dataset

    return not isinstance(rows, Dataset) or len(rows) > 0


def _refuse_empty(viewed: Mapping[str, Dataset | IterableDataset], view: str) -> None:
    if not any(map(_may_have_rows, viewed.values())):
        raise ValueError(
            f"The view `{view}` needs studies that have what it asks for, and none has. `hf-mu2 data inspect` counts "
            "texts, questions and volumes."
        )


def _view_batch(
    batch: Mapping[str, list[Any]],
    *,
    make_rows: Callable[..., list[dict[str, Any]]],
    names: list[str],
    options: Mapping[str, Any],
) -> dict[str, list[Any]]:
    studies = [dict(zip(batch, values)) for values in zip(*batch.values())]
    rows = [row for study in studies for row in make_rows(study, **options)]
    return {name: [row[name] for row in rows] for name in names}


def _row(study: Row, question: str, **columns: Any) -> dict[str, Any]:
    kept = {name: study[name] for name in ("study_id", "patient_id", "egress")}
    return kept | {"prompt": _says("user", question)} | columns


def _says(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


_VIEWS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "sft": sft_rows,
    "online": online_rows,
    "impression": impression_rows,
    "vqa": vqa_rows,
}
