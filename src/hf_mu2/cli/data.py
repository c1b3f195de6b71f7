"""Commands about data: phantom and `data`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, SpacingMm, app, print_result

data_app = typer.Typer(
    name="data",
    help="Corpora: look into an archive, write it as a folder, find overlaps.",
    no_args_is_help=True,
)
app.add_typer(data_app)


class View(StrEnum):
    """The training views a phantom folder can be written in."""

    SFT = "sft"
    PREFERENCE = "preference"


class Difficulty(StrEnum):
    """How hard the findings of a phantom are to see."""

    STANDARD = "standard"
    EASY = "easy"


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
    print_result({"dataset": str(folder), "num_studies": n}, f"{n} synthetic studies: {folder}", as_json)
