"""Commands about checkpoints: info, init, convert."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, app, brief, print_json, print_result


@app.command()
def info(as_json: AsJson = False) -> None:
    """Show versions, devices and extras.

    Names the embedded checkpoint too.
    """
    from hf_mu2.reporting.environment import describe_environment

    facts = describe_environment()
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            for key, item in value.items():
                typer.echo(f"  {key:<18}{brief(item)}")
        else:
            typer.echo(f"{name + ':':<20}{brief(value)}")


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
    print_result({"checkpoint": str(output)}, f"Checkpoint: {output}", as_json)


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
    lines = [f"{name}: {brief(value)}" for name, value in detected.items() if value not in (None, [])]
    print_result(
        {"checkpoint": str(output), "detected": detected},
        "\n".join([*lines, f"Checkpoint: {output}"]),
        as_json,
    )
