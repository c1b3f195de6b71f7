"""Write an evaluation: JSON, Markdown, a picture and the Hub's `.eval_results`; texts go to a folder that stays local.

Writes: `evaluation.json`, `evaluation.md`, `evaluation.png`, `.eval_results/hf_mu2.yaml`, and in `local_only/` the
studies with their texts and a page of the worst cases.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_mu2.files import replace_text, replacing

from .evaluate import Evaluation
from .evaluate_figure import draw_evaluation
from .published import published_values

LOCAL_FOLDER = "local_only"
LOCAL_NOTICE = (
    "This folder holds report text and study ids. It was written for this machine only: do not publish it."
)
_HEADLINE = (
    "macro_f1",
    "micro_f1",
    "crg",
    "coverage",
    "rouge1",
    "rougeL",
    "meteor",
    "bleu1",
    "bleu4",
    "chrf",
)
_FLOOR_NAMES = {
    "constant_normal": "constant normal",
    "random": "random report",
    "nearest_by_labels": "nearest by labels",
}


def write_evaluation(
    evaluation: Evaluation,
    folder: str | Path,
    *,
    dataset_id: str | None = None,
    published: Sequence[str] = (),
    title: str = "",
    num_worst: int = 20,
    picture: bool = True,
) -> list[Path]:
    """Write everything about an evaluation to a folder.

    Args:
        evaluation (`Evaluation`): What `evaluate_reports` returned.
        folder (`str` or `Path`): Made if missing.
        dataset_id (`str`, *optional*): Hub id of the data set the references come from; without it no `.eval_results`
            is written, since an entry names its data set.
        published (`Sequence[str]`): Blocks of published numbers to draw, hollow, beside the measured ones.
        title (`str`): What was measured, e.g. the name of the model.
        num_worst (`int`): Studies on the page of worst cases.
        picture (`bool`): Draw `evaluation.png`, which needs matplotlib.

    Returns:
        `list[Path]`: the files written.
    """
    folder = Path(folder)
    result = evaluation.to_dict()
    values = [value for block in published for value in published_values(block)]
    written = [folder / "evaluation.json", folder / "evaluation.md"]
    replace_text(written[0], json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    replace_text(written[1], markdown(result, title=title))
    if picture:
        with replacing(folder / "evaluation.png") as partial:
            draw_evaluation(result, partial, published=values, title=title)
        written.append(folder / "evaluation.png")
    if dataset_id and evaluation.scores:
        written.append(folder / ".eval_results" / "hf_mu2.yaml")
        replace_text(written[-1], eval_results_yaml(result, dataset_id))
    if evaluation.studies:
        local = folder / LOCAL_FOLDER
        replace_text(local / ".gitignore", "*\n")
        replace_text(local / "README.md", LOCAL_NOTICE + "\n")
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation.studies)
        replace_text(local / "studies.jsonl", "".join(lines))
        replace_text(local / "worst.html", worst_cases_html(evaluation.studies, num_worst))
        written += [local / "studies.jsonl", local / "worst.html"]
    return written


def markdown(result: dict[str, Any], *, title: str = "") -> str:
    """Render an evaluation as Markdown, without report text."""
    settings = result["settings"]
    lines = [
        f"# {title or 'Evaluation of reports'}",
        "",
        result["notice"],
        "",
        f"{settings['studies']:,} studies of {settings['patients']:,} patients; protocol `{settings['protocol']}`, "
        f"section `{settings['section']}`; intervals: 95 %, {settings['num_resamples']:,} resamples of patients, seed "
        f"{settings['seed']}; labeler `{settings['labeler']}`, {settings['labels_given']:,} references with given "
        f"labels; floors from {settings['training_studies']:,} training reports.",
        "",
    ]
    columns = {"measured": result["scores"]} if result["scores"] else {}
    columns |= {f"*{name}*": result["floors"][floor] for floor, name in _FLOOR_NAMES.items()}
    lines += _table(
        ["metric", *columns],
        [
            [name, *(_cell(column, name) for column in columns.values())]
            for name in next(column for column in columns.values() if column)
        ],
    )
    if result["comparison"]:
        lines += ["", "## Against the other system", ""]
        lines += _table(
            ["metric", "this", "other", "difference", "p"],
            [
                [
                    name,
                    _number(row["a"]),
                    _number(row["b"]),
                    _interval(row, "difference"),
                    _number(row["p"], 4),
                ]
                for name, row in result["comparison"].items()
            ],
        )
        lines += [
            "",
            "p: paired randomisation test, patients swapped, two-sided, not corrected for the number of metrics.",
        ]
    lines += ["", "## Findings", ""]
    measured = bool(result["scores"])
    head = ["finding", "support", *(["precision", "recall", "F1"] if measured else [])]
    floor_keys = [
        key
        for key in (f"f1_{floor}" for floor in _FLOOR_NAMES)
        if key in next(iter(result["labels"].values()))
    ]
    lines += _table(
        [*head, *(f"*F1 {_FLOOR_NAMES[key.removeprefix('f1_')]}*" for key in floor_keys)],
        [
            [
                label,
                f"{row['support']:,}",
                *(
                    [_number(row["precision"]), _number(row["recall"]), _interval(row, "f1", "f1_")]
                    if measured
                    else []
                ),
                *(_number(row[key]) for key in floor_keys),
            ]
            for label, row in result["labels"].items()
        ],
    )
    if result["degeneracy"]:
        lines += ["", "## What the reports look like", "", *_degeneracy(result["degeneracy"])]
    lines += [
        "",
        "## Texts",
        "",
        *(f"- {name.replace('_', ' ')}: {count:,}" for name, count in result["hygiene"].items()),
    ]
    agreement = settings["labeler_against_given"]
    if agreement:
        lines += [
            "",
            f"Rules against the given labels of {agreement['studies']:,} references: micro-F1 "
            f"{_number(agreement['micro_f1'])}, macro-F1 {_number(agreement['macro_f1'])}.",
        ]
    lines += [
        "",
        "## Signatures",
        "",
        *(f"- `{signature}`" for signature in result["signatures"].values()),
        "",
    ]
    return "\n".join(lines)


def eval_results_yaml(result: dict[str, Any], dataset_id: str) -> str:
    """Render the headline scores as a Hub `.eval_results` file, each with its signature and interval as notes."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    today = datetime.now(UTC).date().isoformat()
    entries = []
    for name in _HEADLINE:
        score = result["scores"].get(name)
        if score and score["value"] is not None:
            notes = result["signatures"][name]
            if score["low"] is not None:
                notes += f" | 95 % interval {score['low']:.4f} to {score['high']:.4f}"
            entries.append(
                EvalResultEntry(
                    dataset_id=dataset_id,
                    task_id=name,
                    value=round(score["value"], 4),
                    date=today,
                    notes=notes,
                )
            )
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def worst_cases_html(studies: Sequence[dict[str, Any]], num_worst: int = 20) -> str:
    """Render the studies whose findings were met worst, both texts side by side with the evidence marked."""
    worst = sorted(
        studies, key=lambda row: (row["scores"]["report_f1"] or 0, row["scores"]["rougeL"], row["study_id"])
    )
    parts = [
        "<!doctype html><meta charset='utf-8'><title>Worst cases</title><style>"
        "body{font:15px/1.5 sans-serif;margin:2em;max-width:80em}p{white-space:pre-wrap}"
        ".pair{display:grid;grid-template-columns:1fr 1fr;gap:2em}h2{border-top:1px solid #ccc;padding-top:1em}"
        ".positive{background:#ffd2c9}.uncertain{background:#ffefb0}.negative{background:#d9ecd9}</style>",
        f"<h1>Worst cases</h1><p>{html.escape(LOCAL_NOTICE)}\nReported findings are marked red, hedged ones yellow, "
        "denied ones green.</p>",
    ]
    for row in worst[:num_worst]:
        parts.append(
            f"<h2>{html.escape(row['study_id'])}</h2>label F1 {_number(row['scores']['report_f1'])}, ROUGE-L "
            f"{_number(row['scores']['rougeL'])}<br>missed: {html.escape(', '.join(row['missed']) or '-')}<br>"
            f"invented: {html.escape(', '.join(row['invented']) or '-')}<div class='pair'>"
        )
        for side in ("reference", "candidate"):
            text = _marked(row[side], row[f"{side}_evidence"])
            parts.append(f"<div><h3>{side}</h3><p>{text}</p></div>")
        parts.append("</div>")
    return "\n".join(parts)


def _marked(text: str, evidence: Sequence[dict[str, Any]]) -> str:
    marked, place = [], 0
    for item in sorted(evidence, key=lambda item: item["span"]):
        start, end = item["span"]
        if start < place:
            continue
        title = html.escape(f"{item['label']}: {item['status']}", quote=True)
        marked += [
            html.escape(text[place:start]),
            f"<mark class='{item['status']}' title='{title}'>{html.escape(text[start:end])}</mark>",
        ]
        place = end
    return "".join([*marked, html.escape(text[place:])])


def _degeneracy(found: dict[str, Any]) -> list[str]:
    names = ("unique_share", "most_repeated", "mean_words", "all_normal_share", "template_share")
    rows = [
        [name.replace("_", " "), *(_number(found[side][name]) for side in ("candidate", "reference"))]
        for name in names
    ]
    lines = _table(["", "candidates", "references"], rows)
    lines += ["", f"Candidate words per reference word: {_number(found['length_ratio']['candidate'])}."]
    if found["remainder"]:
        scores = ", ".join(
            f"{name} {_number(value)}" for name, value in found["remainder"].items() if name != "studies"
        )
        lines.append(
            "Without sentences that at least 1 % of the training reports hold "
            f"({found['remainder']['studies']:,} studies): {scores}."
        )
    if found["shuffled"]:
        gap = found["shuffled"]
        lines.append(
            f"Macro-F1 {_number(gap['macro_f1'])}; dealt to other studies {_number(gap['floor'])}; gap "
            f"{_number(gap['gap'])} [{_number(gap['low'])}, {_number(gap['high'])}]."
        )
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _cell(column: dict[str, Any] | None, name: str) -> str:
    return "not run" if column is None else _interval(column[name], "value")


def _interval(score: dict[str, Any], key: str, prefix: str = "") -> str:
    low, high = score[f"{prefix}low"], score[f"{prefix}high"]
    spread = "" if low is None or high is None else f" [{_number(low)}, {_number(high)}]"
    return _number(score[key]) + spread


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"
