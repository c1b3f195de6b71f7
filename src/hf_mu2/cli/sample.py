"""Commands from a model to scored candidates: sample, score."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, BatchSize, MaxNewTokens, Model, Split, app, complain, print_result, refuse_failed


@app.command()
def sample(
    dataset: Annotated[Path, typer.Argument(help="Folder that load_dataset opens, or a folder of volumes.")],
    out: Annotated[
        Path, typer.Option(help="File to write, .jsonl or .parquet; a killed run continues where it was.")
    ],
    model: Model = None,
    num_candidates: Annotated[int, typer.Option(min=1, help="Candidates per study.")] = 8,
    temperature: Annotated[float, typer.Option(help="1 leaves the model's distribution as it is.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens with this share.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Another seed, other candidates.")] = 0,
    question: Annotated[
        str | None, typer.Option(help="Ask this of every study.", show_default="the dataset's own prompt")
    ] = None,
    split: Split = None,
    batch_size: BatchSize = 4,
    max_new_tokens: MaxNewTokens = 512,
    as_json: AsJson = False,
) -> None:
    """Sample several candidate reports per study.

    Each volume is encoded once. On several processes: accelerate launch -m hf_mu2.cli sample ...
    """
    from hf_mu2.preference.sample import sample as run_sample
    from hf_mu2.reporting.inference import load_reader, process_state
    from hf_mu2.reporting.studies import open_studies

    state = process_state()
    studies, reader = open_studies(dataset, split), load_reader(model, state.device)
    result = run_sample(
        studies,
        out,
        reader,
        num_candidates=num_candidates,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        question=question,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        show_progress=sys.stderr.isatty(),
    )
    if state.is_main_process:
        for message in reader.caveats:
            complain(f"Warning: {message}")
        facts = {"out": str(result.out), "manifest": str(result.manifest), "num_studies": result.num_studies}
        line = f"{num_candidates} candidates for each of {result.num_studies} studies: {result.out}"
        print_result(facts, line, as_json)
        refuse_failed(result.failed)
