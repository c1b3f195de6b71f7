"""GREEN: a language model compares a candidate with its reference and counts findings and errors.

Reads: JSONL rows with study_id, reference, candidate, and egress where the corpus says it; a judge's prompt.
Writes: one row per study with score, status, counts, error lines and the reply; a manifest with the summary beside it.

The prompt is the input format that a judge was trained on, so it is taken from where it was published, never from here.
Scores of two judges, or of one judge with two prompts, are not comparable: what a score depends on is its signature.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from hf_mu2.files import replace_text
from hf_mu2.tables import read_rows, to_lines

from .green_parse import Parser, Reading, read_reply
from .green_summary import summarize
from .judge_backends import Backend, refuse_egress
from .judge_cache import Reply, ReplyCache, fetch_replies, reply_key

_PLACEHOLDER = re.compile(r"\{(reference|candidate)\}")


class Pair(NamedTuple):
    """A reference and a candidate report. `egress` says whether the texts may leave this machine, if anybody did."""

    reference: str
    candidate: str
    egress: bool | None = None


@dataclass(frozen=True)
class JudgeTemplate:
    """A judge's prompt with `{reference}` and `{candidate}` where the reports go, and where it came from."""

    text: str
    source: str

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, pair: Pair, max_words: int | None) -> str:
        """Put the reports in, on one line each, cut after `max_words` words as the released scorer does."""
        reports = {
            "reference": " ".join(pair.reference.split()[:max_words]),
            "candidate": " ".join(pair.candidate.split()[:max_words]),
        }
        return _PLACEHOLDER.sub(lambda name: reports[name.group(1)], self.text)


def load_template(path: str | Path | None = None) -> JudgeTemplate:
    """Read the judge's prompt from a file, or from the `radeval` package if one is installed.

    Args:
        path (`str` or `Path`, *optional*): Text file with `{reference}` and `{candidate}`, once each.
    """
    if path is None:
        return _template_of_radeval()
    text = Path(path).read_text(encoding="utf-8")
    names = sorted(_PLACEHOLDER.findall(text))
    if names != ["candidate", "reference"]:
        raise ValueError(
            "A judge's template holds {reference} and {candidate} once each, "
            f"`{path}` holds {', '.join(names) or 'neither'}. Put them where the reports go; all else is sent as it is."
        )
    return JudgeTemplate(text, Path(path).name)


def _template_of_radeval() -> JudgeTemplate:
    package = importlib.util.find_spec("radeval")
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            "GREEN needs its judge's prompt, which is the input format the judge was trained on and is not ours to "
            "copy. Either `pip install --no-deps radeval`, whose prompt of GREEN is then used, or write the prompt of "
            "your judge to a file, with {reference} and {candidate} where the reports go, and pass it: "
            "`--judge-template FILE`."
        )
    # The one file, not the package: importing radeval loads its metrics and asks the network for NLTK data.
    file = Path(next(iter(package.submodule_search_locations))) / "metrics" / "green_score" / "utils.py"
    spec = importlib.util.spec_from_file_location("radeval_green_utils", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ValueError(
            f"The prompt of GREEN is expected in `metrics/green_score/utils.py` of radeval, {version('radeval')} has "
            "no such file. Install radeval 2.2, or pass the prompt as a file: `--judge-template FILE`."
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return JudgeTemplate(module.make_prompt("{reference}", "{candidate}"), f"radeval {version('radeval')}")


@dataclass(frozen=True)
class Judge:
    """A backend with a prompt: everything a score depends on.

    Args:
        backend (`Backend`): From `judge_backends`.
        template (`JudgeTemplate`): From `load_template`.
        max_words (`int`, *optional*): Where both reports are cut; 300 as the released scorer does, `None` not at all.
        parser (`str`): `strict` or `reference`, see `green_parse`.
        unmarked_may_leave (`bool`): Send reports that do not say whether they may to an endpoint on another machine.
    """

    backend: Backend
    template: JudgeTemplate
    max_words: int | None = 300
    parser: Parser = "strict"
    unmarked_may_leave: bool = False

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a reply depends on, beside the reports; the parser reads replies and is no part of it."""
        return {**self.backend.identity, "template": self.template.sha256, "max_words": self.max_words}

    @cached_property
    def signature(self) -> str:
        """State in one line what a score depends on."""
        facts = self.identity
        settings = [
            f"{name}:{facts[name]}" for name in sorted(facts) if name not in ("model", "revision", "template")
        ]
        return "|".join(
            [
                "green",
                f"judge:{facts['model']}@{facts['revision'] or 'unstated'}",
                f"template:{self.template.sha256[:12]}",
                *settings,
                f"parser:{self.parser}",
            ]
        )

    def key(self, prompt: str) -> str:
        """Name a reply in the cache by everything it depends on."""
        return reply_key(self.identity, prompt)

    def prompts(self, pairs: Sequence[Pair]) -> list[str]:
        """Write the prompts, after checking that the reports are there and may go where the judge is."""
        for i, pair in enumerate(pairs):
            if not pair.reference.strip():
                raise ValueError(
                    f"GREEN compares with a reference report, the one of pair {i} is empty. Leave such studies out."
                )
            if pair.egress not in (True, False, None):  # the text "false" would read as a yes
                raise ValueError(
                    f"`egress` is true, false or null, got `{pair.egress!r}` in pair {i}. Mend that row."
                )
        refuse_egress(
            self.backend.host, [pair.egress for pair in pairs], unmarked_may_leave=self.unmarked_may_leave
        )
        return [self.template.fill(pair, self.max_words) for pair in pairs]


@dataclass(frozen=True)
class GreenResult(Reading):
    """A pair's reading, the reply it was read from, and who gave it.

    Args:
        judge (`str`): The signature; results of different ones are not mixed.
        reference_score (`float`, *optional*): What the released scorer would say, also where it makes no sense.
        reply (`str`): The judge's text.
        finish_reason (`str`, *optional*): Why the judge stopped.
        error (`str`, *optional*): Why there is no reply, with status `failed`.
    """

    judge: str = ""
    reference_score: float | None = None
    reply: str = ""
    finish_reason: str | None = None
    error: str | None = None


async def judge_pairs(
    pairs: Sequence[Pair], judge: Judge, cache: ReplyCache | None = None, *, show_progress: bool = False
) -> list[GreenResult]:
    """Judge pairs and return their results in order; equal pairs are judged once.

    A pair whose call failed has status `failed` and says why. In a trainer, `await` it from an asynchronous reward
    function, with one `ReplyCache()` for the whole training; elsewhere use `asyncio.run(judge_pairs(...))`.

    Raises:
        ConnectionError: if an endpoint keeps failing; replies so far are in the cache.
    """
    cache = ReplyCache() if cache is None else cache
    prompts = judge.prompts(pairs)
    await _fetch(judge, cache, judge.backend.batches(list(dict.fromkeys(prompts))), show_progress)
    return [_result(judge, cache, prompt) for prompt in prompts]


async def _fetch(judge: Judge, cache: ReplyCache, batches: Sequence[list[str]], show_progress: bool) -> None:
    """Ask for the replies that the cache lacks."""
    missing = sum(judge.key(prompt) not in cache.replies for batch in batches for prompt in batch)
    await fetch_replies(
        judge.backend, cache, batches, judge.identity, total=missing, show_progress=show_progress
    )


def _result(judge: Judge, cache: ReplyCache, prompt: str) -> GreenResult:
    key = judge.key(prompt)
    reply = cache.replies.get(key) or cache.failures.get(key) or Reply(error="the judge was not asked")
    if reply.error is not None:
        return GreenResult("failed", judge=judge.signature, error=reply.error)
    reading = read_reply(reply.text, reply.finish_reason, judge.parser)
    return GreenResult(
        **vars(reading),
        judge=judge.signature,
        reference_score=read_reply(reply.text, reply.finish_reason, "reference").score,
        reply=reply.text,
        finish_reason=reply.finish_reason,
    )


def judge_on_all_processes(pairs: Sequence[Pair], judge: Judge, folder: str | Path) -> list[GreenResult]:
    """Judge pairs and return their results in order, to every process.

    Each process asks for its share of the batches, which are those of one process, and keeps replies as they come.

    Args:
        folder (`str` or `Path`): Where replies are kept; what it holds is not asked again.

    Raises:
        ConnectionError: if an endpoint keeps failing; replies so far are in `folder`.
    """
    import torch
    from accelerate import PartialState

    prompts = judge.prompts(pairs)
    batches = judge.backend.batches(list(dict.fromkeys(prompts)))
    state = PartialState(cpu=not torch.accelerator.is_available())
    with ReplyCache(folder) as replies:
        mine = batches[state.process_index :: state.num_processes]
        asyncio.run(_fetch(judge, replies, mine, show_progress=state.is_main_process))
        state.wait_for_everyone()
        replies.refresh()
        return [_result(judge, replies, prompt) for prompt in prompts]


def joint_egress(*marks: bool | None) -> bool | None:
    """Join what several files say of one report: each may forbid; a "yes" counts only where none does."""
    said = [mark for mark in marks if mark is not None]
    return next((mark for mark in said if mark is not True), True if said else None)


@dataclass(frozen=True)
class GreenRun:
    """What a finished run left behind; `failed` says why, per study without a reply."""

    out: Path
    manifest: Path
    summary: dict[str, Any]
    failed: dict[str, str]


def score_file(
    candidates: str | Path,
    out: str | Path,
    judge: Judge,
    *,
    references: str | Path | None = None,
    cache: str | Path | None = None,
) -> GreenRun:
    """Judge the rows of a JSONL file and write one scored row each, in the same order.

    Run under `accelerate launch` or torchrun, each process judges its share of the batches; the batches are those of
    one process, so the rows are the same. All processes return; the main one writes. Replies are kept as they come:
    a killed run goes on where it was, with any number of processes.

    Args:
        candidates (`str` or `Path`): Rows with study_id and candidate; reference and egress too, unless `references`
            has them. A study may have several candidates, one row each.
        out (`str` or `Path`): JSONL file to write. One with scores of another judge or of other reports is refused.
        references (`str` or `Path`, *optional*): Rows with study_id and reference.
        cache (`str` or `Path`, *optional*): Folder of replies, by default `<out>.replies`.
    """
    from accelerate import PartialState

    candidates, out = Path(candidates), Path(out)
    manifest = out.with_name(f"{out.stem}.manifest.json")
    rows = _join(_read_rows(candidates), candidates, None if references is None else Path(references))
    source = {
        "signature": judge.signature,
        "rows_sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }
    _refuse_others(out, manifest, source)
    pairs = [Pair(row["reference"], row["candidate"], row["egress"]) for row in rows]
    results = judge_on_all_processes(
        pairs, judge, out.with_name(f"{out.name}.replies") if cache is None else cache
    )
    summary, state = summarize(results), PartialState()
    if state.is_main_process:
        scored = [{"study_id": row["study_id"], **_to_row(result)} for row, result in zip(rows, results)]
        record = {
            **source,
            "judge": judge.backend.identity,
            "template": {"source": judge.template.source, "sha256": judge.template.sha256},
            "max_words": judge.max_words,
            "num_cut": _count_cut(pairs, judge.max_words),
            "num_processes": state.num_processes,
            "summary": summary,
        }
        # The manifest first: scores that a killed run left without one would be refused as those of another judge.
        replace_text(manifest, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        replace_text(out, to_lines(scored))
    state.wait_for_everyone()
    failed = {row["study_id"]: result.error for row, result in zip(rows, results) if result.error is not None}
    return GreenRun(out, manifest, summary, failed)


def _refuse_others(out: Path, manifest: Path, source: dict[str, str]) -> None:
    """Refuse to replace scores unless they are those of the same judge for the same reports."""
    if not out.exists():
        return
    found = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    if found.get("signature") != source["signature"]:
        raise ValueError(
            f"Scores of different judges are not mixed: `{out}` belongs to `{found.get('signature')}`, this run is "
            f"`{source['signature']}`. Name another output file."
        )
    if found.get("rows_sha256") != source["rows_sha256"]:
        raise ValueError(
            f"`{out}` holds the scores of other reports. Name another output file, or delete it: the replies so far "
            "are kept beside it, and only the new reports are judged."
        )


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = list(read_rows(path, ["study_id"]))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row["study_id"], str | int):
            raise ValueError(
                f"A `study_id` is text or a number, row {number} of `{path.name}` has a "
                f"{type(row['study_id']).__name__}. Name every study."
            )
    return rows


def _join(rows: list[dict[str, Any]], candidates: Path, references: Path | None) -> list[dict[str, Any]]:
    """Give every row its reference, from the reference file if there is one."""
    known = {} if references is None else {row["study_id"]: row for row in _read_rows(references)}
    joined = []
    for row in rows:
        source = known.get(row["study_id"], {}) if references is not None else row
        facts = {"reference": source.get("reference"), "candidate": row.get("candidate")}
        for name, text in facts.items():
            if not isinstance(text, str) or (name == "reference" and not text.strip()):
                place = references if name == "reference" and references is not None else candidates
                raise ValueError(
                    f"Every study needs the text of its {name}, study `{row['study_id']}` has none in `{place}`. "
                    "Add it, or leave the study out."
                )
        egress = joint_egress(row.get("egress"), source.get("egress"))
        joined.append({"study_id": row["study_id"], **facts, "egress": egress})
    return joined


def _to_row(result: GreenResult) -> dict[str, Any]:
    """Put what people look for first; the reply last."""
    row = asdict(result)
    judge, reply = row.pop("judge"), row.pop("reply")
    return {**row, "judge": judge, "reply": reply}


def _count_cut(pairs: Sequence[Pair], max_words: int | None) -> dict[str, int]:
    """Count the reports that were too long for the prompt."""
    limit = float("inf") if max_words is None else max_words
    return {
        "reference": sum(len(pair.reference.split()) > limit for pair in pairs),
        "candidate": sum(len(pair.candidate.split()) > limit for pair in pairs),
    }
