"""What the stock trainers lack for a stage, and nothing more.

`StageTrainer` is the trainer of transformers, or stands before one of TRL's in the bases of a class, and adds three
things: a learning rate per part of the model, speed in every log, and on several processes a tower that batches of text
alone run too. Loss, collator, saving and resuming are the stock trainer's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from hf_mu2.model.configuration_mu2 import Mu2Config

from .monitor import SpeedMeter, peak_flops
from .sharding import see_empty_volumes
from .stages import Stage, parameter_groups

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

VOLUME_COLUMNS = ("images", "image")


class StageTrainer(Trainer):
    """A `Trainer` whose parameter groups follow a stage.

    Args:
        stage (`Stage`): Gives each part its learning rate; freezing is done before, on the model.
    """

    texts_per_study = 1  # rows of `input_ids` that share a volume

    def __init__(self, *args: Any, stage: Stage, **kwargs: Any) -> None:
        self.stage, self.speed = stage, SpeedMeter()
        self.optimizer: torch.optim.Optimizer | None
        super().__init__(*args, **kwargs)
        if stage.uses_volumes and self.args.world_size > 1:
            see_empty_volumes(self.model)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Group parameters by part, then let the stock trainer finish."""
        model = self.model if model is None else model
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(model))
            groups = parameter_groups(
                model, self.stage, self.args.learning_rate, self.args.weight_decay, decayed
            )
            optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **arguments)
        return super().create_optimizer(model)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Count the batch, then train on it."""
        if "input_ids" in inputs:
            rows, length = inputs["input_ids"].shape
            tokens = int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else rows * length
            self.speed.saw(
                rows // self.texts_per_study,
                tokens,
                self._flops(inputs, rows, length) if peak_flops() else 0.0,
            )
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the speed to the log of a training step."""
        if "loss" in logs:
            logs |= self.speed.read(self.args.world_size)
        super().log(logs, start_time)

    def _flops(self, inputs: dict[str, Any], rows: int, length: int) -> float:
        """Count the operations of a batch of mu2; other models have no count of ours."""
        from .plan import flops_per_study

        config = self.accelerator.unwrap_model(self.model).config
        if not isinstance(config, Mu2Config) or "pixel_values" not in inputs:
            return 0.0
        return rows * flops_per_study(config, inputs["pixel_values"].shape[1], length)


def check_volume_column(dataset: Dataset | IterableDataset, uses_volumes: bool | None = None) -> None:
    """Refuse a dataset whose volumes the trainers would silently ignore.

    TRL looks for a column `images` or `image` in the first row and trains on text alone when there is none.

    Args:
        uses_volumes (`bool`, *optional*): Whether training wants volumes. When not given, only a column of volumes
            under another name is refused.

    Raises:
        ValueError: if the column is missing, has another name, or is there and not wanted.
    """
    features = dataset.features or {}
    columns = list(dataset.column_names or next(iter(dataset)))
    has_volumes = any(name in columns for name in VOLUME_COLUMNS)
    misnamed = [
        name for name, feature in features.items() if "Nifti" in repr(feature) and name not in VOLUME_COLUMNS
    ]
    if not has_volumes and (misnamed or uses_volumes):
        name = misnamed[0] if misnamed else "volume"
        raise ValueError(
            f"Volumes are read from a column `images`, got columns {columns}. Rename the column that holds them, e.g. "
            f'`dataset.rename_column("{name}", "images")`: training would run on text alone otherwise.'
        )
    if has_volumes and uses_volumes is False:
        raise ValueError(
            f"This stage trains on text alone, got a column of volumes among {columns}. Remove it, or choose a stage "
            "that uses volumes, e.g. `adapt`."
        )
