"""Commands that read volumes with a model: report, predict, embed."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared import (
    AsJson,
    BatchSize,
    MaxNewTokens,
    Model,
    Question,
    SpacingMm,
    Split,
    app,
    complain,
    print_result,
    refuse_failed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from hf_mu2.explain.evidence import Explanation
    from hf_mu2.reporting.inference import Reader
    from hf_mu2.reporting.report import Report


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
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="Also write pdf, dicom-sr, dicom-pdf, fhir-r4 or fhir-r5 to --out; may be repeated."
        ),
    ] = None,
    font: Annotated[Path | None, typer.Option(help="TrueType font for letters the PDF's own lacks.")] = None,
    allow_demo: Annotated[
        bool, typer.Option("--allow-demo", help="Clinical formats of a model that knows synthetic CT only.")
    ] = False,
    impression_model: Annotated[
        str | None,
        typer.Option(help="Language model or adapter that derives the impression from the findings."),
    ] = None,
    confidence: Annotated[
        bool,
        typer.Option("--confidence", help="Also say how sure to be of each sentence, and where it looks."),
    ] = False,
    calibration: Annotated[
        Path | None, typer.Option(help="Of the confidence.", show_default="that of the checkpoint")
    ] = None,
    max_new_tokens: MaxNewTokens = 512,
    as_json: AsJson = False,
) -> None:
    """Write the report of a volume or folder.

    On stdout; with --out also as files, with a picture and the record of the run.
    """
    from hf_mu2.files import replace_file
    from hf_mu2.reporting.formats import check_formats, write_formats
    from hf_mu2.reporting.inference import load_reader, to_json
    from hf_mu2.reporting.report import Request, find_volumes, name_of, report_volume, write_report

    check_formats(also or [])
    if also and out is None:
        raise ValueError(
            f"Formats are written to a folder, got `--also {also[0]}` without one. Add `--out DIR`."
        )

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
    follow = None if impression_model is None else _impression_writer(impression_model)
    assess = _sentence_assessor(reader, calibration) if confidence else None
    num_refused = 0
    for path in volumes:
        folder = out if len(volumes) == 1 or out is None else out / name_of(path)
        try:
            result = report_volume(path, reader, request)
            if follow is not None:
                result = follow(result)
            files = {} if folder is None else write_report(result, folder)
            explanation = _explain(result, reader) if also and folder is not None else None
            record = result.to_dict() | ({"sentences": assess(result, explanation)} if assess else {})
            if assess and folder is not None:
                files["sentences"] = folder / "sentences.json"
                shown = {key: record[key] for key in ("notice", "study_id", "sentences")}
                replace_file(files["sentences"], to_json(shown))
            if also and folder is not None:
                slices, pictures = _key_slices(result, explanation)
                files |= write_formats(
                    result,
                    also,
                    folder,
                    path,
                    series=series,
                    key_slices=slices,
                    pictures=pictures,
                    font=font,
                    allow_demo=allow_demo,
                )
        except ValueError as error:
            if len(volumes) == 1:
                raise
            num_refused += 1
            complain(f"{path.name}: {error}")
            continue
        for message in result.warnings:
            complain(f"Warning: {message}")
        if as_json:
            places = {"files": {name: str(file) for name, file in files.items()}} if files else {}
            typer.echo(json.dumps(record | places, ensure_ascii=False))
            continue
        heading = f"== {name_of(path)}\n" if len(volumes) > 1 else ""
        picture = f"\n\nPicture: {files['montage']}" if files else ""
        text = _lay_out(result.text, record["sentences"]) if assess else result.text
        typer.echo(f"{result.notice}\n{heading}\n{text}{picture}")
    if num_refused:
        raise ValueError(
            f"{num_refused} of {len(volumes)} volumes in `{volume}` were refused; see above for why."
        )


def _impression_writer(model: str) -> "Callable[[Report], Report]":
    """Return what gives a report the impression of a language model."""
    from hf_mu2.reporting.impressions import follow_with_impression, load_writer

    writer = load_writer(model)
    return lambda result: follow_with_impression(result, writer)


def _sentence_assessor(
    reader: "Reader", calibration: Path | None
) -> "Callable[[Report, Explanation | None], list[dict[str, Any]]]":
    """Return what assesses the sentences of a report, saying so where confidence is not calibrated."""
    from dataclasses import asdict

    from hf_mu2.explain.confidence import assess_report, find_calibration
    from hf_mu2.explain.evidence import check_explainable

    check_explainable(reader)  # before a report is written
    fitted = find_calibration(reader, calibration)
    if fitted is None:
        complain(
            f"Warning: `{reader.name}` has no calibration: sentences come with the share of sampled reports that state "
            "the same. Fit one with `hf-mu2 confidence collect` and `fit`."
        )
    return lambda result, explanation: [
        asdict(sentence)
        for sentence in assess_report(
            reader, result.volume, result.question, result.text, fitted, explanation=explanation
        )
    ]


def _lay_out(text: str, sentences: list[dict[str, Any]]) -> str:
    """Put each sentence on a line behind its confidence, or its agreement in brackets where there is none."""
    lines, done = [], 0
    for sentence in sentences:
        start, end = sentence["span"]
        if heading := text[done:start].strip():
            lines.append(heading)
        sure, agreement = sentence["confidence"], sentence["agreement"]
        number = f" {sure:.2f}" if sure is not None else "" if agreement is None else f"({agreement:.2f})"
        slices = ", ".join(map(str, sentence["key_slices"][:3]))
        lines.append(f"{number:<8}{sentence['text']}  [slices {slices}]")
        done = end
    return "\n".join(lines)


def _explain(result: "Report", reader: "Reader") -> "Explanation | None":
    """Find what a report rests on, for its key slices and its confidence; `None` where it cannot be traced."""
    from hf_mu2.explain.evidence import explain_report

    try:
        return explain_report(reader, result.volume, result.question, result.text, num_draws=0)
    except ValueError as error:
        complain(f"Warning: key slices are spread evenly instead of chosen by evidence. {error}")
        return None


def _key_slices(
    result: "Report", explanation: "Explanation | None"
) -> tuple[list[int], list[tuple["Image", str]]]:
    """Picture what the report rests on; the spread of the montage where that is not known."""
    from hf_mu2.explain.key_slices import picture_key_slices
    from hf_mu2.reporting.montage import draw_montage

    if explanation is not None:
        return picture_key_slices(explanation)
    montage = draw_montage(result.volume, result.notice, result.study_id)
    return [], [(montage, "Slices spread over the body.")]


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
            complain(f"Warning: {message}")
        facts = {"out": str(result.out), "manifest": str(result.manifest), "num_studies": result.num_studies}
        print_result(facts, f"{result.num_studies} reports: {result.out}", as_json)
        refuse_failed(result.failed)


class Layer(StrEnum):
    """What of the model is averaged."""

    SOFT_PROMPTS = "soft_prompts"
    TOWER = "tower"


@app.command()
def embed(
    dataset: Annotated[Path, typer.Argument(help="Folder that load_dataset opens, or a folder of volumes.")],
    out: Annotated[Path, typer.Option(help="Table to write, .npz or .parquet.")],
    model: Model = None,
    layer: Annotated[Layer, typer.Option(help="What is averaged.")] = Layer.SOFT_PROMPTS,
    question: Question = None,
    split: Split = None,
    batch_size: BatchSize = 4,
    as_json: AsJson = False,
) -> None:
    """Write one vector per study.

    The mean of its visual tokens under the question, or mean and maximum of the vision tower's patches.
    """
    from hf_mu2.reporting.embed import embed as run_embed
    from hf_mu2.reporting.inference import load_reader
    from hf_mu2.reporting.studies import open_studies

    studies = open_studies(dataset, split)
    failed = run_embed(
        studies,
        out,
        load_reader(model),
        layer=layer.value,
        question=question,
        batch_size=batch_size,
        show_progress=sys.stderr.isatty(),
    )
    num_studies = len(studies.ids) - len(failed)
    print_result({"out": str(out), "num_studies": num_studies}, f"{num_studies} embeddings: {out}", as_json)
    refuse_failed(failed)


@app.command()
def choose(
    dataset: Annotated[
        Path, typer.Argument(help="Folder of the vqa view, see `hf-mu2 data build --view vqa`.")
    ],
    out: Annotated[Path, typer.Option(help="JSONL file to write; a summary goes beside it.")],
    model: Model = None,
    split: Split = None,
    as_json: AsJson = False,
) -> None:
    """Answer multiple-choice questions.

    By the likelihood of each option, with and without the volume: the second is the floor.
    """
    from datasets import load_dataset

    from hf_mu2.reporting.choices import answer_choices
    from hf_mu2.reporting.inference import load_reader

    rows = load_dataset(str(dataset), split=split or "test")
    summary = answer_choices(rows, out, load_reader(model), show_progress=sys.stderr.isatty())
    seen, blind = summary["with_volume"], summary["text_only"]
    line = (
        f"{summary['questions']} questions: {seen['accuracy']:.3f} with the volume "
        f"({seen['low']:.3f}-{seen['high']:.3f}), {blind['accuracy']:.3f} without"
    )
    print_result(summary, line, as_json)
