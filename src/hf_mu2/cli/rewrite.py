"""The command that expands a corpus with a language model: data rewrite."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .data import BuilderOptions, Corpus, Root, data_app, parse_options
from .shared import AsJson, complain, print_result


class RewriteView(StrEnum):
    """What is written: rows for a trainer, or studies."""

    SFT = "sft"
    IMPRESSION = "impression"
    STUDY = "study"


@data_app.command()
def rewrite(
    corpus: Corpus,
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder to write; a killed run continues where it was.")],
    url: Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible endpoint.")],
    model: Annotated[str, typer.Option(help="The model's name there.")],
    paraphrases: Annotated[int, typer.Option(min=0, help="Paraphrases per report.")] = 8,
    questions: Annotated[int, typer.Option(min=0, help="Question-answer pairs per report.")] = 0,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Whose reports are rewritten, may be repeated; others stay.", show_default="train"),
    ] = None,
    view: Annotated[RewriteView, typer.Option(help="Rows for a trainer, or studies.")] = RewriteView.SFT,
    require_checked: Annotated[
        bool, typer.Option("--require-checked", help="Leave out what no reader could check in full.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Sent with every request.")] = 0,
    revision: Annotated[str | None, typer.Option(help="What the server serves; it does not tell.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens.")] = 2048,
    max_concurrent: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 16,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="Most requests a minute.", show_default="no limit")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Longest wait for a reply.")] = 180.0,
    max_retries: Annotated[int, typer.Option(min=0, help="How often to ask again.")] = 4,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of replies.", show_default="<out>.replies", file_okay=False)
    ] = None,
    option: BuilderOptions = None,
    as_json: AsJson = False,
) -> None:
    """Add paraphrases of the reports and questions about them.

    A language model writes them; each is checked against its report, and what says something else is refused.
    """
    from hf_mu2.preference.rewrite import REFUSED, Expansion, rewrite_corpus
    from hf_mu2.scoring.judge_backends import EndpointBackend

    expansion = Expansion(paraphrases, questions, tuple(split or ("train",)), view.value, require_checked)
    endpoint = EndpointBackend(
        url,
        model,
        revision=revision,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        max_concurrent=max_concurrent,
        requests_per_minute=requests_per_minute,
        timeout_s=timeout_s,
        max_retries=max_retries,
    )
    try:
        manifest = rewrite_corpus(
            corpus, root, out, endpoint, expansion, cache=cache, **parse_options(option)
        )
    except ConnectionError as error:
        complain(f"Error: {error}")
        raise typer.Exit(1) from error
    lines = [
        f"{part}: {', '.join(f'{count:,} {kind}' for kind, count in rows.items())}"
        for part, rows in manifest["rows"].items()
    ]
    refused = ", ".join(f"{count:,} {reason}" for reason, count in manifest["refused"].items())
    lines.append(f"Refused: {refused} ({out / REFUSED})" if refused else "Refused: none")
    print_result({"dataset": str(out), **manifest}, "\n".join([*lines, f"Dataset: {out}"]), as_json)
    if manifest["num_failed"]:
        complain(
            f"Error: {manifest['num_failed']} requests have no reply. Run the same command again to ask for these only."
        )
        raise typer.Exit(1)
