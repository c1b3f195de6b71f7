"""Commands that send something to the Hub: `publish`. Nothing is sent without one of them."""

from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, app, complain, print_json, print_result

publish_app = typer.Typer(
    name="publish",
    help="Publish on the Hub. Look first with --dry-run; repositories are private unless you say --public.",
    no_args_is_help=True,
)
app.add_typer(publish_app)


@publish_app.command()
def dataset(
    folder: Annotated[
        Path, typer.Argument(help="Folder that load_dataset opens, with its card in README.md.")
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="Repository, e.g. name/phantom-ct.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List every file and show the card; send nothing.")
    ] = False,
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see the repository.")] = True,
    as_json: AsJson = False,
) -> None:
    """Upload volumes and metadata as a dataset.

    Refused: corpora that may not be redistributed, text that may not leave the machine, credentials, what names
    patients, a folder without a card.
    """
    from hf_mu2.hub.publish_dataset import describe_plan, plan_dataset, publish_dataset

    plan = plan_dataset(folder)
    if dry_run and as_json:
        print_json(describe_plan(plan) | {"repo_id": repo_id, "private": private})
    elif dry_run:
        for name, size in plan.files:
            typer.echo(f"{size:>14,}  {name}")
        for name in plan.left:
            typer.echo(f"{'stays':>14}  {name}")
        typer.echo(f"{plan.num_bytes:>14,}  bytes in {len(plan.files):,} files\n\n{plan.card}")
        complain(f"Nothing was sent. Without --dry-run this goes to {repo_id}, {_visibility(private)}.")
    else:
        url = publish_dataset(folder, repo_id, private=private)
        facts = {"url": url, "private": private, "num_files": len(plan.files), "num_bytes": plan.num_bytes}
        print_result(facts, f"{len(plan.files):,} files, {_visibility(private)}: {url}", as_json)


@publish_app.command()
def dataset_card(
    corpus: Annotated[str, typer.Argument(help="Name of the corpus, e.g. phantom_ct.")],
    root: Annotated[Path, typer.Option(help="Folder of its archive.")],
    out: Annotated[Path, typer.Option(help="Folder to write README.md into.")],
    repo_id: Annotated[str | None, typer.Option("--repo", help="Repository it will be published as.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count a corpus and write its dataset card."""
    from hf_mu2.data.inspect import inspect_corpus
    from hf_mu2.hub.dataset_card import write_dataset_card

    path = write_dataset_card(out, inspect_corpus(corpus, root), repo_id=repo_id)
    print_result({"card": str(path)}, f"Card: {path}", as_json)


def _visibility(private: bool) -> str:
    return "private" if private else "public"
