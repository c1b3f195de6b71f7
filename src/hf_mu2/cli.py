"""The command line, `hf-mu2`. Exit codes: 0 done, 1 failed, 2 bad input. Results on stdout, the rest on stderr.

Heavy imports live inside the commands, so that `hf-mu2 --help` stays as quick as importing the package.
"""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="hf-mu2",
    help="Reports from CT volumes. Research software, not a medical device.",
    epilog="Exit codes: 0 done, 1 failed, 2 bad input. HF_MU2_TRACEBACK=1 shows where an error came from.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Model = Annotated[
    str | None, typer.Option(help="Checkpoint folder or Hub id.", show_default="the embedded demo checkpoint")
]
Question = Annotated[
    str | None, typer.Option(help="What to ask of the volume.", show_default="write the report")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Studies generated together.")]
Split = Annotated[str | None, typer.Option(help="Split of the dataset, where it has several.")]
SpacingMm = tuple[float, float, float]


class View(StrEnum):
    """The training views a phantom folder can be written in."""

    SFT = "sft"
    PREFERENCE = "preference"


class Difficulty(StrEnum):
    """How hard the findings of a phantom are to see."""

    STANDARD = "standard"
    EASY = "easy"


@app.command()
def info(as_json: AsJson = False) -> None:
    """Show versions, devices and extras.

    Names the embedded checkpoint too.
    """
    from hf_mu2.reporting.environment import describe_environment

    facts = describe_environment()
    if as_json:
        _print_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            for key, item in value.items():
                typer.echo(f"  {key:<18}{_brief(item)}")
        else:
            typer.echo(f"{name + ':':<20}{_brief(value)}")


@app.command()
def init(
    language_model: Annotated[str, typer.Argument(help="Causal language model: Hub id or folder.")],
    output: Annotated[Path, typer.Argument(help="Folder of the new checkpoint.")],
    preset: Annotated[str, typer.Option(help="mu2-1b, mu2-1b-paper, official or tiny.")] = "mu2-1b",
    vision_tower: Annotated[
        str | None,
        typer.Option(help="M3D-CLIP or a saved tower: file, folder or Hub id.", show_default="fresh"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the fresh weights.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Assemble a starting checkpoint.

    From any causal language model and a vision tower, ready to train.
    """
    from hf_mu2.hub.assemble import assemble

    assemble(language_model, output, preset=preset, vision_tower=vision_tower, seed=seed)
    _print_result({"checkpoint": str(output)}, f"Checkpoint: {output}", as_json)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Weights file, its folder, or a Hub id.")],
    output: Annotated[Path, typer.Argument(help="Folder of the converted checkpoint.")],
    config: Annotated[
        Path | None, typer.Option(help="Published config.json, where it is not beside the weights.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokenizer: folder or Hub id.", show_default="the one beside the weights"),
    ] = None,
    language_model: Annotated[
        str | None, typer.Option(help="Base language model, for weights without config.json.")
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="Alpha of a LoRA dump.", show_default="its config's")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert official weights.

    An official mu2 checkpoint or an M3D-CLIP vision tower, every key accounted for. Prints what was detected.
    """
    from hf_mu2.hub.convert import convert_checkpoint

    convert_checkpoint(
        source,
        output,
        config=config,
        tokenizer=tokenizer,
        language_model=language_model,
        lora_alpha=lora_alpha,
    )
    detected = json.loads((output / "config.json").read_text(encoding="utf-8"))["conversion"]
    lines = [f"{name}: {_brief(value)}" for name, value in detected.items() if value not in (None, [])]
    _print_result(
        {"checkpoint": str(output), "detected": detected},
        "\n".join([*lines, f"Checkpoint: {output}"]),
        as_json,
    )


@app.command()
def phantom(
    out: Annotated[Path, typer.Option(help="Folder to write; masks of the findings go to <out>_masks.")],
    n: Annotated[int, typer.Option(min=1, help="Number of studies.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    view: Annotated[View, typer.Option(help="Columns for SFT or for preference training.")] = View.SFT,
    split: Annotated[str, typer.Option(help="Name of the split.")] = "train",
    spacing: Annotated[
        SpacingMm | None,
        typer.Option(metavar="Z Y X", help="Millimetres per voxel.", show_default="drawn per study"),
    ] = None,
    difficulty: Annotated[
        Difficulty, typer.Option(help="easy: larger findings, no artefacts.")
    ] = Difficulty.STANDARD,
    num_workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Write synthetic chest CT with reports.

    As a folder that `load_dataset` and TRL open; the masks of the findings lie beside it, in <out>_masks.
    """
    from hf_mu2.data.phantom import write_phantoms

    folder = write_phantoms(
        out,
        n,
        seed,
        view=view.value,
        spacing=spacing,
        difficulty=difficulty.value,
        split=split,
        num_workers=num_workers,
    )
    _print_result({"dataset": str(folder), "num_studies": n}, f"{n} synthetic studies: {folder}", as_json)


@app.command()
def report(
    volume: Annotated[Path, typer.Argument(help="NIfTI file, DICOM folder or zip, or a folder of these.")],
    question: Question = None,
    indication: Annotated[str | None, typer.Option(help="Why the study was done.")] = None,
    technique: Annotated[str | None, typer.Option(help="How it was acquired.")] = None,
    prior_report: Annotated[
        Path | None, typer.Option(help="Text file with an earlier report.", exists=True, dir_okay=False)
    ] = None,
    series: Annotated[str | None, typer.Option(help="Which DICOM series, where there are several.")] = None,
    channel: Annotated[int | None, typer.Option(min=0, help="Which volume of a 4-D file.")] = None,
    spacing: Annotated[
        SpacingMm | None,
        typer.Option(metavar="Z Y X", help="Millimetres per voxel, where the header is blank or wrong."),
    ] = None,
    orientation: Annotated[
        str | None, typer.Option(help="Where the stored axes point, e.g. LPS, where the header is blank.")
    ] = None,
    model: Model = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write report.txt, montage.png and run.json here.")
    ] = None,
    max_new_tokens: MaxNewTokens = 512,
    as_json: AsJson = False,
) -> None:
    """Write the report of a volume or folder.

    On stdout; with --out also as files, with a picture and the record of the run.
    """
    from hf_mu2.reporting.inference import load_reader
    from hf_mu2.reporting.report import Request, find_volumes, name_of, report_volume, write_report

    volumes = find_volumes(volume)
    prior_text = None if prior_report is None else prior_report.read_text(encoding="utf-8").strip()
    request = Request(
        question=question,
        indication=indication,
        technique=technique,
        prior_report=prior_text,
        series=series,
        channel=channel,
        spacing=spacing,
        orientation=orientation,
        max_new_tokens=max_new_tokens,
    )
    reader = load_reader(model)
    num_refused = 0
    for path in volumes:
        try:
            result = report_volume(path, reader, request)
        except ValueError as error:
            if len(volumes) == 1:
                raise
            num_refused += 1
            _complain(f"{path.name}: {error}")
            continue
        for message in result.warnings:
            _complain(f"Warning: {message}")
        folder = out if len(volumes) == 1 or out is None else out / name_of(path)
        files = {} if folder is None else write_report(result, folder)
        if as_json:
            places = {"files": {name: str(file) for name, file in files.items()}} if files else {}
            typer.echo(json.dumps(result.to_dict() | places, ensure_ascii=False))
            continue
        heading = f"== {name_of(path)}\n" if len(volumes) > 1 else ""
        picture = f"\n\nPicture: {files['montage']}" if files else ""
        typer.echo(f"{result.notice}\n{heading}\n{result.text}{picture}")
    if num_refused:
        raise ValueError(
            f"{num_refused} of {len(volumes)} volumes in `{volume}` were refused; see above for why."
        )


@app.command()
def predict(
    dataset: Annotated[Path, typer.Argument(help="Folder that load_dataset opens, or a folder of volumes.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write; a killed run continues where it was.")],
    model: Model = None,
    question: Annotated[
        str | None, typer.Option(help="Ask this of every study.", show_default="the dataset's own prompt")
    ] = None,
    split: Split = None,
    batch_size: BatchSize = 4,
    max_new_tokens: MaxNewTokens = 512,
    as_json: AsJson = False,
) -> None:
    """Generate a report for every study.

    Greedy, batched and resumable. On several processes: accelerate launch -m hf_mu2.cli predict ...
    """
    from hf_mu2.reporting.inference import load_reader, process_state
    from hf_mu2.reporting.predict import predict as run_predict
    from hf_mu2.reporting.studies import open_studies

    state = process_state()
    studies, reader = open_studies(dataset, split), load_reader(model, state.device)
    result = run_predict(
        studies,
        out,
        reader,
        question=question,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        show_progress=sys.stderr.isatty(),
    )
    if state.is_main_process:
        for message in reader.caveats:
            _complain(f"Warning: {message}")
        facts = {"out": str(result.out), "manifest": str(result.manifest), "num_studies": result.num_studies}
        _print_result(facts, f"{result.num_studies} reports: {result.out}", as_json)
        _refuse_failed(result.failed)


@app.command()
def embed(
    dataset: Annotated[Path, typer.Argument(help="Folder that load_dataset opens, or a folder of volumes.")],
    out: Annotated[Path, typer.Option(help="Table to write, .npz or .parquet.")],
    model: Model = None,
    question: Question = None,
    split: Split = None,
    batch_size: BatchSize = 4,
    as_json: AsJson = False,
) -> None:
    """Write one vector per study.

    The mean of its visual tokens under the question.
    """
    from hf_mu2.reporting.embed import embed as run_embed
    from hf_mu2.reporting.inference import load_reader
    from hf_mu2.reporting.studies import open_studies

    studies = open_studies(dataset, split)
    failed = run_embed(
        studies,
        out,
        load_reader(model),
        question=question,
        batch_size=batch_size,
        show_progress=sys.stderr.isatty(),
    )
    num_studies = len(studies.ids) - len(failed)
    _print_result({"out": str(out), "num_studies": num_studies}, f"{num_studies} embeddings: {out}", as_json)
    _refuse_failed(failed)


def main() -> None:
    """Run the command line; bad input ends in one paragraph on stderr and exit code 2."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("HF_MU2_TRACEBACK"):
            raise
        _complain(f"Error: {error}")
        sys.exit(2 if _is_bad_input(error) else 1)


def _is_bad_input(error: Exception) -> bool:
    """Tell what the caller can mend from what the machine refuses, such as a full disk or a missing package."""
    # transformers raises a bare OSError, without errno, for a checkpoint that does not exist.
    is_path = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError)
    return isinstance(error, ValueError) or is_path or (isinstance(error, OSError) and error.errno is None)


def _refuse_failed(failed: dict[str, str]) -> None:
    for study_id, reason in failed.items():
        _complain(f"{study_id}: {reason}")
    if failed:
        raise ValueError(f"{len(failed)} studies were refused and left out; see above for why.")


def _print_result(facts: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        _print_json(facts)
    else:
        typer.echo(line)


def _print_json(facts: dict[str, Any]) -> None:
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))


def _brief(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _complain(message: str) -> None:
    typer.echo(message, err=True)


if __name__ == "__main__":
    main()
