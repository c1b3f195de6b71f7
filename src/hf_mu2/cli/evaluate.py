"""The command `evaluate`: score predictions, or measure the floors of a corpus."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .shared import AsJson, app, print_json


class Protocol(StrEnum):
    """How words are compared."""

    DEFAULT = "default"
    U2 = "u2"
    COCO = "coco"


class Section(StrEnum):
    """What is compared."""

    BOTH = "both"
    FINDINGS = "findings"
    IMPRESSION = "impression"


@app.command()
def evaluate(
    predictions: Annotated[
        Path | None,
        typer.Argument(
            help="JSONL, CSV, Parquet or VLM3D JSON with `study_id` and `candidate`; none: floors only."
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(help="Reports of the radiologists.", show_default="the predictions carry them"),
    ] = None,
    training_references: Annotated[
        Path | None, typer.Option(help="Reports to build floors and templates from; may be the references.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Predictions of another system, for a paired test.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for JSON, Markdown, picture and local files.")
    ] = None,
    protocol: Annotated[Protocol, typer.Option(help="How words are compared.")] = Protocol.DEFAULT,
    section: Annotated[Section, typer.Option(help="What is compared.")] = Section.BOTH,
    rules_only: Annotated[
        bool, typer.Option("--rules-only", help="Ignore labels that references carry.")
    ] = False,
    macro_all: Annotated[
        bool,
        typer.Option("--macro-all", help="Macro averages over all 18 labels, not only those that occur."),
    ] = False,
    java: Annotated[
        bool, typer.Option("--java", help="coco: tokenize with pycocoevalcap's Java tokenizer.")
    ] = False,
    dataset_id: Annotated[
        str | None, typer.Option(help="Hub id of the references' data set, for `.eval_results`.")
    ] = None,
    published: Annotated[
        list[str] | None,
        typer.Option(help="Block of published numbers to draw, e.g. mu2/ct_rate; repeatable."),
    ] = None,
    title: Annotated[str, typer.Option(help="What was measured.")] = "",
    num_resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of patients.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Decides resamples, the random floor and ties.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score reports against references.

    Text scores, findings read by rules, and what the reports look like, with intervals, floors and signatures. Files
    with report text go to OUT/local_only.
    """
    from hf_mu2.scoring.evaluate import evaluate_reports
    from hf_mu2.scoring.evaluate_report import write_evaluation

    evaluation = evaluate_reports(
        predictions,
        references,
        training_references=training_references,
        compare_with=compare,
        protocol=protocol.value,
        section=section.value,
        use_given_labels=not rules_only,
        macro_over="all" if macro_all else "occurring",
        num_resamples=num_resamples,
        seed=seed,
        java=java,
    )
    if out is not None:
        written = write_evaluation(
            evaluation, out, dataset_id=dataset_id, published=published or (), title=title
        )
    if as_json:
        print_json(evaluation.to_dict())
        return
    typer.echo("\n".join(_lines(evaluation.to_dict())))
    if out is not None:
        typer.echo("\n".join(f"{path}" for path in written))


def _lines(result: dict[str, Any]) -> list[str]:
    columns = {"measured": result["scores"]} | result["floors"]
    columns = {name: column for name, column in columns.items() if column}
    lines = ["".join([f"{'':24}", *(f"{name:>20}" for name in columns)])]
    for metric in next(iter(columns.values())):
        values = (column[metric]["value"] for column in columns.values())
        lines.append(
            "".join([f"{metric:24}", *(f"{'-' if v is None else format(v, '.4f'):>20}" for v in values)])
        )
    return lines
