"""The record of a training run: what a model card needs to say how a model came to be.

Writes: `run.json` in the output folder, at the start and at the end of the run.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_mu2.files import replace_text

from .stages import describe_parts

if TYPE_CHECKING:
    from transformers import Trainer

PACKAGES = ("hf-mu2", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


class RunRecord:
    """Write down a run while it happens; a run that is killed and continued adds up its hours.

    Args:
        folder (`Path`): Output folder.
        recipe (`dict`): All that was set, as JSON can hold it.
    """

    def __init__(self, folder: str | Path, recipe: dict[str, Any]):
        self.path = Path(folder) / "run.json"
        before = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        self.seconds_before = before.get("seconds", 0.0)
        self.started = time.time()
        self.facts: dict[str, Any] = {
            "status": "running",
            "command": ["hf-mu2", *sys.argv[1:]],
            "recipe": recipe,
            "versions": {name: _version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "hardware": describe_hardware(),
            "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
            "num_starts": before.get("num_starts", 0) + 1,
        }

    def begin(self, trainer: Trainer) -> None:
        """Write what is known before the first step."""
        evaluation = trainer.eval_dataset
        self.facts |= {
            "num_train_rows": len(trainer.train_dataset),
            "num_eval_rows": 0 if evaluation is None else len(evaluation),
            "parameters": {
                part: {"total": total, "trained": trained}
                for part, total, trained in describe_parts(trainer.model)
            },
        }
        self._write(trainer)

    def end(self, trainer: Trainer) -> None:
        """Write the outcome: steps, losses, and the last of every number that evaluations logged."""
        history = trainer.state.log_history
        last: dict[str, Any] = {}
        for entry in history:
            last |= {name: value for name, value in entry.items() if name.startswith("eval_")}
        losses = [{"step": entry["step"], "loss": entry["loss"]} for entry in history if "loss" in entry]
        self.facts |= {
            "status": "done",
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "evaluation": last,
            "losses": losses,
            "max_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
        }
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_world_process_zero():
            self.facts["seconds"] = round(self.seconds_before + time.time() - self.started, 1)
            replace_text(self.path, json.dumps(self.facts, indent=2, ensure_ascii=False, default=str) + "\n")


def describe_hardware() -> str:
    """Name the accelerator, or count the cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
