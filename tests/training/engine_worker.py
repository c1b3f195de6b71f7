"""One process of a training run, for `test_engines.py`: trains a recipe and writes what it saw as JSON.

Run by Python for one process, by torchrun for several; arguments are a recipe, and fields that override it.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hf_mu2.training.recipe import open_datasets, open_model, parse_recipe
from hf_mu2.training.sft import StageSFTTrainer
from hf_mu2.training.stages import stage_of


class WatchedTrainer(StageSFTTrainer):
    """Notes of every batch how many volumes it holds, and how many frames they have."""

    def training_step(self, model, inputs, *args, **kwargs):
        volumes = inputs.get("pixel_values")
        self.seen = [*self.seen, [0, 0] if volumes is None else list(volumes.shape[:2])]
        return super().training_step(model, inputs, *args, **kwargs)

    seen: list[list[int]] = []


def main(recipe: str, *overrides: str) -> None:
    arguments, training, model_arguments = parse_recipe(recipe, overrides)
    stage = stage_of(arguments.stage)
    rows, _ = open_datasets(arguments, training, stage)
    model, processor = open_model(arguments, training, model_arguments, stage)
    training.model_init_kwargs = None
    trainer = WatchedTrainer(
        model=model, args=training, train_dataset=rows, processing_class=processor, stage=stage
    )
    trainer.train()
    parameters = list(trainer.model.parameters())
    facts = {
        "world_size": dist.get_world_size() if dist.is_initialized() else 1,
        "backend": dist.get_backend() if dist.is_initialized() else None,
        "wrapped": type(trainer.model_wrapped).__name__,
        "sharded": sum(isinstance(parameter, DTensor) for parameter in parameters),
        "whole": sum(not isinstance(parameter, DTensor) for parameter in parameters),
        "held": sum(
            (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()
            for parameter in parameters
        ),
        "seen": trainer.seen,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    out = Path(training.output_dir)
    trainer.save_model(str(out))
    if facts["sharded"]:
        trainer.model.save_pretrained(out / "shards", distributed_checkpoint=True)
    (out / f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(facts))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
