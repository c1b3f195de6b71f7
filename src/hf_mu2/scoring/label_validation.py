"""Measure the labeler against labels given by a person.

The rules were developed on 800 reports of CT-RATE, so a score on those is a development score. Two things temper it:
intervals over reports, and folds in which every wording must have earned its place outside the fold. On reports that
played no part in the rules the score is a validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .clinical import f1_table
from .label_rules import RULES
from .labels import LABELS, VERSION, compile_rules, label_reports, mentions_in
from .resampling import bootstrap, interval
from .statements import even_text, sentences


def validate_labels(
    texts: Sequence[str],
    labels: np.ndarray,
    *,
    folds: int = 5,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare rule labels with given ones.

    Args:
        texts (`Sequence[str]`): Reports.
        labels (`np.ndarray` of shape `(reports, 18)`): 0 and 1, in the order of `LABELS`.
        folds (`int`): Report number `i` is of fold `i % folds`; the order is shuffled by `seed` first.
        num_resamples (`int`): Bootstrap resamples of reports.
        seed (`int`): Decides folds and resamples.

    Returns:
        `dict`: `labeler`, `reports`, `labels`, `micro`, `macro_f1` (of `f1_table`), `intervals` (95 %, of `micro_f1`
        and `macro_f1`), `folds` (per fold `reports`, `micro_f1`, `macro_f1`) and `cross_validated`: the same scores
        and intervals when a fold is labelled only with wordings that are right more often than wrong in the others.
    """
    labels = np.asarray(labels)
    if len(texts) != len(labels) or labels.shape[1:] != (len(LABELS),) or not 2 <= folds <= len(labels):
        raise ValueError(
            f"Validation needs a row of {len(LABELS)} labels per report, and between 2 folds and one per report; "
            f"got {len(texts)} reports, labels of shape {labels.shape} and {folds} folds."
        )
    predicted = label_reports(texts)
    fold = np.empty(len(texts), dtype=int)
    fold[np.random.default_rng(seed).permutation(len(texts))] = np.arange(len(texts)) % folds
    held_out = _cross_validated(texts, labels, fold)
    table = f1_table(labels, predicted)
    return {
        "labeler": VERSION,
        "reports": len(texts),
        "labels": table["labels"],
        "micro": table["micro"],
        "macro_f1": table["macro_f1"],
        "intervals": _intervals(labels, predicted, num_resamples, seed),
        "folds": [
            {
                "reports": int((fold == number).sum()),
                "micro_f1": (part := f1_table(labels[fold == number], predicted[fold == number]))["micro"][
                    "f1"
                ],
                "macro_f1": part["macro_f1"],
            }
            for number in range(folds)
        ],
        "cross_validated": {
            "micro_f1": (part := f1_table(labels, held_out))["micro"]["f1"],
            "macro_f1": part["macro_f1"],
            "intervals": _intervals(labels, held_out, num_resamples, seed),
        },
    }


def _cross_validated(texts: Sequence[str], labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Label each fold with the wordings that, in the other folds, are of positive reports at least half of the time."""
    single = [replace(rule, mention=(wording,)) for rule in RULES for wording in rule.mention]
    columns = np.array([LABELS.index(rule.label) for rule in single])
    fires = np.zeros((len(texts), len(single)), dtype=bool)
    compiled = [compile_rules((rule,)) for rule in single]
    known: dict[str, list[int]] = {}
    for row, report in enumerate(texts):
        text = even_text(report).clean
        for start, end in sentences(text):
            sentence = text[start:end]
            if sentence not in known:
                known[sentence] = [
                    number
                    for number, rules in enumerate(compiled)
                    if any(mention.status != "negative" for mention in mentions_in(sentence, rules))
                ]
            fires[row, known[sentence]] = True
    right = fires & labels[:, columns].astype(bool)
    held_out = np.zeros_like(labels)
    for number in range(fold.max() + 1):
        others = np.not_equal(fold, number)
        earned = right[others].sum(axis=0) * 2 >= np.maximum(fires[others].sum(axis=0), 1)
        for column in range(len(LABELS)):
            kept = fires[:, earned & (columns == column)].sum(axis=1) > 0
            held_out[~others, column] = kept[~others]
    return held_out


def _intervals(
    labels: np.ndarray, predicted: np.ndarray, num_resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    def scores(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        hits, given, found = sums["hits"], sums["given"], sums["found"]
        with np.errstate(invalid="ignore"):
            per_label = np.where(given > 0, 2 * hits / (given + found), np.nan)
            micro = 2 * hits.sum(axis=-1) / (given + found).sum(axis=-1)
            # A resample without any finding has no average.
            macro = np.nansum(per_label, axis=-1) / (given > 0).sum(axis=-1)
        return {"micro_f1": micro, "macro_f1": macro}

    columns = {"hits": labels & predicted, "given": labels, "found": predicted}
    drawn = bootstrap(
        {name: column.astype(float) for name, column in columns.items()},
        [str(number) for number in range(len(labels))],
        scores,
        num_resamples=num_resamples,
        seed=seed,
    )
    return {name: interval(values) for name, values in drawn.items()}
