"""Commands about the finding labeler: run it on reports, validate it against labels given by a person."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .shared import AsJson, app, print_json, print_result

labels_app = typer.Typer(
    name="labels", help="The 18 CT-RATE findings of a report, read by rules.", no_args_is_help=True
)
app.add_typer(labels_app)

TextColumn = Annotated[
    str | None, typer.Option(help="Column of the text.", show_default="report_text, report, text, ...")
]


class Uncertain(StrEnum):
    """What a finding becomes that a report only hedges."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    IGNORE = "ignore"


@labels_app.command()
def run(
    reports: Annotated[Path, typer.Argument(help="Reports: .csv, .jsonl, .json, .parquet, or one as .txt.")],
    text_column: TextColumn = None,
    out: Annotated[Path | None, typer.Option(help="Write .csv or .jsonl instead of printing.")] = None,
    evidence: Annotated[bool, typer.Option(help="Add the words that were read.")] = False,
    uncertain: Annotated[Uncertain, typer.Option(help="What a hedged finding becomes.")] = Uncertain.POSITIVE,
    as_json: AsJson = False,
) -> None:
    """Label reports; English chest CT only."""
    from hf_mu2.scoring.label_files import label_file, write_labels

    records = label_file(reports, text_column=text_column, uncertain=uncertain.value, evidence=evidence)
    if out is not None:
        write_labels(records, out)
        labeler = records[0]["labeler"] if records else None
        print_result(
            {"reports": len(records), "labeler": labeler, "out": str(out)},
            f"{len(records)} reports labelled: {out}",
            as_json,
        )
        return
    for record in records:
        typer.echo(json.dumps(record, ensure_ascii=False) if as_json else _lines(record))


@labels_app.command()
def validate(
    table: Annotated[Path, typer.Argument(help="Reports with one column of 0 and 1 per label.")],
    text_column: TextColumn = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds to report apart.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Measure the labeler against labels given by a person."""
    from hf_mu2.scoring.label_files import read_given_labels, read_reports
    from hf_mu2.scoring.label_validation import validate_labels

    _, texts, rows = read_reports(table, text_column=text_column)
    result = validate_labels(texts, read_given_labels(rows), folds=folds)
    if as_json:
        print_json(result)
    else:
        typer.echo(_table(result))


def _lines(record: dict[str, Any]) -> str:
    found = [
        label if value else f"{label} (uncertain)" for label, value in record["labels"].items() if value != 0
    ]
    lines = [f"{record['study_id']}: {', '.join(found) or 'none of the 18 findings'}"]
    for mention in record.get("evidence", ()):
        lines.append(f'  {mention["status"]:9} {mention["label"]}: "{mention["text"]}"')
    return "\n".join(lines)


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'label':35} precision  recall      F1  support"]
    for label, row in result["labels"].items():
        lines.append(
            f"{label:35} {row['precision']:9.3f} {row['recall']:7.3f} {row['f1']:7.3f} {row['support']:8}"
        )
    cross = result["cross_validated"]
    lines += [
        "",
        f"{result['labeler']} on {result['reports']} reports, 95 % intervals over reports",
        _scores("all rules", result["micro"]["f1"], result["macro_f1"], result["intervals"]),
        _scores("cross-validated wordings", cross["micro_f1"], cross["macro_f1"], cross["intervals"]),
    ]
    for number, fold in enumerate(result["folds"], start=1):
        name = f"fold {number} ({fold['reports']} reports)"
        lines.append(f"{name:26} micro-F1 {fold['micro_f1']:.4f}, macro-F1 {fold['macro_f1']:.4f}")
    return "\n".join(lines)


def _scores(name: str, micro: float, macro: float, intervals: dict[str, tuple[float, float]]) -> str:
    (micro_low, micro_high), (macro_low, macro_high) = intervals["micro_f1"], intervals["macro_f1"]
    return (
        f"{name:26} micro-F1 {micro:.4f} [{micro_low:.4f}, {micro_high:.4f}], "
        f"macro-F1 {macro:.4f} [{macro_low:.4f}, {macro_high:.4f}]"
    )
