"""Commands that show CT to Qwen-VL models as slices: slices init and slices plan."""

from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from .prepare import Root, Rows, Source, open_rows
from .shared import AsJson, SpacingMm, app, print_json, print_result

slices_app = typer.Typer(help="Show CT to Qwen2.5-VL and Qwen3-VL as slices.", no_args_is_help=True)
app.add_typer(slices_app, name="slices")


class Coverage(StrEnum):
    """Which slices are shown."""

    EVEN = "even"
    STRIDE = "stride"


CheckpointArgument = Annotated[str, typer.Argument(help="Folder or Hub id of Qwen2.5-VL or Qwen3-VL.")]
NumSlices = Annotated[int | None, typer.Option(min=1, help="Slices of a group.", show_default="10")]
CoverageOption = Annotated[
    Coverage | None,
    typer.Option(help="even: one group over the volume; stride: groups of it all.", show_default="even"),
]
Stride = Annotated[int | None, typer.Option(min=1, help="Step between slices.", show_default="1")]
Spacing = Annotated[
    SpacingMm | None,
    typer.Option(metavar="Z Y X", help="Millimetres per voxel.", show_default="1.5 0.75 0.75"),
]
Window = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LOW,HIGH", help="HU; one as grey, three as red, green, blue.", show_default="-1000,1000"
    ),
]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Largest frame.", show_default="602112")]


@slices_app.command()
def init(
    model: CheckpointArgument,
    output: Annotated[Path, typer.Argument(help="Folder of the new checkpoint.")],
    num_slices: NumSlices = None,
    coverage: CoverageOption = None,
    stride: Stride = None,
    spacing: Spacing = None,
    window: Window = None,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Copy a checkpoint and give it the processor that reads volumes.

    The result trains with `hf-mu2 train` and `trl sft`, and reports. MODEL may be `random`: a tiny model to try it.
    """
    from hf_mu2.training.slices_start import add_slices

    options = _given(num_slices, coverage, stride, spacing, window, max_pixels)
    folder = add_slices(model, output, **options)
    print_result({"checkpoint": str(folder), **options}, f"Checkpoint: {folder}", as_json)


@slices_app.command()
def plan(
    model: CheckpointArgument,
    source: Source,
    root: Root = None,
    split: Annotated[str, typer.Option(help="Split whose first studies are counted.")] = "train",
    num_studies: Annotated[int, typer.Option(min=1, help="Studies to count.")] = 16,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Longest sequence of training.", show_default="the model's")
    ] = None,
    num_slices: NumSlices = None,
    coverage: CoverageOption = None,
    stride: Stride = None,
    spacing: Spacing = None,
    window: Window = None,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
) -> None:
    """Count the tokens of studies before training.

    And say what to change if they are too many.

    Only configuration and tokenizer are read of the model. Ends with exit code 2 if a study does not fit.
    """
    from transformers import AutoConfig

    from hf_mu2.training.slices_budget import describe_budget, measure_budget
    from hf_mu2.training.slices_start import open_slices

    options = _given(num_slices, coverage, stride, spacing, window, max_pixels)
    processor = open_slices(model, **options)
    rows = open_rows(source, root, [split], Rows.SFT)[split]
    budget = measure_budget(
        processor, islice(rows, num_studies), AutoConfig.from_pretrained(model), max_length
    )
    text = describe_budget(budget, processor.image_processor)
    if as_json:
        print_json(budget.to_dict())
    if not budget.fits:
        raise ValueError(f"A study must fit {budget.limited_by}. Change one of the settings below.\n{text}")
    if not as_json:
        typer.echo(text)


def _given(
    num_slices: int | None,
    coverage: Coverage | None,
    stride: int | None,
    spacing: SpacingMm | None,
    window: list[str] | None,
    max_pixels: int | None,
) -> dict[str, Any]:
    """Collect the options that were given; the others keep the values of the processor."""
    values = {
        "num_slices": num_slices,
        "coverage": None if coverage is None else coverage.value,
        "stride": stride,
        "spacing": None if spacing is None else list(spacing),
        "windows": [_window(text) for text in window] if window else None,
        "max_pixels": max_pixels,
    }
    return {name: value for name, value in values.items() if value is not None}


def _window(text: str) -> list[float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise ValueError(
            f"A window is LOW,HIGH in HU, got `{text}`. Write e.g. `--window=-160,240`."
        ) from error
    return [low, high]
