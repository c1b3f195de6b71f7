"""Log-probabilities of preference pairs under a reference model, computed once for all runs that start from it.

Writes: `<cache>/<key>/settings.json`, what the numbers depend on beside the pair: weights of the reference, processor,
precision, length; the key hashes it. `<cache>/<key>/log-probs-*.jsonl`, one file per process and start, only ever
appended to, with a line per pair: a hash of its texts and volumes, and two sums. Half a line that a killed run left is
dropped.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_mu2.data.work_list import source_files, source_text
from hf_mu2.files import replace_text
from hf_mu2.model.features_mu2 import is_features
from hf_mu2.model.prepared_mu2 import is_prepared

if TYPE_CHECKING:
    from datasets import Dataset

    from .dpo import StageDPOTrainer

# What TRL calls them, in datasets and in batches.
LOG_PROB_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def add_log_probs(trainer: StageDPOTrainer, dataset: Dataset, cache: Path, batch_size: int) -> Dataset:
    """Add [`LOG_PROB_COLUMNS`] to pairs; those that the cache has are not computed again.

    Each process computes its share of the batches, and all read what all have written.

    Args:
        trainer (`StageDPOTrainer`): Before training; its reference is asked.
        cache (`Path`): Seen by all processes. Pairs or a reference that changed are computed anew.
    """
    settings = reference_settings(trainer)
    folder = cache / sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        replace_text(folder / "settings.json", json.dumps(settings, indent=2) + "\n")
    names = [pair_key(row) for row in dataset]
    known = read_log_probs(folder)
    todo = list({name: number for number, name in enumerate(names) if name not in known}.values())
    accelerator.wait_for_everyone()  # before any process writes, so that all see the same work
    if todo:
        _compute(trainer, dataset, names, todo, folder, batch_size)
        accelerator.wait_for_everyone()
        known = read_log_probs(folder)
    for column, values in zip(LOG_PROB_COLUMNS, zip(*(known[name] for name in names))):
        dataset = dataset.add_column(column, list(values))
    return dataset


def _compute(
    trainer: StageDPOTrainer,
    dataset: Dataset,
    names: list[str],
    todo: list[int],
    folder: Path,
    batch_size: int,
) -> None:
    """Ask the reference about the pairs of `todo` and append what it says."""
    from trl.models import prepare_deepspeed

    accelerator, rank = trainer.accelerator, trainer.accelerator.process_index
    batches = [todo[start : start + batch_size] for start in range(0, len(todo), batch_size)]
    # Sharded weights need all processes in every pass: one without a batch of its own repeats another's.
    mine = [
        batches[(first + rank) % len(batches)] for first in range(0, len(batches), accelerator.num_processes)
    ]
    num_own = len(batches[rank :: accelerator.num_processes])
    model = trainer.ref_model or trainer.model
    if trainer.ref_model is None and trainer.is_deepspeed_enabled:
        model = prepare_deepspeed(trainer.model, accelerator)
    was_training = model.training
    model.eval()
    loader = DataLoader(
        dataset,
        batch_sampler=mine,
        collate_fn=trainer.data_collator,
        num_workers=trainer.args.dataloader_num_workers,
    )
    bar = tqdm(loader, desc="reference", unit=" batches", disable=None if rank == 0 else True)
    with (folder / f"log-probs-{uuid.uuid4().hex}.jsonl").open("x", encoding="utf-8") as file:
        for number, batch in enumerate(bar):
            pairs = zip(
                *(
                    sums.tolist()
                    for sums in trainer.compute_ref_log_probs(model, trainer._prepare_inputs(batch))
                )
            )
            if number < num_own:
                lines = [
                    json.dumps({"pair": names[index], "chosen": chosen, "rejected": rejected}) + "\n"
                    for index, (chosen, rejected) in zip(mine[number], pairs)
                ]
                file.write("".join(lines))
                file.flush()
    model.train(was_training)


def reference_settings(trainer: StageDPOTrainer) -> dict[str, Any]:
    """Return what the log-probabilities of a pair depend on beside the pair."""
    arguments, processor = trainer.args, trainer.processing_class
    return {
        "weights": trainer._precompute_model_hash,
        "pixels": processor.image_processor.pixel_settings,
        "chat_template": sha256((processor.chat_template or "").encode()).hexdigest(),
        "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32",
        "max_length": arguments.max_length,
        "ld_alpha": arguments.ld_alpha,
    }


def pair_key(row: Mapping[str, Any]) -> str:
    """Hash the texts of a pair and its volumes: paths with the sizes and times of writing of their files."""
    texts = [row[name] for name in ("prompt", "chosen", "rejected")]
    volumes = next(value for name, value in row.items() if "image" in name)
    identities = [_identity(volume) for volume in (volumes if isinstance(volumes, list) else [volumes])]
    return sha256(json.dumps([texts, identities], sort_keys=True).encode()).hexdigest()[:32]


def _identity(volume: Any) -> Any:
    content = volume.get("bytes") if isinstance(volume, Mapping) else None
    if content is not None:
        return sha256(content).hexdigest()
    if is_features(volume) or is_prepared(volume):  # they name their content
        return volume["path"] if isinstance(volume, Mapping) else volume
    source = source_text(volume, "a pair")
    return [source, [(status.st_size, status.st_mtime_ns) for status in map(Path.stat, source_files(source))]]


def read_log_probs(folder: Path) -> dict[str, tuple[float, float]]:
    """Return (chosen, rejected) of every pair that a folder knows.

    Raises:
        ValueError: if a whole line is no pair.
    """
    known: dict[str, tuple[float, float]] = {}
    for path in sorted(folder.glob("log-probs-*.jsonl")):
        content = path.read_bytes()
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            try:
                row = json.loads(line)
                known[row["pair"]] = row["chosen"], row["rejected"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"Reference log-probabilities are JSON lines with pair, chosen and rejected, `{path}` is damaged. "
                    "Delete it: its pairs are computed again."
                ) from error
    return known
