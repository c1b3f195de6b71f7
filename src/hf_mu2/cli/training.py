"""Commands that train and look at what was trained: train, merge, image-dependence."""

from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, BatchSize, Model, app, print_result

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_PASS_ON)
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="YAML file, or the name of a recipe that ships.")],
) -> None:
    """Train what a recipe says.

    Every field can be changed on the command line: hf-mu2 train sft-ct-rate-tiny --learning_rate 1e-4. A killed run
    continues when the command is given again. On several processes: accelerate launch -m hf_mu2.cli train ...
    """
    from hf_mu2.training.recipe import train_recipe

    folder = train_recipe(recipe, context.args)
    typer.echo(str(folder))


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub id of an adapter.")],
    output: Annotated[Path, typer.Argument(help="Folder of the merged checkpoint.")],
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base.

    The result is one checkpoint that loads without PEFT; its logits equal those of base and adapter.
    """
    from hf_mu2.hub.merge import merge as run_merge

    facts = run_merge(adapter, output)
    print_result(facts, f"Checkpoint: {output}", as_json)


@app.command()
def image_dependence(
    dataset: Annotated[str, typer.Argument(help="Folder or Hub id of rows with a volume and a report.")],
    model: Model = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    limit: Annotated[int | None, typer.Option(min=2, help="Use the first so many studies.")] = None,
    batch_size: BatchSize = 8,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, for the model card.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure whether a checkpoint looks.

    The loss of each reference under the volume of a study with about as many findings, less that under its own.
    """
    import json

    import hf_mu2
    from hf_mu2.files import replace_text
    from hf_mu2.training.dependence import measure_dependence

    checkpoint = hf_mu2.embedded_checkpoint() if model is None else model
    facts = measure_dependence(checkpoint, dataset, split=split, limit=limit, batch_size=batch_size)
    if out is not None:
        replace_text(out, json.dumps(facts, indent=2) + "\n")
    value, error = facts["image_dependence"], 1.96 * facts["image_dependence_se"]
    line = f"{value:.4f} nats per token, 95 % {value - error:.4f} to {value + error:.4f}, {facts['studies']} studies"
    print_result(facts, line, as_json)
