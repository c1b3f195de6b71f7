"""Does supervising where the tokenizer looks make it look there, and does the report gain? One training per weight.

    python benchmarks/evidence_loss.py --work WORK_DIR [--weights 0 0.1 --out docs/results/evidence_loss]

Every weight trains the tokenizer of the embedded checkpoint on PhantomCT (recipe `evidence-ct-rate-tiny`), from the
same start, on the same cached features, in the same order. On test studies, which nothing here was chosen by:

- mass: which share of what the visual tokens read lies inside the lesion (share of the mix times share of the patch);
- pointing: does the patch that is read most hold a voxel of it;
- the same for the smaller half of the lesions, by what they fill of the patches;
- macro-F1 over the labels of written reports, and the loss of the reference report in nats per token.

Intervals: 1,000 bootstraps over studies; differences are paired. Resumable; `--only W` works on one weight alone, so
several processes can share the work.

Reads: nothing, or a folder of phantoms with `--phantoms`.
Writes: checkpoints and rows in WORK_DIR; the table at `--out`.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from hf_mu2 import embedded_checkpoint
from hf_mu2.data.phantom import write_benchmark
from hf_mu2.data.views import view_dataset
from hf_mu2.explain.value_path import watch_reading
from hf_mu2.files import replace_text
from hf_mu2.scoring.labels import LABELS, label_reports
from hf_mu2.scoring.resampling import bootstrap, interval, total
from hf_mu2.training.evidence_loss import (
    LESION_SHARE,
    EvidenceCollator,
    add_lesion_shares,
    evidence_losses,
    find_lesion_masks,
)
from hf_mu2.training.features import cache_features
from hf_mu2.training.monitor import answer_losses, answer_of
from hf_mu2.training.recipe import open_studies, parse_recipe, train_recipe
from hf_mu2.training.stages import STAGES, freeze

RECIPE = "evidence-ct-rate-tiny"
NOTICE = "Synthetic CT only. Research use, not a medical device."


def fields(arguments: argparse.Namespace, weight: float) -> list[str]:
    return [
        f"--corpus_root={arguments.phantoms}",
        f"--cache_features={arguments.work / 'features'}",
        f"--max_train_studies={arguments.studies}",
        f"--num_train_epochs={arguments.epochs}",
        "--per_device_train_batch_size=8",
        "--eval_strategy=no",
        "--logging_steps=5",
        f"--evidence_weight={weight}",
        f"--output_dir={arguments.work / f'weight-{weight}'}",
    ]


@torch.no_grad()
def study_rows(arguments: argparse.Namespace, checkpoint: Path) -> list[dict[str, Any]]:
    """Read the test studies: what is looked at, what is written."""
    recipe, _, _ = parse_recipe(RECIPE, fields(arguments, 0.0))
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    config = model.config
    rows = view_dataset(open_studies(recipe, "test", arguments.test_studies), "sft")
    rows = find_lesion_masks(rows, recipe, "test")
    rows = add_lesion_shares(rows, processor.image_processor, config.vision_config.patch_size)
    rows = cache_features(model, processor, rows, arguments.work / "features")
    patches = int(np.prod(config.tokenizer_config.frame_grid))
    collate = EvidenceCollator(
        DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True), patches
    )
    found = []
    for start in range(0, len(rows), 8):
        chosen = [rows[i] for i in range(start, min(start + 8, len(rows)))]
        references = [answer_of(row) for row in chosen]
        asked = [[{"role": "user", "content": row["prompt"][-1]["content"]}] for row in chosen]
        images = [row["images"] for row in chosen]
        batch = collate([dict(row) for row in chosen])
        lesions, labels = batch.pop(LESION_SHARE), batch.pop("labels")
        with watch_reading(model) as readings:
            losses = answer_losses(model(**batch).logits, labels)
        (reading,) = readings
        prompts = processor.apply_chat_template(
            [
                [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "image": image[0]},
                            {"type": "text", "text": turns[0]["content"]},
                        ],
                    }
                ]
                for turns, image in zip(asked, images)
            ],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        )
        ids = model.generate(**prompts, max_new_tokens=256, do_sample=False)
        texts = processor.batch_decode(ids[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        anatomy = batch["pixel_attention_mask"].repeat_interleave(
            patches // batch["pixel_attention_mask"].shape[2], 2
        )
        for number, row in enumerate(chosen):
            share, read = lesions[number].flatten(), reading[number].flatten()
            found.append(
                {
                    "study_id": row["study_id"],
                    "lesion_patches": float(share.sum()),
                    "mass": float((share * read).sum()),
                    "hit": float(share[read.argmax()] > 0),
                    "even_mass": float(share.sum() / anatomy[number].sum()),
                    "even_hit": float((share > 0).sum() / anatomy[number].sum()),
                    "loss": float(losses[number]),
                    "text": texts[number].strip(),
                    "reference": references[number],
                }
            )
    return found


def measure(columns: dict[str, np.ndarray], ids: list[str], scores: Callable) -> dict[str, dict[str, float]]:
    """Score all studies, with the interval over them."""
    values = scores({name: column[None] for name, column in total(columns).items()})
    draws = bootstrap(columns, ids, scores, num_resamples=1000, seed=0)
    return {
        name: {"value": float(value[0]), **dict(zip(("low", "high"), interval(draws[name])))}
        for name, value in values.items()
    }


def statistics(rows: list[dict[str, Any]], is_small: np.ndarray) -> dict[str, np.ndarray]:
    """Turn studies into sums that scores come from."""
    written = label_reports([row["text"] for row in rows]) == 1
    true = label_reports([row["reference"] for row in rows]) == 1
    has_lesion = np.array([row["lesion_patches"] > 0 for row in rows])
    columns = {"tp": written & true, "fp": written & ~true, "fn": ~written & true}
    for name, kept in (("all", has_lesion), ("small", has_lesion & is_small)):
        facts = [[row["mass"], row["hit"], row["even_mass"], row["even_hit"], 1.0] for row in rows]
        columns[name] = np.array(facts) * kept[:, None]
    columns["loss"] = np.array([[row["loss"], 1.0] for row in rows])
    return {name: column.astype(float) for name, column in columns.items()}


def scores_of(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    f1 = 2 * sums["tp"] / np.maximum(2 * sums["tp"] + sums["fp"] + sums["fn"], 1)
    found = {}
    for group, words in (("all", ""), ("small", ", smaller half")):
        means = sums[group][..., :4] / np.maximum(sums[group][..., 4:], 1)
        for index, name in enumerate(("mass", "pointing", "mass, even reading", "pointing, even reading")):
            found[name + words] = means[..., index]
    found["macro-F1"] = f1.mean(axis=-1)
    found["loss"] = sums["loss"][..., 0] / sums["loss"][..., 1]
    return found


def summarise(arms: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    first = next(iter(arms.values()))
    ids = [row["study_id"] for row in first]
    sizes = np.array([row["lesion_patches"] for row in first])
    is_small = sizes <= np.median(sizes[sizes > 0])
    columns = {name: statistics(rows, is_small) for name, rows in arms.items()}
    base = columns["0.0"]

    def differences(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        own, its = (
            scores_of({name[2:]: sums[name] for name in sums if name[0] == side}) for side in ("a", "b")
        )
        return {name: own[name] - its[name] for name in own}

    return {
        "studies": len(ids),
        "studies with a lesion": int((sizes > 0).sum()),
        "labels": len(LABELS),
        "weights": {name: measure(own, ids, scores_of) for name, own in columns.items()},
        "difference to 0": {
            name: measure(
                {f"a {key}": value for key, value in own.items()}
                | {f"b {key}": value for key, value in base.items()},
                ids,
                differences,
            )
            for name, own in columns.items()
            if name not in ("0.0", "start")
        },
    }


def to_markdown(summary: dict[str, Any]) -> str:
    def cell(figure: dict[str, float]) -> str:
        return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"

    weights, changes = summary["weights"], summary["difference to 0"]
    heads = [*(name if name == "start" else f"weight {name}" for name in weights)]
    heads += [f"{name} less 0" for name in changes]
    lines = [f"# Evidence loss on PhantomCT\n\n{summary['notice']}\n\n`{summary['command']}`\n"]
    lines.append(f"{summary['studies']} test studies, {summary['studies with a lesion']} with a lesion.\n")
    lines += [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in weights["0.0"]:
        cells = [cell(arm[name]) for arm in (*weights.values(), *changes.values())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cost(arguments: argparse.Namespace, steps: int = 2) -> dict[str, float]:
    """Measure CPU seconds of forward and backward of one batch of 8 cached studies, without and with the loss."""
    recipe, _, _ = parse_recipe(RECIPE, fields(arguments, 0.0))
    model = AutoModelForImageTextToText.from_pretrained(embedded_checkpoint()).train()
    freeze(model, STAGES["tokenizer"])
    processor = AutoProcessor.from_pretrained(embedded_checkpoint())
    rows = view_dataset(open_studies(recipe, "train", 8), "sft")
    rows = cache_features(model, processor, rows, arguments.work / "features")
    batch = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(list(rows))
    lesions = torch.rand(batch["vision_hidden_states"].shape[:3])
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(steps):
        for name, times in seconds.items():
            start = time.process_time()
            with watch_reading(model) if name == "with" else nullcontext([]) as readings:
                loss = model(**batch).loss
            if readings:
                loss = loss + evidence_losses(readings[0], lesions).mean()
            loss.backward()
            times.append(time.process_time() - start)
    return {name: min(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--phantoms", type=Path, help="A folder of `hf-mu2 phantom --size small`, coarse.")
    parser.add_argument("--studies", type=int, default=160)
    parser.add_argument("--test-studies", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--only", help="A weight, or `start` for the checkpoint as it is.")
    parser.add_argument(
        "--cost", action="store_true", help="Print CPU seconds per step without and with the loss."
    )
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md from all rows in WORK_DIR.")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.phantoms is None:
        arguments.phantoms = write_benchmark(arguments.work / "phantoms", "small", resolution="coarse")
    if arguments.cost:
        print(json.dumps(cost(arguments)))
        return
    names = ["start", *map(str, arguments.weights)]
    for name in [arguments.only] if arguments.only else names:
        path = arguments.work / f"rows-{name}.json"
        if not path.exists():
            checkpoint = Path(embedded_checkpoint())
            if name != "start":
                checkpoint = train_recipe(RECIPE, fields(arguments, float(name)))
            replace_text(path, json.dumps(study_rows(arguments, checkpoint), indent=1))
    if not arguments.out:
        return
    arms = {name: json.loads((arguments.work / f"rows-{name}.json").read_text()) for name in names}
    command = (
        f"python benchmarks/evidence_loss.py --work WORK_DIR --studies {arguments.studies} --test-studies "
        f"{arguments.test_studies} --epochs {arguments.epochs} --weights "
        f"{' '.join(map(str, arguments.weights))} --out OUT"
    )
    summary = {"notice": NOTICE, "command": command} | summarise(arms)
    replace_text(arguments.out.with_suffix(".json"), json.dumps(summary, indent=1) + "\n")
    replace_text(arguments.out.with_suffix(".md"), to_markdown(summary))
    print(to_markdown(summary))


if __name__ == "__main__":
    main()
