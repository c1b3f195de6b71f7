"""Where the towers of claim f start from: the pre-trained one, fitted to what each preprocessing hands on.

The pre-trained tower reads two windows, both preprocessings of claim f give one channel, and the published one gives
other intensities, other spacings and slices whose axes are swapped. So each gets a tower of its own: the pre-trained
weights, then the same recipe of stage `tower` on the labels of the training studies.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from hf_mu2 import embedded_checkpoint
from hf_mu2.hub.assemble import load_vision_tower
from hf_mu2.model.configuration_mu2 import Mu2VisionConfig
from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.modeling_mu2_vision import Mu2VisionModel

WINDOW_HU = (-1000, 400)  # the wide one of the pre-trained tower


def write_one_channel(folder: Path, mode: str) -> None:
    """Write the pre-trained tower as one of one channel, with its image processor.

    What its channels weigh is added up. For the published preprocessing the weights are swapped as its axes are, so
    that the tower knows what it sees.

    Args:
        mode (`str`): `"default"`: one HU window at the target spacing; `"official"`: the published preprocessing.
    """
    fields, state, image_processor = load_vision_tower(embedded_checkpoint())
    assert state is not None and image_processor is not None
    config = Mu2VisionConfig(**fields)
    patches, places = state["encoder.patch_embedding.weight"], state["encoder.position_embedding"]
    patches = patches.unflatten(1, (config.num_channels, *config.patch_size)).sum(dim=1)
    places = places.unflatten(1, tuple(config.grid))
    if mode == "official":
        patches, places = patches.transpose(-1, -2), places.transpose(2, 3)
    state |= {
        "encoder.patch_embedding.weight": patches.flatten(1),
        "encoder.position_embedding": places.flatten(1, 3),
    }
    tower = Mu2VisionModel(Mu2VisionConfig(**{**fields, "num_channels": 1}))
    tower.load_state_dict(state)
    tower.save_pretrained(folder)
    kept = {**image_processor.to_dict(), "windows": [list(WINDOW_HU)], "mode": mode}
    Mu2ImageProcessor.from_dict(kept).save_pretrained(folder)


def tower_recipe(start: Path, studies: Path, count: int, out: Path) -> dict[str, Any]:
    """Lay out the recipe that tunes a tower by the labels of training studies."""
    return {
        "stage": "tower",
        "vision_tower": str(start),
        "preset": "tiny",
        "corpus": "phantom_ct",
        "corpus_root": str(studies),
        "max_train_studies": count,
        "contrastive_weight": 0.0,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "num_train_epochs": 8,
        "per_device_train_batch_size": 8,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "seed": 0,
        "dataloader_num_workers": min(16, os.cpu_count() or 1) if torch.cuda.is_available() else 0,
        "save_strategy": "no",
        "logging_steps": 20,
        "report_to": "none",
        "output_dir": str(out),
    }
