"""What the reports of one run are scored by: sums per study, so that seeds and patients can be resampled later.

Reads: `reports.jsonl` of a run, references of the test studies.
Writes: `columns.npz` beside it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_mu2.data.phantom.folder import open_split
from hf_mu2.files import replacing
from hf_mu2.scoring.clinical import clinical_columns, clinical_scores
from hf_mu2.scoring.findings import Findings, read_findings
from hf_mu2.scoring.labels import LABELS, label_reports
from hf_mu2.scoring.lexical import LexicalScorer
from hf_mu2.scoring.paired_change import paired_change

from .ground import Ground

if TYPE_CHECKING:
    from .rows import Row

MEASURES = (
    "macro_f1", "report_f1", "coverage", "coverage_under_3mm", "coverage_3_to_6mm", "coverage_6_to_10mm",
    "coverage_over_10mm", "accuracy", "accuracy_all_negative", "crg", "bleu1", "bleu4", "rouge1", "rougeL", "meteor",
    "paired_change", "changed_finding", "side_agreement", "size_agreement", "image_dependence", "unique", "words",
)  # fmt: skip
# More is better in each, and no judge of ours was optimised for it.
UNOPTIMISED = (
    "bleu4", "rougeL", "meteor", "paired_change", "changed_finding", "side_agreement", "size_agreement",
    "image_dependence",
)  # fmt: skip


class References:
    """The test studies of a corpus: texts, patients, true labels."""

    def __init__(self, ground: Ground, corpus: str) -> None:
        test = open_split(ground.folder(corpus), "test")
        self.texts = [completion[0]["content"] for completion in test["completion"]]
        self.patients = list(test["patient_id"])
        truth = [[float(row[name]) for name in LABELS] for row in test["labels"]]
        read = [read_findings(text) for text in self.texts]
        self.findings = [
            replace(findings, labels=np.array(labels)) for findings, labels in zip(read, truth, strict=True)
        ]
        self.scorer = LexicalScorer(self.texts)

    def columns(self, candidates: list[str]) -> dict[str, np.ndarray]:
        """Count per study what scores are sums of."""
        repeats = Counter(candidates)
        each = {
            "unique": [1 / repeats[text] for text in candidates],
            "words": [float(len(text.split())) for text in candidates],
        }
        return (
            self.scorer.columns(candidates)
            | clinical_columns(self.findings, [_read(text) for text in candidates])
            | {name: np.column_stack([values, np.ones(len(values))]) for name, values in each.items()}
        )

    def scores(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Turn sums into `MEASURES`, as far as they are of single reports."""
        found = self.scorer.scores(sums) | clinical_scores(sums)
        found |= {name: sums[name][..., 0] / sums[name][..., 1] for name in ("unique", "words")}
        return {name: found[name] for name in MEASURES if name in found}


@cache
def _read(text: str) -> Findings:
    return read_findings(text)


def pair_columns(ground: Ground, candidates: list[str]) -> dict[str, np.ndarray]:
    """Count per pair whether the changed finding, and it alone, changed between the two reports."""
    facts = [json.loads(text)["pair"] for text in ground.pairs()["metadata"]]
    labels = label_reports(candidates)
    outcome = paired_change(labels[::2], labels[1::2], [fact["label"] for fact in facts[::2]]).astype(float)
    ones = np.ones(len(outcome))
    return {
        "paired_change": np.column_stack([outcome[:, 0], ones]),
        "changed_finding": np.column_stack([outcome[:, 1], ones]),
    }


def pair_scores(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: sums[name][..., 0] / sums[name][..., 1] for name in ("paired_change", "changed_finding")}


def write_columns(ground: Ground, row: Row, folder: Path) -> None:
    """Count the reports of a run: test studies first, then pairs."""
    lines = (folder / "reports.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["candidate"] for line in lines]
    references = References(ground, row.corpus)
    count = len(references.texts)
    columns = references.columns(texts[:count]) | pair_columns(ground, texts[count:])
    with replacing(folder / "columns.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]
