"""Commands that send something to the Hub: `publish`. Nothing is sent without one of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import AsJson, app, complain, print_json, print_result

if TYPE_CHECKING:
    from hf_mu2.hub.upload import UploadPlan

publish_app = typer.Typer(
    name="publish",
    help="Publish on the Hub. Look first with --dry-run; repositories are private unless you say --public.",
    no_args_is_help=True,
)
app.add_typer(publish_app)

DryRun = Annotated[bool, typer.Option("--dry-run", help="List every file and show the card; send nothing.")]
Private = Annotated[bool, typer.Option("--private/--public", help="Who may see the repository.")]


@publish_app.command()
def dataset(
    folder: Annotated[
        Path, typer.Argument(help="Folder that load_dataset opens, with its card in README.md.")
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="Repository, e.g. name/phantom-ct.")],
    dry_run: DryRun = False,
    private: Private = True,
    as_json: AsJson = False,
) -> None:
    """Upload volumes and metadata as a dataset.

    Refused: corpora that may not be redistributed, text that may not leave the machine, credentials, what names
    patients, a folder without a card.
    """
    from hf_mu2.hub.publish_dataset import plan_dataset
    from hf_mu2.hub.upload import upload

    plan = plan_dataset(folder)
    if dry_run:
        _show_plan(plan, repo_id, private, as_json)
    else:
        _tell_sent(plan, upload(plan, repo_id, "dataset", private=private), private, as_json)


@publish_app.command()
def model(
    folder: Annotated[
        Path, typer.Argument(help="Checkpoint folder with its card; `mu2-phantom` is the embedded one.")
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="Repository, e.g. name/mu2-1b.")],
    dry_run: DryRun = False,
    private: Private = True,
    snippet: Annotated[
        bool,
        typer.Option(
            "--snippet/--no-snippet", help="Run the card's code on the folder before anything is sent."
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Upload a checkpoint as a model.

    Refused: no card, pickled weights, credentials, what names patients, terms of base models and corpora that are not
    met, a card whose code does not run.
    """
    from hf_mu2.hub.publish_model import plan_model
    from hf_mu2.hub.upload import upload

    plan = plan_model(_checkpoint(folder), repo_id, run_snippet=snippet)
    for warning in plan.warnings:
        complain(f"Warning: {warning}")
    if dry_run:
        _show_plan(plan, repo_id, private, as_json)
    else:
        _tell_sent(plan, upload(plan, repo_id, "model", private=private), private, as_json)


@publish_app.command()
def model_card(
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder; `mu2-phantom` is the embedded one.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="Repository it will be published as.")],
    licence: Annotated[str, typer.Option(help="Licence identifier as the Hub writes it.")],
    evaluation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="evaluation.json of `evaluate` and what it measured; repeatable."
        ),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="run.json of each stage of training, in order.", show_default="that of the folder"),
    ] = None,
    dependence: Annotated[Path | None, typer.Option(help="JSON of `image-dependence`.")] = None,
    confidence: Annotated[
        Path | None, typer.Option(help="confidence_measured.json of `confidence measure`.")
    ] = None,
    corpus: Annotated[list[str] | None, typer.Option(help="Trained on; repeatable.")] = None,
    base: Annotated[
        list[str] | None, typer.Option(help="Hub id of a model it was made from; repeatable.")
    ] = None,
    description: Annotated[Path | None, typer.Option(help="Markdown file to say first.", exists=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Write the card of a checkpoint from result files."""
    from hf_mu2.hub.model_card import write_model_card

    named = dict(item.rpartition("=")[::2] for item in evaluation or ())
    if "" in named:
        raise ValueError(
            "An evaluation has a name and a file, e.g. `--evaluation 'PhantomCT, test=evaluation.json'`."
        )
    path = write_model_card(
        _checkpoint(folder),
        repo_id,
        licence=licence,
        description="" if description is None else description.read_text(encoding="utf-8").strip(),
        evaluations=named,
        runs=run or (),
        dependence=dependence,
        confidence=confidence,
        corpora=corpus or (),
        base_models=base or (),
    )
    print_result({"card": str(path)}, f"Card: {path}", as_json)


@publish_app.command()
def space(
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="Repository, e.g. name/mu2-demo.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Hub id of a model that answers; repeatable.", show_default="the embedded demo checkpoint"
        ),
    ] = None,
    wheel: Annotated[
        Path | None,
        typer.Option(help="Wheel of this package, sent along instead of naming a release.", exists=True),
    ] = None,
    dry_run: DryRun = False,
    private: Private = True,
    as_json: AsJson = False,
) -> None:
    """Upload the demo as a Space."""
    from hf_mu2.hub.publish_space import plan_space, upload_space

    plan = plan_space(models=model or (), wheel=wheel)
    if dry_run:
        _show_plan(plan, repo_id, private, as_json)
    else:
        _tell_sent(plan, upload_space(plan, repo_id, models=model or (), private=private), private, as_json)


def _checkpoint(folder: Path) -> Path:
    """Take the name of the embedded checkpoint for its folder."""
    import hf_mu2

    embedded = hf_mu2.embedded_checkpoint()
    return embedded if str(folder) == embedded.name and not folder.exists() else folder


def _show_plan(plan: "UploadPlan", repo_id: str, private: bool, as_json: bool) -> None:
    from hf_mu2.hub.upload import describe_plan

    if as_json:
        print_json(describe_plan(plan) | {"repo_id": repo_id, "private": private})
        return
    for name, size in plan.files:
        typer.echo(f"{size:>14,}  {name}{'  (mended)' if name in plan.replaced else ''}")
    for name in plan.left:
        typer.echo(f"{'stays':>14}  {name}")
    typer.echo(f"{plan.num_bytes:>14,}  bytes in {len(plan.files):,} files\n\n{plan.card}")
    complain(f"Nothing was sent. Without --dry-run this goes to {repo_id}, {_visibility(private)}.")


def _tell_sent(plan: "UploadPlan", url: str, private: bool, as_json: bool) -> None:
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
