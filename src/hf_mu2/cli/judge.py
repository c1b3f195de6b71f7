"""Commands that let a language model judge reports: green."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, app, complain, print_json


class JudgeBackend(StrEnum):
    """Where the judge runs."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"
    ENDPOINT = "endpoint"


class ReplyParser(StrEnum):
    """How replies become scores."""

    STRICT = "strict"
    REFERENCE = "reference"


class JudgeTurns(StrEnum):
    """How the prompt is laid out in turns."""

    GREEN = "green"
    CHAT = "chat"


class JudgeApi(StrEnum):
    """Which of an endpoint's interfaces is asked."""

    CHAT = "chat"
    COMPLETIONS = "completions"


@app.command()
def green(
    candidates: Annotated[Path, typer.Argument(help="JSONL rows with study_id, candidate and reference.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write; a killed run continues where it was.")],
    judge: Annotated[str, typer.Option(help="Checkpoint folder or Hub id; the model's name at an endpoint.")],
    judge_template: Annotated[
        Path | None,
        typer.Option(
            help="Text file with the judge's prompt, {reference} and {candidate} in it.",
            show_default="that of an installed radeval",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help="JSONL rows with study_id and reference.", exists=True, dir_okay=False)
    ] = None,
    backend: Annotated[JudgeBackend, typer.Option(help="Where the judge runs.")] = JudgeBackend.TRANSFORMERS,
    url: Annotated[str | None, typer.Option(help="Base URL of an OpenAI-compatible endpoint.")] = None,
    api: Annotated[JudgeApi, typer.Option(help="Endpoint: chat messages, or token ids.")] = JudgeApi.CHAT,
    revision: Annotated[str | None, typer.Option(help="Revision of the judge.")] = None,
    turns: Annotated[
        JudgeTurns, typer.Option(help="GREEN's own turns, or the judge's chat template.")
    ] = JudgeTurns.GREEN,
    parser: Annotated[
        ReplyParser, typer.Option(help="strict scores what it could read; reference as the released scorer.")
    ] = ReplyParser.STRICT,
    max_words: Annotated[int, typer.Option(min=1, help="Where reports are cut.")] = 300,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="transformers: prompts answered together.")] = 8,
    max_concurrent: Annotated[int, typer.Option(min=1, help="Endpoint: requests under way at a time.")] = 16,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Endpoint: longest wait for a reply.")] = 180.0,
    max_retries: Annotated[int, typer.Option(min=0, help="Endpoint: how often to ask again.")] = 4,
    unmarked_may_leave: Annotated[
        bool, typer.Option("--unmarked-may-leave", help="Send rows without `egress` to other machines.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the judge.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of replies.", show_default="<out>.replies", file_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a language model judge reports.

    GREEN: it counts findings and errors. Resumable. On several processes: accelerate launch -m hf_mu2.cli green ...
    """
    from accelerate import PartialState

    from hf_mu2.scoring.green import Judge, load_template, score_file
    from hf_mu2.scoring.green_summary import to_markdown
    from hf_mu2.scoring.judge_backends import Backend, EndpointBackend, TransformersBackend, VllmBackend

    if (url is not None) != (backend is JudgeBackend.ENDPOINT):
        raise ValueError(
            f"`--url` goes with `--backend endpoint` and with no other, got `--backend {backend.value}` "
            f"{'without a URL' if url is None else 'and a URL'}. Give both or neither."
        )
    template = load_template(judge_template)
    where: Backend
    if url is not None:
        where = EndpointBackend(
            url,
            judge,
            revision=revision,
            api=api.value,
            turns=turns.value,
            max_new_tokens=max_new_tokens,
            max_concurrent=max_concurrent,
            timeout_s=timeout_s,
            max_retries=max_retries,
        )
    elif backend is JudgeBackend.VLLM:
        where = VllmBackend(
            judge,
            revision=revision,
            turns=turns.value,
            max_new_tokens=max_new_tokens,
            trust_remote_code=trust_remote_code,
        )
    else:
        where = TransformersBackend(
            judge,
            revision=revision,
            turns=turns.value,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            trust_remote_code=trust_remote_code,
        )
    settings = Judge(where, template, max_words, parser.value, unmarked_may_leave)
    try:
        run = score_file(candidates, out, settings, references=references, cache=cache)
    except ConnectionError as error:
        complain(f"Error: {error}")
        raise typer.Exit(1) from error
    if not PartialState().is_main_process:
        return
    if as_json:
        print_json({"out": str(run.out), "manifest": str(run.manifest), **run.summary})
    else:
        typer.echo(f"{to_markdown(run.summary)}\nRows: {run.out}")
    for study_id, reason in list(run.failed.items())[:5]:
        complain(f"{study_id}: {reason}")
    if run.failed:
        complain(
            f"Error: {len(run.failed)} studies have no reply. Run the same command again to ask for these only."
        )
        raise typer.Exit(1)
