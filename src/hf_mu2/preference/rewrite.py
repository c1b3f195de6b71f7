"""Expand a corpus: paraphrases of its reports and questions about them, written by a language model and checked.

Reads: a corpus; an OpenAI-compatible endpoint.
Writes: a folder that `load_dataset` and `hf-mu2 train` open, as `data build` writes it, with the columns `source`
(`"original"`, `"rewrite"` or `"question"`), `rewrite` (its number within the study) and `status` (`"original"`,
`"checked"` or `"unchecked"`); `refused.jsonl`, the rewrites that were left out and why; `manifest.json`. Replies are
kept in `<out>.replies`, which holds report text and is no part of the folder.

Paraphrases per report: 8, as in the official code of mu2 (https://huggingface.co/papers/2507.00316).
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from hf_mu2.data.build import corpus_info, write_tables
from hf_mu2.data.corpus import CorpusError
from hf_mu2.data.export import MANIFEST, claim_folder, write_lines, write_parquet
from hf_mu2.data.views import impression_rows, report_text, sft_rows, view_features, vqa_rows
from hf_mu2.files import replace_text
from hf_mu2.scoring.judge_backends import EndpointBackend, is_loopback, refuse_egress
from hf_mu2.scoring.judge_cache import Reply, ReplyCache, fetch_replies, reply_key

from . import rewrite_check
from .rewrite_check import bare_words, check_paraphrase
from .rewrite_prompts import paraphrase_prompt, prompts_sha256, questions_prompt
from .rewrite_questions import check_questions

if TYPE_CHECKING:
    from datasets import Dataset, Features

View = Literal["sft", "impression", "study"]
Row = dict[str, Any]
REFUSED = "refused.jsonl"


@dataclass(frozen=True)
class Expansion:
    """What is asked for, and what is kept.

    Args:
        num_paraphrases (`int`): Per report.
        num_questions (`int`): Question-answer pairs per report, all in one request; needs volumes, so not with
            `"impression"`.
        splits (`tuple[str, ...]`): Whose reports are rewritten. Other splits keep their originals.
        view (`str`): What is written: `"sft"` (questions as further rows of it), `"impression"` (text alone) or
            `"study"`, which the views of `data/views.py` take.
        require_checked (`bool`): Leave out what no reader could check in full.
    """

    num_paraphrases: int = 8
    num_questions: int = 0
    splits: tuple[str, ...] = ("train",)
    view: View = "sft"
    require_checked: bool = False

    def __post_init__(self) -> None:
        if min(self.num_paraphrases, self.num_questions) < 0 or not self.num_paraphrases + self.num_questions:
            raise ValueError(
                "An expansion has paraphrases or questions, got "
                f"{self.num_paraphrases} and {self.num_questions}. Ask for at least one."
            )
        if self.num_questions and self.view == "impression":
            raise ValueError(
                f"Questions are asked of volumes, the view `{self.view}` has none, got {self.num_questions} questions. "
                "Ask for none, or choose the view `sft`."
            )

    def prompts(self, study: Row) -> list[str]:
        """Write what is asked about a study: every paraphrase in turn, then the questions; nothing without a row."""
        report = report_text(study)
        if not report or not self._rows(study):
            return []
        prompts = [paraphrase_prompt(report, number) for number in range(1, self.num_paraphrases + 1)]
        return prompts + [questions_prompt(report, self.num_questions)] * bool(self.num_questions)

    def _rows(self, study: Row) -> list[Row]:
        make_rows = {"sft": sft_rows, "impression": impression_rows, "study": lambda study: [dict(study)]}
        rows = make_rows[self.view](study)
        return [{"options": [], "kind": ""} | row for row in rows] if self.view == "sft" else rows

    def rows(self, study: Row, source: str, number: int, status: str) -> list[Row]:
        """Turn a study, or its rewrite, into the rows of the view."""
        rows = vqa_rows(study) if self.view == "sft" and source == "question" else self._rows(study)
        return [row | {"source": source, "rewrite": number, "status": status} for row in rows]

    def features(self, studies: Features) -> Features:
        """Return the columns of the output, given those of the studies."""
        from datasets import Features, Value

        added = {"source": Value("string"), "rewrite": Value("int32"), "status": Value("string")}
        if self.view == "study":
            return Features({**studies, **added})
        return Features(
            {**view_features("vqa" if self.view == "sft" else self.view, studies["images"]), **added}
        )


def rewrite_corpus(
    name: str,
    root: str | Path,
    out: str | Path,
    endpoint: EndpointBackend,
    expansion: Expansion | None = None,
    *,
    cache: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a corpus with rewrites of its reports.

    Every reply is on disk before the next is asked for: a killed run goes on where it was when it is started again,
    and asks for nothing twice. Calls that failed are asked again by the next run.

    Args:
        name, root, options: Of the corpus, as for `export_corpus`.
        out (`str` or `Path`): Folder to write, empty or begun with the same settings.
        endpoint (`EndpointBackend`): With a temperature above 0 and a seed; its host decides which texts it may see.
        expansion (`Expansion`, *optional*): What is asked for.
        cache (`str` or `Path`, *optional*): Folder of replies, by default `<out>.replies`.

    Returns:
        `dict`: the manifest: settings, `rows` by split, source and status, `refused` by reason, `num_failed`.

    Raises:
        ValueError: before anything is sent, if a text may not leave this machine and the endpoint is another one, or if
            a split has no report.
        ConnectionError: if the endpoint keeps failing; replies so far are kept.
    """
    from datasets import Dataset

    out, info = Path(out), corpus_info(name)
    expansion = expansion or Expansion()
    with TemporaryDirectory(prefix="hf_mu2_") as folder:
        survey, tables = write_tables(name, root, Path(folder), **options)
        studies = {part: Dataset.from_file(str(tables / f"{part}.arrow")) for part in survey.studies}
        wanted = {part: studies[part] for part in expansion.splits if part in studies}
        if missing := sorted(set(expansion.splits) - set(wanted)):
            raise CorpusError(
                f"A split must have studies, {missing} of `{name}` has none; there are "
                f"{survey.studies or 'no studies at all'}. See `hf-mu2 data inspect {name}`."
            )
        if not any(expansion.prompts(study) for dataset in wanted.values() for study in _plain(dataset)):
            raise CorpusError(
                f"Rewriting for the view `{expansion.view}` needs studies with a report and what it asks for, none "
                f"of {sorted(wanted)} of `{name}` has them. `hf-mu2 data inspect` counts texts and volumes."
            )
        refuse_egress(endpoint.host, [mark for part in wanted.values() for mark in part["egress"]])
        settings = {
            "corpus": name,
            "options": options,
            "rows_digest": survey.digest,
            "expansion": json.loads(json.dumps(asdict(expansion))),
            "model": endpoint.identity,
            "endpoint": "loopback" if is_loopback(endpoint.host) else "remote",
            "prompts_sha256": prompts_sha256(),
            "check": rewrite_check.VERSION,
        }
        claim_folder(out, settings)
        with ReplyCache(out.with_name(f"{out.name}.replies") if cache is None else cache) as replies:
            asyncio.run(_fetch(endpoint, replies, expansion, wanted))
            writer = _Writer(expansion, endpoint, replies)
            for part, dataset in studies.items():
                rows = writer.rows(part, _plain(dataset), is_rewritten=part in wanted)
                if expansion.view == "impression":
                    place = out / f"{part}.jsonl"
                    num_rows = write_lines(place, rows)
                else:
                    place = out / "data" / f"{part}-00000-of-00001.parquet"
                    num_rows = write_parquet(place, rows, expansion.features(dataset.features))
                if not num_rows:  # `load_dataset` does not open a split without rows
                    place.unlink()
    write_lines(out / REFUSED, writer.refused)
    manifest = {
        **settings,
        "complete": True,
        "rows": {part: dict(sorted(count.items())) for part, count in writer.counts.items()},
        "refused": dict(Counter(row["reason"] for row in writer.refused).most_common()),
        "num_failed": writer.num_failed,
        "licence": info.licence,
        "terms": info.terms,
        "root": Path(root).name,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {package: version(package) for package in ("hf-mu2", "datasets", "pyarrow")},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    replace_text(out / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


async def _fetch(
    endpoint: EndpointBackend, cache: ReplyCache, expansion: Expansion, studies: Mapping[str, Dataset]
) -> None:
    """Ask for every reply the cache lacks; studies are read as fast as they are answered."""
    batches = (
        [prompt]
        for dataset in studies.values()
        for study in _plain(dataset)
        for prompt in expansion.prompts(study)
    )
    most = sum(map(len, studies.values())) * (expansion.num_paraphrases + bool(expansion.num_questions))
    await fetch_replies(endpoint, cache, batches, endpoint.identity, total=most)


def _plain(dataset: Dataset) -> Iterator[Row]:
    """Yield rows as they are stored: a volume is a path, not an open file."""
    return (row for table in dataset.with_format("arrow").iter(batch_size=256) for row in table.to_pylist())


class _Writer:
    """Turns studies and the replies about them into rows, counting what is kept and listing what is not."""

    def __init__(self, expansion: Expansion, endpoint: EndpointBackend, cache: ReplyCache) -> None:
        self.expansion, self.endpoint, self.cache = expansion, endpoint, cache
        self.refused: list[Row] = []
        self.counts: dict[str, Counter[str]] = {}
        self.num_failed = 0

    def rows(self, split: str, studies: Iterable[Row], *, is_rewritten: bool) -> Iterator[Row]:
        """Yield the rows of a split: each study's own, then its paraphrases, then its questions."""
        counts = self.counts.setdefault(split, Counter())
        for study in studies:
            rows = self.expansion.rows(study, "original", 0, "original")
            if is_rewritten and (prompts := self.expansion.prompts(study)):
                rows += self._paraphrases(study, prompts[: self.expansion.num_paraphrases])
                for prompt in prompts[self.expansion.num_paraphrases :]:
                    rows += self._questions(study, prompt)
            for row in rows:
                counts[f"{row['source']} {row['status']}" if row["source"] != "original" else "original"] += 1
                yield row

    def _paraphrases(self, study: Row, prompts: list[str]) -> list[Row]:
        original = {name: text for name in ("findings", "impression") if (text := study[name].strip())}
        rows: list[Row] = []
        taken: set[str] = set()
        for number, prompt in enumerate(prompts, start=1):
            verdict = check_paraphrase(self._reply(prompt), original, study["region"], taken)
            if self._is_kept(
                study, "rewrite", number, prompt, verdict.status, verdict.reason, verdict.detail
            ):
                taken.add(bare_words(verdict.texts))
                rewritten = {**study, "sections": [], "questions": [], **verdict.texts}
                rows += self.expansion.rows(rewritten, "rewrite", number, verdict.status)
        return rows

    def _questions(self, study: Row, prompt: str) -> list[Row]:
        verdicts = check_questions(
            self._reply(prompt), report_text(study), study["region"], self.expansion.num_questions
        )
        rows: list[Row] = []
        for number, verdict in enumerate(verdicts, start=1):
            if self._is_kept(
                study, "question", number, prompt, verdict.status, verdict.reason, verdict.detail
            ):
                asked = study | {
                    "findings": "",
                    "impression": "",
                    "sections": [],
                    "questions": [dict(verdict.pair)],
                }
                rows += self.expansion.rows(asked, "question", number, verdict.status)
        return rows

    def _reply(self, prompt: str) -> Reply:
        key = reply_key(self.endpoint.identity, prompt)
        return self.cache.replies.get(key) or self.cache.failures.get(key) or Reply(error="not asked")

    def _is_kept(
        self, study: Row, source: str, number: int, prompt: str, status: str, reason: str, detail: str
    ) -> bool:
        if status == "unchecked" and self.expansion.require_checked:
            reason = "unchecked"
        elif status != "refused":
            return True
        self.num_failed += reason == "no reply"
        key = reply_key(self.endpoint.identity, prompt)
        self.refused.append(
            {"study_id": study["study_id"], "source": source, "rewrite": number, "reason": reason, "detail": detail,
             "reply": key}
        )  # fmt: skip
        return False
