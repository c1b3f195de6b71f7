"""Commands that train: train and merge."""

from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, app, print_result

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
