"""Rewards for TRL and metrics for the Trainer, from the same code that scores predictions.

TRL takes the functions by name, `trl grpo --reward_funcs hf_mu2.scoring.rewards.label_f1_reward ...`. Each gets the
completions and the dataset's column `reference`, and returns one number per completion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .clinical import clinical_columns, clinical_scores
from .findings import Findings, read_findings
from .hygiene import clean_candidate, clean_reference, is_chinese
from .lexical import LexicalScorer, Protocol
from .resampling import total

Completion = str | Sequence[Mapping[str, Any]]

# A reference is read once for all of its completions, in every step that draws it.
_read = lru_cache(maxsize=4096)(read_findings)


def label_f1_reward(
    completions: Sequence[Completion], reference: Sequence[str], **columns: Any
) -> list[float]:
    """Reward the F1 over the 18 finding labels; 1 for a normal report of a normal study."""
    return _per_report("report_f1", completions, reference)


def crg_reward(completions: Sequence[Completion], reference: Sequence[str], **columns: Any) -> list[float]:
    """Reward the CRG of each report for itself: 1 all right, 1/3 every finding missed, 1/5 at worst."""
    return _per_report("crg", completions, reference)


def batch_crg_reward(
    completions: Sequence[Completion], reference: Sequence[str], **columns: Any
) -> list[float]:
    """Reward what each report adds to the CRG of its batch: that of the batch, less that without the report.

    A batch balances rare findings against normal reports, which one report cannot. Differences are scaled by the size
    of the batch, so that they do not shrink with it. A batch of one gets its own CRG. A report that is empty or cannot
    be read counts as wrong in every label: it would else be right about all that a study does not show.
    """
    if len(completions) == 1:
        return crg_reward(completions, reference)
    counts = _counts(completions, reference)
    silent = ~np.array(_said(completions))
    counts["hits"][silent] = 0
    counts["predicted"][silent] = (counts["cells"] - counts["support"])[silent]
    whole = total(counts)
    without = {name: whole[name] - column for name, column in counts.items()}
    gain = clinical_scores(whole)["crg"] - clinical_scores(without)["crg"]
    return [float(value) if np.isfinite(value) else 0.0 for value in gain * len(completions)]


def length_penalty(
    completions: Sequence[Completion], reference: Sequence[str], **columns: Any
) -> list[float]:
    """Take away what a report is too long or too short: -|log2(words / reference words)|, at most -1.

    Half or twice the reference costs 1; a quarter more or less costs about .3.
    """
    penalties = []
    for completion, text in zip(completions, reference):
        words, expected = len(completion_text(completion).split()), len(clean_reference(text).split())
        penalties.append(-min(1.0, abs(float(np.log2(max(words, 1) / max(expected, 1))))))
    return penalties


def repetition_penalty(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """Take away the share of a report's 4-grams that it has said before: 0 for none, near -1 for a loop."""
    penalties = []
    for completion in completions:
        words = completion_text(completion).lower().split()
        grams = Counter(zip(*(words[start:] for start in range(4))))
        said = sum(grams.values())
        penalties.append(-(said - len(grams)) / said if said else 0.0)
    return penalties


def make_compute_metrics(
    tokenizer: Any, *, protocol: Protocol = "default", ignore_index: int = -100
) -> Callable[[Any], dict[str, float]]:
    """Make a `compute_metrics` for a Trainer whose predictions are token ids, e.g. with `predict_with_generate`.

    Args:
        tokenizer: Anything with `batch_decode`: a tokenizer or a processor.
        protocol (`str`): Of the text scores.
        ignore_index (`int`): What fills labels where no loss is taken.

    Returns:
        A function of an `EvalPrediction`; logits are refused, since their most likely tokens were chosen while looking
        at the reference.
    """

    def compute_metrics(evaluated: Any) -> dict[str, float]:
        predictions, labels = np.asarray(evaluated.predictions), np.asarray(evaluated.label_ids)
        if predictions.ndim != 2 or not np.issubdtype(predictions.dtype, np.integer):
            raise ValueError(
                f"Report metrics need generated token ids of shape (reports, tokens), got {predictions.dtype} of shape "
                f"{predictions.shape}. Generate in evaluation (`predict_with_generate=True`)."
            )
        pad = int(tokenizer.pad_token_id or 0)
        candidates, references = (
            tokenizer.batch_decode(np.where(ids == ignore_index, pad, ids), skip_special_tokens=True)
            for ids in (predictions, labels)
        )
        return report_metrics(candidates, references, protocol=protocol)

    return compute_metrics


def report_metrics(
    candidates: Sequence[str], references: Sequence[str], *, protocol: Protocol = "default"
) -> dict[str, float]:
    """Score one system without floors or intervals; empty references are left out, undefined scores too."""
    pairs = [
        (clean_candidate(candidate)[0], text)
        for candidate, reference in zip(candidates, references, strict=True)
        if (text := clean_reference(reference))
    ]
    if not pairs:
        raise ValueError(
            "Scoring needs references, got only empty ones. Check the column of the reference text."
        )
    mine, theirs = zip(*pairs)
    scorer = LexicalScorer(theirs, protocol=protocol)
    counts = clinical_columns([_read(text) for text in theirs], [_read(text) for text in mine])
    scores = scorer.scores(total(scorer.columns(mine))) | clinical_scores(total(counts))
    return {name: float(value) for name, value in scores.items() if np.isfinite(value)}


def _per_report(metric: str, completions: Sequence[Completion], reference: Sequence[str]) -> list[float]:
    """Score each report for itself. One that is empty or cannot be read earns nothing, of a normal study too."""
    values = clinical_scores(_counts(completions, reference))[metric]
    return [
        float(value) if said and np.isfinite(value) else 0.0
        for value, said in zip(values, _said(completions))
    ]


def _said(completions: Sequence[Completion]) -> list[bool]:
    """Tell which reports say anything that can be read."""
    return [bool(text := completion_text(completion)) and not is_chinese(text) for completion in completions]


def _counts(completions: Sequence[Completion], reference: Sequence[str]) -> dict[str, np.ndarray]:
    if len(completions) != len(reference):
        raise ValueError(
            f"Every completion needs its reference, got {len(completions)} and {len(reference)}. "
            "Keep the dataset's column `reference` (`remove_unused_columns=False`)."
        )
    theirs: list[Findings] = [_read(clean_reference(text)) for text in reference]
    return clinical_columns(theirs, [_read(completion_text(completion)) for completion in completions])


def completion_text(completion: Completion) -> str:
    """Return the answer of a completion, which TRL gives as text or as messages."""
    if isinstance(completion, str):
        return clean_candidate(completion)[0]
    content = completion[-1]["content"] if completion else ""
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    return clean_candidate(content)[0]
