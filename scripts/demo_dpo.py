"""Compare the demo checkpoint before and after DPO, on studies that nobody sampled: the last step of `make demo-dpo`.

    python scripts/demo_dpo.py demo-dpo

Label-F1 was the judge, so that it may have been gamed. Beside it stand measures that nothing optimised: pairs of
phantoms that are one finding apart, side and size where both reports state them, how far the likelihood of a report
depends on the volume, different reports, and the length.

Reads: `prepared/test.jsonl`, `apart/test/metadata.jsonl`, `model` and the reports of both models
(`before_test.jsonl`, `after_apart.jsonl`, ...) in the folder of the demo.
Writes: `result.json` and `result.md` there.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from hf_mu2 import embedded_checkpoint
from hf_mu2.files import replace_text
from hf_mu2.preference.verdict import Change, compare, judge_gain, means, to_json, to_markdown
from hf_mu2.scoring.clinical import clinical_columns, clinical_scores
from hf_mu2.scoring.findings import read_findings
from hf_mu2.scoring.labels import label_reports
from hf_mu2.scoring.paired_change import paired_change
from hf_mu2.scoring.rewards import label_f1_reward
from hf_mu2.tables import read_rows
from hf_mu2.training.features import cache_features
from hf_mu2.training.monitor import measure_image_dependence, order_by_findings

JUDGE = "label F1"
# More is better in each, and nothing was optimised for it.
UNOPTIMISED = ("paired change", "side agreement", "size agreement", "image dependence", "unique reports")
GROUP = 2  # studies that pass their volumes on among themselves: the unit of image dependence


def report_columns(references: list[str], candidates: list[str]) -> dict[str, np.ndarray]:
    """Return (sum, count) per report of everything that is said of single reports."""
    columns = clinical_columns(
        [read_findings(text) for text in references], [read_findings(text) for text in candidates]
    )
    repeats = Counter(candidates)
    values = {
        JUDGE: label_f1_reward(candidates, references),
        "unique reports": [1 / repeats[text] for text in candidates],
        "words": [len(text.split()) for text in candidates],
    }
    counted = {name: np.column_stack([value, np.ones(len(candidates))]) for name, value in values.items()}
    return counted | columns


def report_scores(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    clinical = clinical_scores(sums)
    own = means([JUDGE, "unique reports", "words"])(sums)
    names = {
        "side_agreement": "side agreement",
        "size_agreement": "size agreement",
        "macro_f1": "label macro-F1",
    }
    return own | {shown: clinical[name] for name, shown in names.items()}


def pair_columns(rows: list[dict], candidates: dict[str, str]) -> dict[str, np.ndarray]:
    """Return (passed, 1) per pair of phantoms that differ in the presence of one finding."""
    facts = [json.loads(row["metadata"])["pair"] for row in rows]
    labels = label_reports([candidates[row["study_id"]] for row in rows])
    outcome = paired_change(labels[::2], labels[1::2], [fact["label"] for fact in facts[::2]])
    names = ("paired change", "changed finding named", "nothing else changed")
    ones = np.ones(len(outcome))
    return {name: np.column_stack([outcome[:, place], ones]) for place, name in enumerate(names)}


def dependence_columns(checkpoint: Path, work: Path) -> dict[str, np.ndarray]:
    """Return (loss under another's volume less that under the right one, 1) per group of neighbouring test studies."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    rows = load_dataset(str(work / "prepared"), split="test")
    rows = cache_features(model, processor, rows, work / "features")  # both have the same frozen tower
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    order = order_by_findings([row["completion"][-1]["content"] for row in rows])
    order = order[: len(order) // GROUP * GROUP]
    values = [
        measure_image_dependence(
            model, collator, [rows[place] for place in order[start : start + GROUP]], GROUP
        )["image_dependence"]
        for start in range(0, len(order), GROUP)
    ]
    return {"image dependence": np.column_stack([values, np.ones(len(values))])}


def candidates_of(path: Path) -> dict[str, str]:
    return {row["study_id"]: row["candidate"] for row in read_rows(path, ("study_id", "candidate"))}


def compare_models(work: Path) -> dict[str, Change]:
    """Measure both models on the same studies."""
    tests = list(read_rows(work / "prepared" / "test.jsonl"))
    apart = list(read_rows(work / "apart" / "test" / "metadata.jsonl"))
    references = [row["completion"][-1]["content"] for row in tests]
    checkpoints = {"before": embedded_checkpoint(), "after": work / "model"}
    of_reports, of_pairs, of_volumes = [], [], []
    for name, checkpoint in checkpoints.items():
        written = candidates_of(work / f"{name}_test.jsonl")
        of_reports.append(report_columns(references, [written[row["study_id"]] for row in tests]))
        of_pairs.append(pair_columns(apart, candidates_of(work / f"{name}_apart.jsonl")))
        of_volumes.append(dependence_columns(checkpoint, work))
    pairs = [row["patient_id"] for row in apart[::2]]
    groups = [str(number) for number in range(len(of_volumes[0]["image dependence"]))]
    return {
        **compare(*of_reports, [row["patient_id"] for row in tests], report_scores),
        **compare(*of_pairs, pairs, means(list(of_pairs[0]))),
        **compare(*of_volumes, groups, means(["image dependence"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder of the demo")
    work = parser.parse_args().work
    changes = compare_models(work)
    verdict, sentence = judge_gain(changes[JUDGE], {name: changes[name] for name in UNOPTIMISED})
    result = {"verdict": verdict, "sentence": sentence, "measures": to_json(changes)}
    replace_text(work / "result.json", json.dumps(result, indent=2) + "\n")
    text = f"{to_markdown(changes, JUDGE)}\n**{verdict[0].upper() + verdict[1:]}.** {sentence}\n"
    replace_text(work / "result.md", text)
    print(text)


if __name__ == "__main__":
    main()
