"""Commands about the confidence of sentences: collect, fit, measure."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, MaxNewTokens, Model, Split, app, print_result, refuse_failed

confidence_app = typer.Typer(help="How sure to be of each sentence.", no_args_is_help=True)
app.add_typer(confidence_app, name="confidence")

Sentences = Annotated[Path, typer.Argument(help="File that `confidence collect` wrote.")]


@confidence_app.command()
def collect(
    dataset: Annotated[Path, typer.Argument(help="Folder that load_dataset opens, or a folder of volumes.")],
    references: Annotated[Path, typer.Option(help="Reports of the studies: JSONL, CSV or Parquet.")],
    out: Annotated[
        Path, typer.Option(help="JSONL or Parquet to write; a killed run continues where it was.")
    ],
    model: Model = None,
    split: Split = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Reports sampled per study for the agreement.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the sampled reports.")] = 0,
    max_new_tokens: MaxNewTokens = 512,
    as_json: AsJson = False,
) -> None:
    """Write every sentence of every report, and whether it is right."""
    from hf_mu2.explain.confidence_runs import collect_sentences
    from hf_mu2.reporting.inference import load_reader, process_state
    from hf_mu2.reporting.studies import open_studies

    state = process_state()
    result = collect_sentences(
        open_studies(dataset, split),
        references,
        out,
        load_reader(model, state.device),
        num_samples=num_samples,
        seed=seed,
        max_new_tokens=max_new_tokens,
        show_progress=sys.stderr.isatty(),
    )
    if state.is_main_process:
        facts = {"out": str(result.out), "manifest": str(result.manifest), "num_studies": result.num_studies}
        print_result(facts, f"Sentences of {result.num_studies} studies: {result.out}", as_json)
        refuse_failed(result.failed)


@confidence_app.command()
def fit(
    sentences: Sentences,
    out: Annotated[
        Path, typer.Option(help="Calibration to write; `confidence.json` in a checkpoint is found there.")
    ],
    as_json: AsJson = False,
) -> None:
    """Fit a calibration, on validation studies."""
    from hf_mu2.explain.confidence_runs import fit_calibration

    calibration = fit_calibration(sentences)
    calibration.save(out)
    facts = {"out": str(out), **calibration.fitted_on}
    line = f"Fitted on {facts['sentences']} sentences of {facts['studies']} studies: {out}"
    print_result(facts, line, as_json)


@confidence_app.command()
def measure(
    sentences: Sentences,
    calibration: Annotated[Path, typer.Option(help="Calibration to measure, fitted on other studies.")],
    out: Annotated[Path, typer.Option(help="Folder for the numbers and the reliability diagram.")],
    as_json: AsJson = False,
) -> None:
    """Measure a calibration on test studies.

    Does it separate right from wrong, and is it honest?
    """
    from hf_mu2.explain.confidence import load_calibration
    from hf_mu2.explain.confidence_runs import measure_calibration, write_measured

    measured = measure_calibration(sentences, load_calibration(calibration))
    files = write_measured(measured, out)
    auroc, ece = measured["auroc"]["all"]["confidence"], measured["ece"]
    line = (
        f"{measured['sentences']} sentences, {measured['share_right']:.1%} right: "
        f"AUROC {auroc['value']:.3f} ({auroc['low']:.3f}-{auroc['high']:.3f}), "
        f"ECE {ece['value']:.3f} ({ece['low']:.3f}-{ece['high']:.3f})\n{files['figure']}"
    )
    print_result(measured | {"files": {name: str(path) for name, path in files.items()}}, line, as_json)
