"""Compare training without and with negatives on PhantomCT whose reports can mostly be written without looking.

    python scripts/compare_negatives.py --out compare-negatives

One seed, all arms from one start: `origin` (beta 0), `gauss` (noise), `heter` (the paper's draw of another patient),
`hard` (as few labels apart as can be, and alike) and, asked for, `balanced` (our draw) and `pair` (the same patient,
one finding apart). The start is the embedded checkpoint after a short SFT on the same reports; towers are frozen, so
features of volumes and of noise are computed once. Every step is resumable: kill it and call it again.

Reads: nothing; studies are computed from their seeds.
Writes: OUT with studies, features, a model per arm, `reports_<arm>.jsonl`, `result.json` and `table.md`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, List, Value
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from hf_mu2 import embedded_checkpoint
from hf_mu2.data.negatives import describe_draw
from hf_mu2.data.negatives_noise import write_gaussian_volumes
from hf_mu2.data.negatives_pool import study_candidates
from hf_mu2.data.negatives_rows import DrawnVolumes, GivenVolumes, NegativeVolumes
from hf_mu2.data.nifti import save_nifti
from hf_mu2.data.phantom import FIRST_SEED, make_pair, pair_labels, write_benchmark, write_pairs
from hf_mu2.data.phantom.benchmark import RESOLUTIONS
from hf_mu2.data.phantom.folder import open_split
from hf_mu2.files import replace_text
from hf_mu2.model.features_mu2 import is_features
from hf_mu2.reporting.inference import generate_greedily
from hf_mu2.scoring.clinical import clinical_columns, clinical_scores
from hf_mu2.scoring.findings import read_findings
from hf_mu2.scoring.labels import label_reports
from hf_mu2.scoring.paired_change import paired_change, paired_change_floor
from hf_mu2.scoring.resampling import bootstrap, interval, total
from hf_mu2.training.checkpoints import last_whole_checkpoint
from hf_mu2.training.features import cache_features
from hf_mu2.training.monitor import measure_image_dependence, order_by_findings
from hf_mu2.training.negative import NegativeConfig, NegativeLossTrainer
from hf_mu2.training.stages import Stage, freeze

ARMS = ("origin", "gauss", "heter", "hard", "balanced", "pair")
DEFAULT_ARMS = ARMS[:4]
# Tower features are cached; connector and language model learn together.
STAGE = Stage(None, 1.0, 1.0, "The tokenizer and the language model, from cached features.")
SCORES = ("macro_f1", "coverage", "accuracy", "words", "unique", "paired_change")
PAIR_SEED = FIRST_SEED["test"] + 10_000  # patients that the test split does not show


def with_images(rows: Dataset, images: list[list[str]]) -> Dataset:
    return rows.remove_columns("images").add_column("images", images, feature=List(Value("string")))


def write_one_finding_apart(rows: Dataset, folder: Path, shortcut: float) -> list[list[str]]:
    """Write for every study the same patient with one finding less or more, each finding in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    labels, images = pair_labels("presence"), []
    for number, row in enumerate(rows):
        path = folder / f"{row['study_id']}.nii.gz"
        if not path.exists():
            label = labels[number % len(labels)]
            pair = make_pair(
                json.loads(row["metadata"])["seed"],
                label,
                "presence",
                spacing=RESOLUTIONS["coarse"],
                text_shortcut=shortcut,
            )
            save_nifti((pair.first if row["labels"][label] else pair.second).nifti(), path)
        images.append([str(path)])
    return images


class Comparison:
    """The data and the settings that all arms share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.processor = AutoProcessor.from_pretrained(embedded_checkpoint())
        data, pairs = self.out / "phantoms", self.out / "pairs"
        sizes = {"train": options.studies, "test": options.test_studies}
        write_benchmark(data, sizes, resolution="coarse", text_shortcut=options.shortcut)
        write_pairs(
            pairs,
            options.pairs,
            PAIR_SEED,
            spacing=RESOLUTIONS["coarse"],
            text_shortcut=options.shortcut,
        )
        volumes = open_split(data, "train")
        self.candidates_of = volumes.remove_columns("images")
        self.train = self.features(volumes)
        self.test = self.features(open_split(data, "test"))
        self.pairs = self.features(open_split(pairs, "test"))
        self.volumes = volumes

    def features(self, rows: Dataset) -> Dataset:
        model = AutoModelForImageTextToText.from_pretrained(embedded_checkpoint())
        return cache_features(model, self.processor, rows, self.out / "features", batch_size=8)

    def negatives(self, arm: str) -> NegativeVolumes:
        """Find the volumes of an arm's negatives, as cached features."""
        if arm == "gauss":
            noise = list(write_gaussian_volumes(self.volumes, self.out / "noise", seed=self.options.seed))
            return GivenVolumes(self.features(with_images(self.volumes, noise))["images"])
        if arm == "pair":
            apart = write_one_finding_apart(self.volumes, self.out / "apart", self.options.shortcut)
            return GivenVolumes(self.features(with_images(self.volumes, apart))["images"])
        candidates = study_candidates(self.candidates_of)
        if arm == "hard":
            looks = {**candidates.__dict__, "appearance": self.looks()}
            candidates = type(candidates)(**looks)
        policy = {"heter": "paper"}.get(arm, arm)
        return DrawnVolumes(self.train, candidates, policy=policy, seed=self.options.seed)

    def looks(self) -> np.ndarray:
        """Average the tower's features of each training study."""
        vectors = []
        for row in self.train.select_columns("images"):
            assert is_features(row["images"][0])
            batch = self.processor.apply_chat_template(
                [[ask(row["images"], "Report.")]], tokenize=True, return_dict=True, return_tensors="pt"
            )
            vectors.append(batch["vision_hidden_states"].float().flatten(0, -2).mean(0).numpy())
        return np.stack(vectors)

    def train_arm(self, arm: str, start: Path, epochs: int, learning_rate: float) -> Path:
        """Train from `start`; an arm that is done is left as it is."""
        done = self.out / arm / "model"
        if (done / "trained.json").exists():
            return done
        options, beta = self.options, 0.0 if arm in ("start", "origin") else self.options.beta
        set_seed(options.seed)
        model = AutoModelForImageTextToText.from_pretrained(start)
        freeze(model, STAGE)
        config = NegativeConfig(
            str(self.out / arm / "run"),
            beta=beta,
            num_train_epochs=epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            max_length=1024,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="epoch",
            save_total_limit=1,
            logging_steps=5,
            seed=options.seed,
            disable_tqdm=True,
        )
        volumes = self.negatives(arm) if beta else None
        trainer = NegativeLossTrainer(
            model=model,
            args=config,
            train_dataset=self.train,
            processing_class=self.processor,
            stage=STAGE,
            volumes_of=volumes,
        )
        began = time.perf_counter()
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(config.output_dir))
        trainer.save_model(str(done))
        facts: dict[str, Any] = {
            "seconds": round(time.perf_counter() - began, 1),
            "log": trainer.state.log_history,
        }
        if isinstance(volumes, DrawnVolumes):
            facts["negatives"] = describe_draw(volumes.candidates, volumes.draw(0))
        replace_text(done / "trained.json", json.dumps(facts, indent=1))
        shutil.rmtree(self.out / arm / "run", ignore_errors=True)
        return done

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

        collator = DataCollatorForVisionLanguageModeling(
            self.processor, max_length=1024, completion_only_loss=True
        )
        return collator(rows)

    def write_reports(self, arm: str, checkpoint: Path) -> list[dict[str, Any]]:
        """Let a model report test studies and pairs, and measure how far it depends on the volume."""
        path = self.out / f"reports_{arm}.jsonl"
        if path.exists():
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
        order = order_by_findings([row["completion"][0]["content"] for row in self.test])
        dependence = measure_image_dependence(model, self.collate, [self.test[i] for i in order], 8)
        lines: list[dict[str, Any]] = [dependence]
        for rows in (self.test, self.pairs):
            for first in range(0, len(rows), 32):
                batch = [rows[i] for i in range(first, min(first + 32, len(rows)))]
                conversations = [[ask(row["images"], row["prompt"][-1]["content"])] for row in batch]
                inputs = self.processor.apply_chat_template(
                    conversations,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                    processor_kwargs={"padding": True, "padding_side": "left"},
                )
                answers = generate_greedily(model, self.processor, inputs, 700)
                lines += [
                    {"study_id": row["study_id"], "candidate": answer.text}
                    for row, answer in zip(batch, answers)
                ]
        replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        return lines


def ask(images: list[str], question: str) -> dict[str, Any]:
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    return {"role": "user", "content": content}


def columns_of(references: list[str], candidates: list[str]) -> dict[str, np.ndarray]:
    """Count per study what the scores are sums of."""
    columns = clinical_columns(
        [read_findings(text) for text in references], [read_findings(text) for text in candidates]
    )
    repeats = Counter(candidates)
    columns["words"] = np.array([[float(len(text.split())), 1.0] for text in candidates])
    columns["unique"] = np.array([[1 / repeats[text], 1.0] for text in candidates])
    return columns


def scores_of(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = clinical_scores(sums)
    kept = {name: found[name] for name in ("macro_f1", "coverage", "accuracy", "accuracy_all_negative")}
    for name in ("words", "unique", "paired_change"):
        if name in sums:
            kept[name] = sums[name][..., 0] / sums[name][..., -1]
    return kept


def score(comparison: Comparison, reports: dict[str, list[dict[str, Any]]], resamples: int) -> dict[str, Any]:
    """Score every arm with intervals over patients, and its difference to `origin` over the same resamples."""
    test, pairs = comparison.test.remove_columns("images"), comparison.pairs.remove_columns("images")
    references = [row["completion"][0]["content"] for row in test]
    changed = [json.loads(row["metadata"])["pair"]["label"] for row in pairs][::2]
    drawn: dict[str, dict[str, np.ndarray]] = {}
    result: dict[str, Any] = {}
    for arm, (dependence, *rows) in reports.items():
        texts = [row["candidate"] for row in rows]
        written, of_pairs = texts[: len(references)], label_reports(texts[len(references) :])
        columns = columns_of(references, written)
        passed = paired_change(of_pairs[::2], of_pairs[1::2], changed).astype(float)
        change = {"paired_change": np.column_stack([passed[:, 0], np.ones(len(passed))])}
        found = bootstrap(columns, list(test["patient_id"]), scores_of, num_resamples=resamples, seed=0)
        own_pairs = [str(number) for number in range(len(passed))]

        def rate(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"paired_change": sums["paired_change"][..., 0] / sums["paired_change"][..., 1]}

        found |= bootstrap(change, own_pairs, rate, num_resamples=resamples, seed=0)
        values = {name: float(value) for name, value in scores_of(total(columns)).items()}
        values["paired_change"] = float(passed[:, 0].mean())
        drawn[arm] = found
        floor = paired_change_floor(of_pairs[::2], of_pairs[1::2], changed)
        result[arm] = {
            "scores": {name: [values[name], *interval(found[name])] for name in SCORES},
            "accuracy_all_negative": values["accuracy_all_negative"],
            "paired_change_floor": float(floor[0]),
            "changed_label_right": float(passed[:, 1].mean()),
            "no_other_label_changes": float(passed[:, 2].mean()),
            **dependence,
        }
        if arm != "origin" and "origin" in drawn:
            result[arm]["difference"] = {
                name: verdict(
                    values[name] - result["origin"]["scores"][name][0],
                    *interval(found[name] - drawn["origin"][name]),
                )
                for name in SCORES
            }
            error = 1.96 * np.hypot(
                dependence["image_dependence_se"], result["origin"]["image_dependence_se"]
            )
            gain = dependence["image_dependence"] - result["origin"]["image_dependence"]
            result[arm]["difference"]["image_dependence"] = verdict(gain, gain - error, gain + error)
    return result


def verdict(difference: float, low: float, high: float) -> dict[str, Any]:
    says = "higher" if low > 0 else "lower" if high < 0 else "no difference"
    return {"difference": difference, "low": low, "high": high, "verdict": says}


def write_table(result: dict[str, Any]) -> str:
    """Lay results out as Markdown: values with 95 % intervals, then differences to `origin`."""
    names = [*SCORES, "image_dependence"]
    lines = [
        "| arm | " + " | ".join(names) + " | accuracy, all negative | paired change by chance |",
        "|---" * (len(names) + 3) + "|",
    ]
    for arm, row in result.items():
        cells = [
            f"{value:.3g} [{low:.3g}, {high:.3g}]"
            for value, low, high in (row["scores"][name] for name in SCORES)
        ]
        error = 1.96 * row["image_dependence_se"]
        cells.append(f"{row['image_dependence']:.3f} ± {error:.3f}")
        cells += [f"{row['accuracy_all_negative']:.3f}", f"{row['paired_change_floor']:.3f}"]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += ["", "| against origin | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for arm, row in result.items():
        if "difference" in row:
            cells = [
                f"{found['verdict']} ({found['difference']:+.3g} [{found['low']:+.3g}, {found['high']:+.3g}])"
                for found in (row["difference"][name] for name in names)
            ]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("compare-negatives"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(DEFAULT_ARMS))
    parser.add_argument("--studies", type=int, default=160, help="training studies")
    parser.add_argument("--test-studies", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--shortcut", type=float, default=0.9, help="text_shortcut of PhantomCT")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--start-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4, help="pairs")
    parser.add_argument("--start-learning-rate", type=float, default=1e-3)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    comparison = Comparison(options)
    print(f"data and features: {time.perf_counter() - began:.0f} s", flush=True)
    start = comparison.train_arm(
        "start", embedded_checkpoint(), options.start_epochs, options.start_learning_rate
    )
    print(f"start: {time.perf_counter() - began:.0f} s", flush=True)
    reports = {}
    for arm in sorted(options.arms, key=ARMS.index):
        checkpoint = comparison.train_arm(arm, start, options.epochs, options.learning_rate)
        reports[arm] = comparison.write_reports(arm, checkpoint)
        print(f"{arm}: {time.perf_counter() - began:.0f} s", flush=True)
    result = score(comparison, reports, options.resamples)
    settings = {name: str(value) for name, value in vars(options).items()}
    replace_text(options.out / "result.json", json.dumps({"settings": settings, "arms": result}, indent=1))
    table = write_table(result)
    replace_text(options.out / "table.md", table)
    print(table)


if __name__ == "__main__":
    main()
