"""Commands from a model to scored candidates: sample, score."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .judge import (
    Api,
    Backend,
    JudgeApi,
    JudgeBackend,
    JudgeBatchSize,
    JudgeTemplate,
    JudgeTurns,
    MaxConcurrent,
    MaxReplyTokens,
    MaxRetries,
    MaxWords,
    Parser,
    Replies,
    ReplyParser,
    Revision,
    TimeoutS,
    TrustRemoteCode,
    Turns,
    UnmarkedMayLeave,
    Url,
    open_judge,
)
from .shared import AsJson, BatchSize, MaxNewTokens, Model, Split, app, complain, print_result, refuse_failed


class Differing(StrEnum):
    """In what the candidates of a study must differ for the judge to be asked."""

    TEXT = "text"
    LABELS = "labels"


class ScoredSection(StrEnum):
    """What of a report is compared."""

    BOTH = "both"
    FINDINGS = "findings"
    IMPRESSION = "impression"


@app.command()
def sample(
    dataset: Annotated[Path, typer.Argument(help="Folder that load_dataset opens, or a folder of volumes.")],
    out: Annotated[
        Path, typer.Option(help="File to write, .jsonl or .parquet; a killed run continues where it was.")
    ],
    model: Model = None,
    num_candidates: Annotated[int, typer.Option(min=1, help="Candidates per study.")] = 8,
    temperature: Annotated[float, typer.Option(help="1 leaves the model's distribution as it is.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens with this share.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Another seed, other candidates.")] = 0,
    question: Annotated[
        str | None, typer.Option(help="Ask this of every study.", show_default="the dataset's own prompt")
    ] = None,
    split: Split = None,
    batch_size: BatchSize = 4,
    max_new_tokens: MaxNewTokens = 512,
    as_json: AsJson = False,
) -> None:
    """Sample several candidate reports per study.

    Each volume is encoded once. On several processes: accelerate launch -m hf_mu2.cli sample ...
    """
    from hf_mu2.preference.sample import sample as run_sample
    from hf_mu2.reporting.inference import load_reader, process_state
    from hf_mu2.reporting.studies import open_studies

    state = process_state()
    studies, reader = open_studies(dataset, split), load_reader(model, state.device)
    result = run_sample(
        studies,
        out,
        reader,
        num_candidates=num_candidates,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        question=question,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        show_progress=sys.stderr.isatty(),
    )
    if state.is_main_process:
        for message in reader.caveats:
            complain(f"Warning: {message}")
        facts = {"out": str(result.out), "manifest": str(result.manifest), "num_studies": result.num_studies}
        line = f"{num_candidates} candidates for each of {result.num_studies} studies: {result.out}"
        print_result(facts, line, as_json)
        refuse_failed(result.failed)


@app.command()
def score(
    candidates: Annotated[Path, typer.Argument(help="Rows of `hf-mu2 sample`, JSONL or Parquet.")],
    out: Annotated[
        Path, typer.Option(help="File to write, .jsonl or .parquet; a killed run continues where it was.")
    ],
    references: Annotated[
        Path | None,
        typer.Option(
            help="Rows with study_id and reference, or findings and impression.",
            show_default="the candidates' own",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="label_f1, crg, rouge_l or green; several with weights: green=0.7.", show_default="label_f1"
        ),
    ] = None,
    only_differing: Annotated[
        Differing | None,
        typer.Option(help="Ask the judge only about studies whose candidates differ in this."),
    ] = None,
    section: Annotated[ScoredSection, typer.Option(help="What is compared.")] = ScoredSection.BOTH,
    judge: Annotated[
        str | None, typer.Option(help="GREEN: checkpoint folder, Hub id, or name at an endpoint.")
    ] = None,
    judge_template: JudgeTemplate = None,
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
    """Score sampled candidates.

    By labels, words or a judge (GREEN), or a weighted mean: --by green=0.7 --by label_f1=0.3.
    """
    from hf_mu2.preference.score import STATUSES, read_weights
    from hf_mu2.preference.score import score as run_score
    from hf_mu2.reporting.inference import process_state

    weights = read_weights(by or ["label_f1"])
    opened = None
    if judge is not None:
        opened = open_judge(
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
        run = run_score(
            candidates,
            out,
            weights,
            references=references,
            judge=opened,
            only_differing=None if only_differing is None else only_differing.value,
            section=section.value,
            cache=cache,
        )
    except ConnectionError as error:
        complain(f"Error: {error}")
        raise typer.Exit(1) from error
    if not process_state().is_main_process:
        return
    summary = run.summary
    counts = summary["status"]
    line = f"{counts.get('ok', 0)} of {summary['num_candidates']} candidates scored: {run.out}"
    print_result({"out": str(run.out), "manifest": str(run.manifest), **summary}, line, as_json)
    for status in counts.keys() - {"ok"}:
        complain(f"Warning: {counts[status]} candidates have no score: {STATUSES[status]}.")
    if missing := summary["studies_without_reference"]:
        complain(
            f"Studies without a reference: {', '.join(map(str, missing[:5]))}{', ...' * (len(missing) > 5)}"
        )
    for study_id, reason in list(run.failed.items())[:5]:
        complain(f"{study_id}: {reason}")
    if run.failed:
        complain("Error: The judge gave no reply on some. Run the same command again to ask for these only.")
        raise typer.Exit(1)
