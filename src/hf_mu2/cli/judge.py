"""Commands that let a language model judge reports: green."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import AsJson, app, complain, print_json

if TYPE_CHECKING:
    from hf_mu2.scoring.green import Judge


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


JudgeTemplate = Annotated[
    Path | None,
    typer.Option(
        help="Text file with the judge's prompt, {reference} and {candidate} in it.",
        show_default="that of an installed radeval",
        exists=True,
        dir_okay=False,
    ),
]
Backend = Annotated[JudgeBackend, typer.Option(help="Where the judge runs.")]
Url = Annotated[str | None, typer.Option(help="Base URL of an OpenAI-compatible endpoint.")]
Api = Annotated[JudgeApi, typer.Option(help="Endpoint: chat messages, or token ids.")]
Revision = Annotated[str | None, typer.Option(help="Revision of the judge.")]
Turns = Annotated[JudgeTurns, typer.Option(help="GREEN's own turns, or the judge's chat template.")]
Parser = Annotated[
    ReplyParser, typer.Option(help="strict scores what it could read; reference as the released scorer.")
]
MaxWords = Annotated[int, typer.Option(min=1, help="Where reports are cut.")]
MaxReplyTokens = Annotated[int, typer.Option(min=1, help="Longest reply in tokens.")]
JudgeBatchSize = Annotated[int, typer.Option(min=1, help="transformers: prompts answered together.")]
MaxConcurrent = Annotated[int, typer.Option(min=1, help="Endpoint: requests under way at a time.")]
TimeoutS = Annotated[float, typer.Option(min=0.1, help="Endpoint: longest wait for a reply.")]
MaxRetries = Annotated[int, typer.Option(min=0, help="Endpoint: how often to ask again.")]
UnmarkedMayLeave = Annotated[
    bool, typer.Option("--unmarked-may-leave", help="Send rows without `egress` to other machines.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the judge.")
]
Replies = Annotated[
    Path | None, typer.Option(help="Folder of replies.", show_default="<out>.replies", file_okay=False)
]


@app.command()
def green(
    candidates: Annotated[Path, typer.Argument(help="JSONL rows with study_id, candidate and reference.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write; a killed run continues where it was.")],
    judge: Annotated[str, typer.Option(help="Checkpoint folder or Hub id; the model's name at an endpoint.")],
    judge_template: JudgeTemplate = None,
    references: Annotated[
        Path | None, typer.Option(help="JSONL rows with study_id and reference.", exists=True, dir_okay=False)
    ] = None,
    backend: Backend = JudgeBackend.TRANSFORMERS,
    url: Url = None,
    api: Api = JudgeApi.CHAT,
    revision: Revision = None,
    turns: Turns = JudgeTurns.GREEN,
    parser: Parser = ReplyParser.STRICT,
    max_words: MaxWords = 300,
    max_new_tokens: MaxReplyTokens = 1024,
    batch_size: JudgeBatchSize = 8,
    max_concurrent: MaxConcurrent = 16,
    timeout_s: TimeoutS = 180.0,
    max_retries: MaxRetries = 4,
    unmarked_may_leave: UnmarkedMayLeave = False,
    trust_remote_code: TrustRemoteCode = False,
    cache: Replies = None,
    as_json: AsJson = False,
) -> None:
    """Let a language model judge reports.

    GREEN: it counts findings and errors. Resumable. On several processes: accelerate launch -m hf_mu2.cli green ...
    """
    from accelerate import PartialState

    from hf_mu2.scoring.green import score_file
    from hf_mu2.scoring.green_summary import to_markdown

    settings = open_judge(
        judge,
        judge_template=judge_template,
        backend=backend,
        url=url,
        api=api,
        revision=revision,
        turns=turns,
        parser=parser,
        max_words=max_words,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        max_concurrent=max_concurrent,
        timeout_s=timeout_s,
        max_retries=max_retries,
        unmarked_may_leave=unmarked_may_leave,
        trust_remote_code=trust_remote_code,
    )
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


def open_judge(
    judge: str,
    *,
    judge_template: Path | None,
    backend: JudgeBackend,
    url: str | None,
    api: JudgeApi,
    revision: str | None,
    turns: JudgeTurns,
    parser: ReplyParser,
    max_words: int,
    max_new_tokens: int,
    batch_size: int,
    max_concurrent: int,
    timeout_s: float,
    max_retries: int,
    unmarked_may_leave: bool,
    trust_remote_code: bool,
) -> "Judge":
    """Make the judge that the options of a command describe."""
    from hf_mu2.scoring.green import Judge, load_template
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
    return Judge(where, template, max_words, parser.value, unmarked_may_leave)
