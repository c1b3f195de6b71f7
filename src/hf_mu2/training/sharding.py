"""Let every process call the same modules, which sharded weights need: also where a batch holds no volume.

FSDP2 and ZeRO-3 gather a module's weights when it is called, all processes together. A process whose batch is text
alone would pass over vision tower and tokenizer, and the others would wait for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hf_mu2.model.modeling_mu2 import Mu2Model


def see_empty_volumes(model: nn.Module) -> list[RemovableHandle]:
    """Let batches without volumes encode one of zeros and add none of it: gradients of the vision side are then 0.

    The hook sits on `Mu2Model`, which every trainer calls, TRL's fused head included. Other models are left alone.

    Returns:
        `list[RemovableHandle]`: Remove them to undo.
    """
    return [
        module.register_forward_pre_hook(_embed_beside_an_empty_volume, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, Mu2Model)
    ]


def _embed_beside_an_empty_volume(
    model: Mu2Model, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    volumes = (kwargs.get("pixel_values"), kwargs.get("vision_hidden_states"))
    input_ids = kwargs.get("input_ids")
    if not model.training or input_ids is None or any(volume is not None for volume in volumes):
        return None
    vision = model.config.vision_config
    slices, height, width = vision.frame_size
    empty = torch.zeros(1, 1, vision.num_channels * slices, height, width, device=input_ids.device)
    nothing = model.get_image_features(empty).sum() * 0
    model._check_placeholders(input_ids, 0)  # placeholders without a volume are still a mistake
    embeds = model.get_input_embeddings()(input_ids)
    return args, {**kwargs, "input_ids": None, "inputs_embeds": embeds + nothing.to(embeds.dtype)}
