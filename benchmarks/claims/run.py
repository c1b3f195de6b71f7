"""One run: a row of the grid on one seed, from its starting point to scored reports.

Reads: the studies and features of `ground.py`, and the checkpoint of the row it starts from.
Writes: `OUT/runs/<row>/<seed>/`: `recipe.yaml`, `run.json` and `curve.png` of the training, `model`,
`reports.jsonl`, `log.txt`, and last `done.json`. A run that was cut off is begun again; one that is done is left.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Collection
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from hf_mu2 import embedded_checkpoint
from hf_mu2.files import replace_text
from hf_mu2.model.volume_mu2 import OutOfDomainWarning
from hf_mu2.preference.pairs import PairRules, make_pairs
from hf_mu2.preference.sample import sample
from hf_mu2.preference.score import score
from hf_mu2.reporting.inference import Reader, load_reader
from hf_mu2.reporting.studies import open_studies
from hf_mu2.training.monitor import measure_image_dependence, order_by_findings
from hf_mu2.training.recipe import train_recipe

from .ground import Ground
from .measure import write_columns
from .rows import ROWS, Row, start_of

MAX_NEW_TOKENS = {"high": 420}  # reports of the others are shorter than this default
DEFAULT_NEW_TOKENS = 256
DEPENDENCE_STUDIES = 100
BATCH = 128  # small models: a step of 128 reports takes little longer than one of 16


def run_folder(ground: Ground, row: str, seed: int) -> Path:
    return ground.out / "runs" / row / str(seed)


def start_worker(threads: int) -> None:
    """Share the cores out between processes that run rows."""
    torch.set_num_threads(threads)


def run_one(ground: Ground, name: str, seed: int) -> float:
    """Do one run in a worker; return its seconds."""
    began = time.perf_counter()
    run_row(ground, ROWS[name], seed)
    return time.perf_counter() - began


def run_row(ground: Ground, row: Row, seed: int) -> None:
    """Train, write reports and count what scores are made of."""
    folder = run_folder(ground, row.name, seed)
    if is_done(ground, row.name, seed):
        return
    forget_what_starts_from(ground, row.name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "done.json").unlink(missing_ok=True)
    for path, text in recipes(ground, row, seed).items():
        replace_text(path, text)
    began = time.perf_counter()
    warnings.simplefilter("ignore", OutOfDomainWarning)  # phantoms with large hearts look like abdomens
    with (folder / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        checkpoint = train(ground, row, seed, folder)
        trained = time.perf_counter()
        read = {"validation_loss": validation_loss(checkpoint)}
        if not row.is_choice:
            read |= write_reports(ground, row, checkpoint, folder)
            write_columns(ground, row, folder)
    facts = {
        "row": row.name,
        "seed": seed,
        "commit": ground.commit,
        **environment(),
        "train_seconds": round(trained - began, 1),
        "seconds": round(time.perf_counter() - began, 1),
        **read,
    }
    replace_text(folder / "done.json", json.dumps(facts, indent=1) + "\n")


def is_done(ground: Ground, name: str, seed: int) -> bool:
    """Whether a run is done, with the recipes that its row has now."""
    return (run_folder(ground, name, seed) / "done.json").exists() and all(
        path.exists() and path.read_text() == text for path, text in recipes(ground, ROWS[name], seed).items()
    )


def forget_what_starts_from(ground: Ground, name: str, seed: int) -> None:
    """Drop the runs that started from an earlier end of this one."""
    for other, row in ROWS.items():
        for number in row.seeds:
            if start_of(other, number) == (name, seed):
                forget_what_starts_from(ground, other, number)
                shutil.rmtree(run_folder(ground, other, number), ignore_errors=True)


def environment() -> dict[str, str]:
    """Name what a run was done on."""
    device = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} per run"
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "datasets")}
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else device,
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "date": time.strftime("%Y-%m-%d"),
    }


def recipes(ground: Ground, row: Row, seed: int) -> dict[Path, str]:
    """Lay out the recipes of a run, one after the other: where each is written, and its text."""
    folder, before = run_folder(ground, row.name, seed), start_of(row.name, seed)
    start = None if before is None else run_folder(ground, *before) / "model"
    fields = {"dataset_name": str(folder / "pairs")} if row.prepare == "pairs" else {}
    texts = {}
    for number, step in enumerate(row.steps):
        out = folder / ("model" if number == len(row.steps) - 1 else f"step_{number}")
        path = folder / (f"recipe_{number}.yaml" if len(row.steps) > 1 else "recipe.yaml")
        text = recipe(ground, row, seed, start, out) | fields | step
        texts[path] = yaml.safe_dump(text, sort_keys=False)
        start = out
    return texts


def train(ground: Ground, row: Row, seed: int, folder: Path) -> Path:
    """Train the recipes of a row one after the other; return the last checkpoint."""
    before = start_of(row.name, seed)
    if row.prepare == "pairs":
        assert before is not None
        make_preferences(ground, run_folder(ground, *before) / "model", seed, folder)
    for path in recipes(ground, row, seed):
        out = Path(yaml.safe_load(path.read_text())["output_dir"])
        shutil.rmtree(out, ignore_errors=True)
        checkpoint = train_recipe(path)
        for leftover in (out / "start", out / "noise", *out.glob("checkpoint-*")):
            shutil.rmtree(leftover, ignore_errors=True)
    return checkpoint


def validation_loss(checkpoint: Path) -> float | None:
    """Return the loss of the validation studies after the last step of all, where the run evaluated."""
    evaluation = json.loads((checkpoint / "run.json").read_text())["evaluation"]
    return evaluation.get("eval_loss")


def recipe(ground: Ground, row: Row, seed: int, start: Path | None, out: Path) -> dict[str, Any]:
    """Lay out the recipe that all rows share, with the sizes of the protocol."""
    protocol = ground.protocol
    size = {"ordinary": protocol.train, "low": protocol.negative_train, "high": protocol.negative_train}
    studies = max(1, round(row.share * size.get(row.corpus, protocol.scan_train)))
    fields: dict[str, Any] = {
        "stage": "frozen_tower",
        "dataset_name": str(ground.folder(row.corpus)),
        "max_train_studies": studies,
        "max_eval_studies": protocol.validation,
        "monitor_studies": 32,
        "learning_rate": protocol.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "num_train_epochs": epochs(ground, row),
        "per_device_train_batch_size": protocol.batch_size,
        "per_device_eval_batch_size": 16,
        "gradient_checkpointing": False,
        "max_length": 1024,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        "eval_strategy": "steps",
        "eval_steps": 0.5,
        "save_strategy": "no",
        "logging_steps": 25,
        "report_to": "none",
        "cache_features": str(ground.features_folder),
        "output_dir": str(out),
    }
    if row.share < 1:  # which few studies are soon known by heart
        fields |= {
            "eval_steps": 0.25, "save_strategy": "steps", "save_steps": 0.25, "save_total_limit": 1,
            "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "monitor_studies": 2,
        }  # fmt: skip
    if row.corpus != "ordinary" or row.steps[0].get("objective") in ("dpo", "grpo"):
        fields["eval_strategy"] = "no"  # nothing is chosen there
        del fields["max_eval_studies"]
    objective = row.steps[0].get("objective")
    if objective == "dpo":
        del fields["max_train_studies"]
    if objective == "grpo":  # hands on volumes alone
        del (
            fields["cache_features"],
            fields["max_train_studies"],
            fields["num_train_epochs"],
            fields["max_length"],
        )
        fields |= {
            "corpus": "phantom_ct", "corpus_root": str(ground.folder(row.corpus)), "view": "online",
            "max_steps": protocol.online_steps, "num_generations": 8, "per_device_train_batch_size": 32,
            "max_completion_length": DEFAULT_NEW_TOKENS, "temperature": 1.0, "logging_steps": 1,
        }  # fmt: skip
        del fields["dataset_name"]
    if start is not None:
        return {"model_name_or_path": str(start), **fields}
    tower = ground.tower_folder(row.corpus)
    init = {
        "language_model": "embedded",
        "vision_tower": "embedded" if tower == embedded_checkpoint() else str(tower),
        "preset": "tiny",
        "seed": seed,
        "tokenizer_config": {**protocol.tokenizer, **row.tokenizer},
    }
    return {"init": init, **fields}


def epochs(ground: Ground, row: Row) -> float:
    """Repeat a small share of the studies until it has as many steps as a quarter of them has; steps share alike."""
    return ground.protocol.epochs * max(1.0, 0.25 / row.share) / len(row.steps)


def make_preferences(ground: Ground, start: Path, seed: int, folder: Path) -> None:
    """Sample candidates of training studies, score them by label-F1 and pair the best with the worst."""
    pairs = folder / "pairs"
    if pairs.exists():
        return
    for path in (*folder.glob("candidates.*"), *folder.glob("scored.*")):
        path.unlink()
    studies = open_studies(ground.folder("ordinary"), "train")
    studies = replace(studies, ids=studies.ids[: ground.protocol.preference_studies])
    candidates, scored = folder / "candidates.jsonl", folder / "scored.jsonl"
    reader = load_reader(start)
    sample(studies, candidates, reader, seed=seed, batch_size=8, max_new_tokens=DEFAULT_NEW_TOKENS)
    references = ground.folder("ordinary") / "train" / "metadata.jsonl"
    score(candidates, scored, {"label_f1": 1.0}, references=references)
    make_pairs(scored, pairs, PairRules(seed=seed), validation_share=0.0, with_figure=False)


# ---------------------------------------------------------------------------------------------------------- reports


def write_reports(ground: Ground, row: Row, checkpoint: Path, folder: Path) -> dict[str, float]:
    """Report the test studies and the pairs, and measure how far answers depend on the volume."""
    reader = load_reader(checkpoint)
    test = ground.rows(row.corpus, "test")
    groups = [test, ground.with_features(ground.pairs(), row.corpus)]
    lines = []
    for rows in groups:
        texts = answer(reader, rows, MAX_NEW_TOKENS.get(row.corpus, DEFAULT_NEW_TOKENS))
        lines += [
            {"study_id": study_id, "candidate": text} for study_id, text in zip(rows["study_id"], texts)
        ]
    replace_text(folder / "reports.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    collator = DataCollatorForVisionLanguageModeling(
        reader.processor, max_length=1024, completion_only_loss=True
    )
    order = order_by_findings([completion[0]["content"] for completion in test["completion"]])
    ordered = [test[index] for index in order][:: max(1, len(test) // DEPENDENCE_STUDIES)]
    with torch.autocast(reader.model.device.type, torch.bfloat16):
        return measure_image_dependence(reader.model, collator, ordered, 8)


def answer(reader: Reader, rows: Dataset, max_new_tokens: int) -> list[str]:
    """Write greedy reports."""
    texts = []
    for first in range(0, len(rows), BATCH):
        inputs = reader.prepare(
            [
                reader.processor.build_messages(row["images"], row["prompt"][-1]["content"])
                for row in rows.select(range(first, min(first + BATCH, len(rows))))
            ]
        )
        texts += [each.text for each in reader.answer(inputs, max_new_tokens)]
    return texts


def order_of_runs(names: list[str], seeds: tuple[int, ...]) -> list[tuple[str, int]]:
    """List the runs of rows in their order, what others start from first; a start nobody asked for comes along."""
    ordered: dict[tuple[str, int], None] = {}
    for is_start in (True, False):
        for run in ((name, seed) for name in names for seed in ROWS[name].seeds if seed in seeds):
            chain = [run]
            while (start := start_of(*chain[-1])) is not None:
                chain.append(start)
            ordered |= dict.fromkeys(reversed(chain[1:] if is_start else chain))
    return list(ordered)


def ready_runs(
    waiting: Collection[tuple[str, int]], running: Collection[tuple[str, int]]
) -> list[tuple[str, int]]:
    """List the runs of `waiting`, in its order, whose start is neither waiting nor running."""
    missing = {*waiting, *running}
    return [run for run in waiting if start_of(*run) not in missing]
