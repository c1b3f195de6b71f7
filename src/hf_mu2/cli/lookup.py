"""The command `lookup`: answer studies with training reports, the bar that a report generator has to beat."""

from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, app, complain, print_result


@app.command()
def lookup(
    embeddings: Annotated[
        Path, typer.Argument(help="Studies to answer: .npz or .parquet of `hf-mu2 embed --layer tower`.")
    ],
    training_embeddings: Annotated[Path, typer.Option(help="The training studies, embedded alike.")],
    training_references: Annotated[
        Path,
        typer.Option(help="Their reports, as `evaluate` reads them, and where known patients and labels."),
    ],
    out: Annotated[
        Path, typer.Option(help="Predictions to write, .jsonl or .parquet, for `hf-mu2 evaluate`.")
    ],
    patients: Annotated[
        Path | None,
        typer.Option(
            help="Table of `study_id` and `patient_id` of the studies to answer.",
            show_default="as CT-RATE's names tell",
        ),
    ] = None,
    rules_only: Annotated[
        bool, typer.Option("--rules-only", help="Ignore labels that references carry.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Decides the folds of the probe and ties.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Answer studies with the nearest training report.

    By the findings that a linear probe on frozen features predicts; never a report of the same patient.
    """
    from hf_mu2.data.embeddings import check_comparable, read_embedding_table
    from hf_mu2.scoring.lookup import answer_by_lookup
    from hf_mu2.tables import write_rows

    if out.suffix not in (".jsonl", ".parquet"):
        raise ValueError(
            f"Predictions are written as .jsonl or .parquet, got `{out}`. Choose one of the two."
        )
    asked, training = read_embedding_table(embeddings), read_embedding_table(training_embeddings)
    check_comparable(asked, training)
    rows, facts = answer_by_lookup(
        asked.study_ids,
        asked.vectors,
        training.study_ids,
        training.vectors,
        training_references,
        patients=patients,
        use_given_labels=not rules_only,
        seed=seed,
    )
    write_rows(out, rows)
    for name, what in _LEFT_OUT.items():
        if facts[name]:
            complain(f"Warning: {facts[name]} {what}")
    if not facts["labels_predicted"]:
        complain(
            "Warning: the probe predicts no finding better than its base rate: every study asks for the same labels."
        )
    line = (
        f"{facts['studies']} reports of {facts['training_studies']} training studies, by {facts['labels_predicted']} "
        f"predicted findings: {out}"
    )
    print_result({"out": str(out)} | facts, line, as_json)


_LEFT_OUT = {
    "references_without_vector": "training reports have no embedding and are left out.",
    "vectors_without_reference": "training embeddings have no report and are left out.",
    "studies_of_training_patients": "studies to answer are of training patients: the probe has seen these patients.",
}
