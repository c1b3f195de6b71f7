"""The command about synthetic CT: phantom."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .shared import AsJson, SpacingMm, app, print_result


class View(StrEnum):
    """The training views a phantom folder can be written in."""

    SFT = "sft"
    PREFERENCE = "preference"


class Difficulty(StrEnum):
    """How hard the findings of a phantom are to see."""

    STANDARD = "standard"
    EASY = "easy"
    HARD = "hard"


class Region(StrEnum):
    """The part of the body a phantom shows."""

    CHEST = "chest"
    ABDOMEN = "abdomen"


class Change(StrEnum):
    """What sets the two studies of a pair apart."""

    PRESENCE = "presence"
    SIDE = "side"
    SIZE = "size"


class Size(StrEnum):
    """How many studies the benchmark has."""

    TINY = "tiny"
    DEMO = "demo"
    SMALL = "small"
    STANDARD = "standard"


class Resolution(StrEnum):
    """The spacing of the benchmark's volumes."""

    NATIVE = "native"
    COARSE = "coarse"
    QUICK = "quick"


@app.command()
def phantom(
    out: Annotated[Path, typer.Option(help="Folder to write; masks of the findings go to <out>_masks.")],
    n: Annotated[
        int | None, typer.Option(min=1, help="Number of studies, or of pairs.", show_default="200")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The same seed gives the same bytes.",
            show_default="0; the test split's first for pairs",
        ),
    ] = None,
    view: Annotated[View, typer.Option(help="Columns for SFT or for preference training.")] = View.SFT,
    split: Annotated[
        str | None, typer.Option(help="Name of the split.", show_default="train; test for pairs")
    ] = None,
    spacing: Annotated[
        SpacingMm | None,
        typer.Option(metavar="Z Y X", help="Millimetres per voxel.", show_default="drawn per study"),
    ] = None,
    difficulty: Annotated[
        Difficulty,
        typer.Option(help="easy: larger findings, no artefacts; hard: smaller findings, more noise."),
    ] = Difficulty.STANDARD,
    region: Annotated[Region, typer.Option(help="Part of the body.")] = Region.CHEST,
    text_shortcut: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="From 0, nothing but findings, to 1, a filled-in template.",
            show_default="varied sentences",
        ),
    ] = None,
    pairs: Annotated[
        Change | None,
        typer.Option(help="Write pairs that differ in one finding only.", show_default="no pairs"),
    ] = None,
    benchmark: Annotated[
        Size | None,
        typer.Option(
            help="Write all splits of the benchmark instead of -n studies.", show_default="no benchmark"
        ),
    ] = None,
    resolution: Annotated[
        Resolution, typer.Option(help="Spacing of the benchmark; quick trains in minutes on two cores.")
    ] = Resolution.NATIVE,
    num_workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Write synthetic CT with reports.

    As a folder that `load_dataset` and TRL open; the masks of the findings lie beside it, in <out>_masks.
    """
    from hf_mu2.data.phantom import FIRST_SEED, SIZES, write_benchmark, write_pairs, write_phantoms

    chosen: dict[str, Any] = {
        "difficulty": difficulty.value,
        "region": region.value,
        "text_shortcut": text_shortcut,
    }
    if pairs is not None and benchmark is not None:
        raise ValueError("--pairs and --benchmark write different folders, got both. Pass one of them.")
    fixed = {"--n": n, "--seed": seed, "--split": split, "--spacing": spacing}
    given = [name for name, value in fixed.items() if value is not None]
    if benchmark is not None and given:
        raise ValueError(
            f"A benchmark fixes its studies, got {', '.join(given)} beside --benchmark. Leave them out; "
            "--resolution chooses the spacing."
        )
    if pairs is not None and view is not View.SFT:
        raise ValueError("Pairs are written for SFT only, got --view preference. Leave out --view.")
    n = 200 if n is None else n
    if benchmark is not None:
        n = sum(SIZES[benchmark.value].values())
        folder = write_benchmark(
            out,
            benchmark.value,
            resolution=resolution.value,
            view=view.value,
            num_workers=num_workers,
            **chosen,
        )
    elif pairs is not None:
        seed = FIRST_SEED["test"] if seed is None else seed
        folder = write_pairs(
            out,
            n,
            seed,
            change=pairs.value,
            spacing=spacing,
            split="test" if split is None else split,
            **chosen,
        )
        n *= 2
    else:
        folder = write_phantoms(
            out,
            n,
            seed or 0,
            view=view.value,
            spacing=spacing,
            split="train" if split is None else split,
            num_workers=num_workers,
            **chosen,
        )
    print_result({"dataset": str(folder), "num_studies": n}, f"{n} synthetic studies: {folder}", as_json)
