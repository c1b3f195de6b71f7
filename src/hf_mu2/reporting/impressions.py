"""Derive impressions from findings with a language model: text only, greedy, batched, resumable (Radiology-Llama2).

Reads: rows of the `impression` view, or the reports that `predict` wrote; a checkpoint, or an adapter on one.
Writes: one JSON object per study (study_id, patient_id, reference, candidate, finish_reason), which `evaluate` reads,
and a manifest beside it.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import hf_mu2
from hf_mu2.data.build import CORPORA, load_corpus
from hf_mu2.data.prompts import IMPRESSION_INSTRUCTION
from hf_mu2.data.sections import split_sections
from hf_mu2.data.views import view_dataset
from hf_mu2.files import replace_file
from hf_mu2.reporting.environment import library_versions
from hf_mu2.reporting.inference import Answer, digest, generate_greedily, to_json
from hf_mu2.reporting.journal import Journal
from hf_mu2.reporting.report import Report

NOTICE = "Research software. Not a medical device."
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Writer:
    """A loaded language model: model, tokenizer, a name free of paths, a digest that tells it from its namesakes."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    digest: str

    def answer(self, conversations: list[list[dict[str, str]]], max_new_tokens: int) -> list[Answer]:
        """Generate greedily for conversations, padded on the left."""
        inputs = self.tokenizer.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
        ).to(self.model.device)
        return generate_greedily(self.model, self.tokenizer, inputs, max_new_tokens)


def load_writer(model: str | Path, device: torch.device | str | None = None) -> Writer:
    """Load a language model for inference, float32 on CPU and bfloat16 on an accelerator.

    Args:
        model (`str` or `Path`): Folder or Hub id of a causal language model, of a PEFT adapter, whose configuration
            names its base, or of a mu2 checkpoint; `"embedded"` is the demo checkpoint.
        device (`torch.device` or `str`, *optional*): Where to run; by default the first accelerator, else the CPU.

    Raises:
        ValueError: if the tokenizer has no chat template.
    """
    source = str(hf_mu2.embedded_checkpoint() if str(model) == "embedded" else model)
    device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"Findings are put to a model as a conversation, and the tokenizer of `{model}` has no chat template. "
            "Use a chat model, or set `tokenizer.chat_template` and save it."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    loaded = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32 if device.type == "cpu" else torch.bfloat16
    )
    folder = Path(source)
    weights = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.glob("*.safetensors"))
    ]
    name = folder.resolve().name if folder.exists() else source
    return Writer(loaded.eval().to(device), tokenizer, name, digest([name, weights]))


def open_findings(source: str, root: str | Path | None = None, split: str | None = None) -> Rows:
    """Open what impressions are derived from, as rows with `study_id` and `prompt`.

    Args:
        source (`str`): A corpus of `hf_mu2.data.build.CORPORA`, a folder of its `impression` view, or the JSONL of
            `predict`: there the findings are those of the candidate report.
        root (`str` or `Path`, *optional*): Folder of the corpus.
        split (`str`, *optional*): By default `"test"`.

    Raises:
        ValueError: if there is nothing of that name, or it holds no findings.
    """
    if source in CORPORA:
        return view_dataset(load_corpus(source, root or ".", split or "test"), "impression")
    if Path(source).suffix == ".jsonl":
        return _reports(Path(source))
    if not Path(source).is_dir():
        raise ValueError(
            f"Findings come from a corpus ({', '.join(CORPORA)}), a folder of its impression view or a JSONL of "
            f"reports, got `{source}`. Check the name."
        )
    rows = load_dataset(source, split=split or "test")
    if "images" in rows.column_names or "prompt" not in rows.column_names:
        raise ValueError(
            f"A folder of findings is of the impression view, `{source}` has the columns {rows.column_names}. "
            "Write it with `hf-mu2 data build CORPUS --view impression`."
        )
    return rows


def _reports(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        report = json.loads(line)
        if findings := _findings(report["candidate"]):
            rows.append({"study_id": report["study_id"], "prompt": _ask_for_impression(findings)})
    if not rows:
        raise ValueError(
            f"Impressions are derived from findings, no report of `{path.name}` has any. Pass the JSONL of `predict`."
        )
    return rows


def _findings(report: str) -> str:
    sections = dict(split_sections(report))
    return sections.get("findings") or sections.get("report") or ""


def _ask_for_impression(findings: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{IMPRESSION_INSTRUCTION}\n\nFindings: {findings}"}]


def follow_with_impression(report: Report, writer: Writer, max_new_tokens: int = 128) -> Report:
    """Give a report the impression that a language model derives from its findings, in place of its own.

    Raises:
        ValueError: if the report has no findings.
    """
    findings = _findings(report.text)
    if not findings:
        raise ValueError(
            f"An impression is derived from findings, the report of `{report.study_id}` has none. Leave out "
            "`--impression-model`, or ask for findings."
        )
    answer = writer.answer([_ask_for_impression(findings)], max_new_tokens)[0]
    impression = _impression(answer.text)
    return replace(
        report,
        text=f"Findings: {findings}\nImpression: {impression}",
        run={
            **report.run,
            "impression_model": writer.name,
            "impression_model_revision": writer.digest,
            "impression_finish_reason": answer.finish_reason,
        },
    )


def _impression(answer: str) -> str:
    """Take the impression out of an answer, which a model that writes whole reports puts under a heading."""
    return dict(split_sections(answer)).get("impression") or answer


def write_impressions(
    rows: Rows,
    out: str | Path,
    writer: Writer,
    *,
    batch_size: int = 16,
    max_new_tokens: int = 128,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Derive an impression for every row and write them in the rows' order. A killed run continues.

    Args:
        rows: Rows with `study_id` and `prompt`, and where known `patient_id` and the reference as `completion`.
        out (`str` or `Path`): JSONL file to write; the manifest goes beside it.
        writer (`Writer`): From `load_writer`.

    Returns:
        `dict`: the manifest.

    Raises:
        ValueError: if `out` exists, or an unfinished one belongs to another model, other rows or other settings.
    """
    out, started = Path(out), time.perf_counter()
    keys = [f"{index}:{row['study_id']}" for index, row in enumerate(rows)]
    settings = {
        "model": writer.name,
        "model_digest": writer.digest,
        "prompts_digest": digest([row["prompt"] for row in rows]),
        "max_new_tokens": max_new_tokens,
        "decoding": "greedy",
    }
    journal = Journal(out, settings)
    num_resumed = len(journal.finished)
    todo = [index for index, key in enumerate(keys) if key not in journal.finished]
    # Prompts of a batch are about equally long: less padding, and no prompt waits for a long one.
    todo.sort(key=lambda index: len(rows[index]["prompt"][-1]["content"]))
    with tqdm(total=len(todo), unit="study", disable=not show_progress) as bar:
        for start in range(0, len(todo), batch_size):
            indices = todo[start : start + batch_size]
            answers = writer.answer([rows[index]["prompt"] for index in indices], max_new_tokens)
            journal.add({keys[index]: _row(rows[index], answer) for index, answer in zip(indices, answers)})
            bar.update(len(indices))
    written = [journal.finished[key] for key in keys]
    manifest = {
        "notice": NOTICE,
        **settings,
        "num_studies": len(written),
        "num_cut_off": sum(row["finish_reason"] == "length" for row in written),
        "num_resumed": num_resumed,
        "batch_size": batch_size,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": library_versions(),
    }
    replace_file(out.with_name(f"{out.stem}.manifest.json"), to_json(manifest))
    journal.close(keys)
    return manifest


def _row(row: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    facts = {"study_id": row["study_id"], "patient_id": row.get("patient_id") or row["study_id"]}
    if row.get("completion"):
        facts["reference"] = row["completion"][-1]["content"]
    return facts | {"candidate": answer.text, "finish_reason": answer.finish_reason}
