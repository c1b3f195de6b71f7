"""METEOR 1.5 as pycocoevalcap runs it: the jar aligns and counts, the formula is ours and sums over reports.

Its numbers lie far below NLTK's for the same texts (0.16 against 0.29): other weights, function words and paraphrases.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

# English, task "rank", of METEOR 1.5: what the jar takes with `-l en`.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


def count_meteor(candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Align tokenized texts with the jar.

    Returns:
        `np.ndarray` of shape `(texts, 23)`: lengths and function words of both texts, matches of both per stage
        (content and function words), chunks, and matched words of both; sums go to [`meteor_score`].
    """
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise ImportError(
            "METEOR 1.5 comes with the package `pycocoevalcap`, which is not installed. "
            'Run `pip install "hf_mu2[coco]"`, or leave out `java`.'
        )
    lines = [
        f"SCORE ||| {_plain(reference)} ||| {_plain(candidate)}\n"
        for candidate, reference in zip(candidates, references)
    ]
    run = subprocess.run(
        ["java", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"],
        cwd=Path(package.submodule_search_locations[0]) / "meteor",
        input="".join(lines),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    rows = [line.split() for line in run.stdout.splitlines()]
    if run.returncode or len(rows) != len(lines):
        raise RuntimeError(
            f"METEOR 1.5 answered {len(rows)} of {len(lines)} reports: {run.stderr.strip()[-300:] or 'no message'}. "
            "It needs 2 GB of memory; try again, or leave out `java`."
        )
    counts = np.array(rows, dtype=float).reshape(len(lines), 23)
    # A text that is its reference word by word is not fragmented: the jar drops its chunk, in corpus sums too.
    whole = (counts[:, 20] == 1) & (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1])
    counts[whole, 20] = 0
    return counts


def meteor_score(statistics: np.ndarray) -> np.ndarray:
    """Score sums of [`count_meteor`], `(..., 23)` -> `(...)`; of one report, or of a corpus as the jar does."""
    length, reference_length, function, reference_function = np.moveaxis(statistics[..., :4], -1, 0)
    stages = statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 4)
    chunks, matched, reference_matched = np.moveaxis(statistics[..., 20:], -1, 0)

    def weighted(content: np.ndarray, function_words: np.ndarray) -> np.ndarray:
        return _DELTA * content + (1 - _DELTA) * function_words

    with np.errstate(divide="ignore", invalid="ignore"):
        hits = (_STAGE_WEIGHTS * weighted(stages[..., 0], stages[..., 2])).sum(axis=-1)
        reference_hits = (_STAGE_WEIGHTS * weighted(stages[..., 1], stages[..., 3])).sum(axis=-1)
        precision = hits / weighted(length - function, function)
        recall = reference_hits / weighted(reference_length - reference_function, reference_function)
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = chunks / ((matched + reference_matched) / 2)
        score = mean * (1 - _GAMMA * fragmentation**_BETA)
    return np.where(np.isfinite(score), score, 0.0)


def _plain(text: str) -> str:
    return " ".join(text.replace("|||", "").split())
