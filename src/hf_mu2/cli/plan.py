"""Command that plans training: plan."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, app, print_json


class Dtype(StrEnum):
    """Of the weights."""

    fp32 = "fp32"
    bf16 = "bf16"


class Engine(StrEnum):
    """How several processes share the work."""

    ddp = "ddp"
    fsdp2 = "fsdp2"
    zero2 = "zero2"
    zero3 = "zero3"


@app.command()
def plan(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or Hub id; only its configuration is read.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Sizes, where no checkpoint is given.")] = "mu2-1b",
    language_model: Annotated[
        str | None, typer.Option(help="Another language model for the preset: folder or Hub id.")
    ] = None,
    stage: Annotated[str, typer.Option(help="What is trained: full, align, adapt, ...")] = "full",
    batch: Annotated[int, typer.Option(min=1, help="Studies per GPU and forward pass.")] = 1,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each study.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Tokens of each row, visual ones included.")] = 1024,
    gpu_memory: Annotated[float, typer.Option(help="Memory of a GPU in GB.")] = 80.0,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; recipes keep fp32.")] = Dtype.fp32,
    autocast: Annotated[bool, typer.Option(help="Products in bf16: `bf16: true` of a recipe.")] = True,
    lora_r: Annotated[
        int | None, typer.Option(min=1, help="Rank of an adapter on the language model.")
    ] = None,
    checkpointing: Annotated[bool, typer.Option(help="`gradient_checkpointing` of a recipe.")] = True,
    accumulates: Annotated[bool, typer.Option(help="Gradients of earlier batches are held.")] = False,
    cached_vision: Annotated[bool, typer.Option(help="The tower's output comes from a cache.")] = False,
    engine: Annotated[Engine | None, typer.Option(help="How several GPUs share the work.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="GPUs of the engine.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Say how much GPU memory training needs.

    A step runs on tensors without content while allocations are counted: no GPU and no weights are needed.
    """
    from transformers import AutoConfig

    from hf_mu2.model.configuration_mu2 import Mu2Config
    from hf_mu2.training.plan import Step, plan_training

    if model is not None and language_model is not None:
        raise ValueError(
            f"A plan is of a checkpoint or of a preset's parts, got `--model {model}` and `--language-model "
            f"{language_model}`. Leave one out."
        )
    if model is not None:
        config = AutoConfig.from_pretrained(Path(model) if Path(model).exists() else model)
    elif language_model is not None:
        config = Mu2Config.from_preset(preset, text_config=AutoConfig.from_pretrained(language_model))
    else:
        config = Mu2Config.from_preset(preset)
    step = Step(
        stage=stage,
        batch=batch,
        frames=frames,
        length=length,
        dtype=dtype.value,
        autocast=autocast,
        lora_r=lora_r,
        checkpointing=checkpointing,
        accumulates=accumulates,
        caches_vision=cached_vision,
        engine=None if engine is None else engine.value,
        processes=processes,
    )
    facts = plan_training(config, step, gpu_memory)
    if as_json:
        print_json(facts)
        return
    for part, number in facts["parameters"].items():
        typer.echo(f"{part:<16}{number['total']:>15,} parameters, {number['trained']:,} trained")
    for name, size in facts["memory_gb"].items():
        typer.echo(f"{name:<16}{size:>12.2f} GB")
    verdict = "fits" if facts["fits"] else "does not fit"
    typer.echo(f"A batch of {batch} {verdict} in {gpu_memory:g} GB; the largest is {facts['largest_batch']}.")
    for suggestion in facts["suggestions"]:
        typer.echo(f"- {suggestion}")
