"""Towers of claim f: the pre-trained one, tuned to what each preprocessing hands on.

The pre-trained tower reads two windows, both preprocessings of claim f give one channel, and the published one gives
other intensities, other spacings and slices whose axes are swapped. So each gets a tower of its own: the pre-trained
weights, then the same few epochs of saying which findings a training study holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.modeling_mu2 import Mu2ForConditionalGeneration
from hf_mu2.training.features import vision_tower

WINDOW_HU = (-1000, 400)  # the wide one of the pre-trained tower
EPOCHS, BATCH_SIZE, TOWER_RATE, HEAD_RATE = 6, 8, 1e-3, 3e-3
BEST_PATCHES = 8  # that decide on a finding


def read_one_channel(
    model: Mu2ForConditionalGeneration, processor: Any, mode: str
) -> tuple[Mu2ForConditionalGeneration, Any]:
    """Make a model and its processor of one channel: what the channels of the tower weigh is added up.

    For the published preprocessing the weights are swapped as its axes are, so that the tower knows what it sees.

    Args:
        mode (`str`): `"default"`: one HU window at the target spacing; `"official"`: the published preprocessing.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    channels, vision = config.vision_config.num_channels, config.vision_config
    vision.num_channels = 1
    start = Mu2ForConditionalGeneration(config)
    state = model.state_dict()
    weight, position = (
        next(key for key in state if key.endswith(name))
        for name in ("patch_embedding.weight", "position_embedding")
    )
    patches = state[weight].unflatten(1, (channels, *vision.patch_size)).sum(dim=1)
    places = state[position].unflatten(1, tuple(vision.grid))
    if mode == "official":
        patches, places = patches.transpose(-1, -2), places.transpose(2, 3)
    state |= {weight: patches.flatten(1), position: places.flatten(1, 3)}
    start.load_state_dict(state)
    kept = ("spacing", "size", "num_slices", "patch_depth", "max_frames", "antialias")
    fields = {name: value for name, value in processor.image_processor.to_dict().items() if name in kept}
    processor.image_processor = Mu2ImageProcessor(**fields, windows=[WINDOW_HU], mode=mode)
    return start, processor


def tune_tower(
    model: Mu2ForConditionalGeneration,
    processor: Any,
    images: Sequence[Any],
    labels: torch.Tensor,
    device: str,
) -> float:
    """Teach the tower of a model, in place, to say what training studies hold; return the loss of the last epoch.

    A finding is as likely as its most convincing patches say (multiple instances, as the demo's tower is trained).

    Args:
        images (`Sequence`): One volume per study.
        labels (`torch.Tensor` of shape `(studies, labels)`): 0 and 1.
    """
    torch.manual_seed(0)
    batch = processor.image_processor(list(images), return_tensors="pt")
    pixels, slabs = batch["pixel_values"], batch["pixel_attention_mask"].bool()
    tower = vision_tower(model).to(device).train()
    head = nn.Linear(tower.config.hidden_size, labels.shape[1]).to(device)
    nn.init.constant_(head.bias, -2.0)
    optimizer = torch.optim.AdamW(
        [{"params": tower.parameters(), "lr": TOWER_RATE}, {"params": head.parameters(), "lr": HEAD_RATE}]
    )
    steps = EPOCHS * -(-len(pixels) // BATCH_SIZE)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    with tqdm(total=steps, desc="tower", unit=" steps", disable=None) as bar:
        for _ in range(EPOCHS):
            losses = []
            for rows in torch.randperm(len(pixels)).split(BATCH_SIZE):
                mask = slabs[rows].to(device)
                with torch.autocast(torch.device(device).type, torch.bfloat16):
                    patches = tower(pixels[rows].to(device), mask).last_hidden_state
                mask = mask.repeat_interleave(patches.shape[2] // mask.shape[2], dim=-1)
                found = head(patches.float()).masked_fill(~mask[..., None], -1e4).flatten(1, 2)
                logits = found.topk(BEST_PATCHES, dim=1).values.mean(dim=1)
                loss = F.binary_cross_entropy_with_logits(logits, labels[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
    tower.eval().to("cpu")
    return sum(losses) / len(losses)
