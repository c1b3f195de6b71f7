"""The command that shows what an answer rests on."""

from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, MaxNewTokens, Model, Question, SpacingMm, app, complain, print_json


@app.command()
def explain(
    volume: Annotated[Path, typer.Argument(help="NIfTI file, DICOM folder or zip.")],
    out: Annotated[Path, typer.Option(help="Folder for heat maps, overlays and figures.")],
    question: Question = None,
    answer: Annotated[
        Path | None,
        typer.Option(
            help="Text file with the report to explain.",
            show_default="what the model writes",
            exists=True,
            dir_okay=False,
        ),
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
    draws: Annotated[
        int,
        typer.Option(min=0, help="Draws of random blocks to test each map against, 9 or more; 0 tests none."),
    ] = 19,
    max_new_tokens: MaxNewTokens = 512,
    as_json: AsJson = False,
) -> None:
    """Show what of a volume each sentence rests on.

    Heat maps on the volume's own grid, overlays, key slices, and a test of every map: whether hiding what it points at
    matters more than hiding other blocks.
    """
    from hf_mu2.explain.evidence import explain_forced
    from hf_mu2.explain.forced import force_answer
    from hf_mu2.explain.soft_prompts import analyse_forced
    from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
    from hf_mu2.reporting.inference import load_reader

    reader = load_reader(model)
    loaded = reader.load_volume(
        volume, spacing=spacing, orientation=orientation, series=series, channel=channel
    )
    given = None if answer is None else answer.read_text(encoding="utf-8").strip()
    forced = force_answer(reader, loaded, question or DEFAULT_QUESTION, given, max_new_tokens=max_new_tokens)
    explanation = explain_forced(forced, num_draws=draws)
    files = analyse_forced(forced).save(out) | explanation.save(out)
    for message in reader.caveats:
        complain(f"Warning: {message}")
    if as_json:
        print_json(explanation.to_dict() | {"files": {name: str(path) for name, path in files.items()}})
        return
    typer.echo(f"{explanation.notice}\n")
    for number, sentence in enumerate(explanation.sentences, 1):
        slices = ", ".join(map(str, sentence.key_slices))
        typer.echo(f"{number:2d}. {sentence.text}\n    {sentence.describe()}\n    key slices {slices}")
    if explanation.faithfulness is not None:
        typer.echo(f"\nThe whole answer: {explanation.faithfulness.describe()}")
    typer.echo(f"\nMaps, pictures and tables: {out}")
