"""Test a heat map: hide the blocks it points at, and see whether the model minds more than with other blocks hidden.

Deletion against random deletion, after Samek et al. (https://huggingface.co/papers/1509.06321). What is hidden becomes
the mean of its neighbours inside the body, not black: air in the middle of a chest is a finding of its own.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from hf_mu2.model.configuration_mu2 import Mu2VisionConfig

from .blocks import BlockGrid
from .forced import ForcedAnswer

MATERIAL_NATS = 0.1  # a tenth of the sentence's likelihood
MIN_DRAWS = 9  # fewer cannot tell a map from chance at 1 in 10
INSIDE = 0.5  # share of a block inside the body from which it may be hidden
_SHARE = 0.02  # of the blocks inside the body: 10 to 15 of the demo checkpoint's
_BATCH = 8


@dataclass(frozen=True)
class Faithfulness:
    """What hiding blocks does to a likelihood.

    Args:
        num_blocks (`int`): Blocks hidden at a time.
        top (`float`): Nats of log-likelihood lost by hiding the blocks of most evidence.
        random (`tuple`): Nats lost by hiding as many random blocks inside the body, per draw.
    """

    num_blocks: int
    top: float
    random: tuple[float, ...]

    @property
    def p_value(self) -> float:
        """How often random blocks cost at least as much, (1 + such draws) / (1 + draws)."""
        return (1 + sum(loss >= self.top for loss in self.random)) / (1 + len(self.random))

    @property
    def is_confirmed(self) -> bool:
        """Whether hiding costs a tenth of the likelihood, and at most one draw in ten cost as much."""
        return self.top >= MATERIAL_NATS and self.p_value <= 0.1 + 1e-9

    def describe(self) -> str:
        """Say it in one sentence, and say it when the map fails."""
        low, high = min(self.random), max(self.random)
        verdict = "" if self.is_confirmed else "; NOT CONFIRMED: do not rely on this map"
        return (
            f"hiding its {self.num_blocks} top blocks costs {self.top:+.2f} nats, {self.num_blocks} random ones "
            f"{np.mean(self.random):+.2f} ({low:+.2f} to {high:+.2f} in {len(self.random)} draws){verdict}"
        )

    def to_dict(self) -> dict[str, float | int | bool]:
        """Lay out the figures for a record."""
        return {
            "num_blocks": self.num_blocks,
            "top_nats": round(self.top, 4),
            "random_mean_nats": round(float(np.mean(self.random)), 4),
            "random_sd_nats": round(float(np.std(self.random, ddof=1)), 4),
            "num_draws": len(self.random),
            "p_value": round(self.p_value, 4),
            "is_confirmed": self.is_confirmed,
        }


def check_faithfulness(
    forced: ForcedAnswer,
    grid: BlockGrid,
    sentence_blocks: np.ndarray,
    *,
    num_draws: int = 19,
    seed: int = 0,
) -> list[Faithfulness]:
    """Test the map of every sentence, and their sum as the map of the answer.

    Args:
        sentence_blocks (`np.ndarray` of shape `(sentences, *grid.shape)`): The maps.
        num_draws (`int`): Random sets of blocks, the same for all maps; with 19 the smallest p-value is 0.05.
        seed (`int`): Of the draws.

    Returns:
        One per sentence, and last that of the answer.

    Raises:
        ValueError: for fewer than `MIN_DRAWS` draws.
    """
    if num_draws < MIN_DRAWS:
        raise ValueError(
            f"A map is tested against at least {MIN_DRAWS} random draws, got {num_draws}: fewer could confirm none. "
            "Raise them, or pass 0 to leave the test out."
        )
    candidates = np.flatnonzero(grid.body.ravel() >= INSIDE)
    count = max(1, round(_SHARE * len(candidates)))
    maps = np.concatenate([sentence_blocks, sentence_blocks.sum(axis=0, keepdims=True)])
    order = maps.reshape(len(maps), -1)[:, candidates].argsort(axis=1)[:, ::-1]
    rng = np.random.default_rng(seed)
    draws = [rng.choice(candidates, count, replace=False) for _ in range(num_draws)]
    hidden = np.zeros((len(maps) + num_draws, grid.body.size), bool)
    np.put_along_axis(hidden, np.concatenate([candidates[order[:, :count]], draws]), True, axis=1)
    likelihoods = occluded_likelihoods(forced, grid, hidden.reshape(-1, *grid.shape))
    intact = forced.sentence_likelihoods(forced.vision_hidden_states).cpu().numpy()[0]
    losses = intact - likelihoods  # (maps + draws, sentences)
    losses = np.concatenate([losses, losses.sum(axis=1, keepdims=True)], axis=1)
    return [
        Faithfulness(count, float(losses[i, i]), tuple(losses[len(maps) :, i].tolist()))
        for i in range(len(maps))
    ]


def occluded_likelihoods(forced: ForcedAnswer, grid: BlockGrid, hidden: np.ndarray) -> np.ndarray:
    """Return the log-likelihood of each sentence with blocks hidden.

    Args:
        hidden (`np.ndarray` of shape `(variants, *grid.shape)`): Which blocks.

    Returns:
        `np.ndarray` of shape `(variants, sentences)`, in nats.
    """
    pixels, slab_mask = forced.inputs["pixel_values"], forced.slab_mask
    tower = forced.reader.model.model.vision_tower
    likelihoods = []
    for part in torch.from_numpy(hidden).to(pixels.device).split(_BATCH):
        with torch.no_grad():
            variants = hide_blocks(pixels, part, grid, tower.config)
            features = tower(variants, slab_mask.expand(len(part), -1, -1)).last_hidden_state
        likelihoods.append(forced.sentence_likelihoods(features))
    return torch.cat(likelihoods).cpu().numpy()


def hide_blocks(
    pixels: torch.Tensor, hidden: torch.Tensor, grid: BlockGrid, config: Mu2VisionConfig
) -> torch.Tensor:
    """Fill blocks with the mean of the nearest blocks inside the body that stay visible, per window.

    Args:
        pixels (`torch.Tensor` of shape `(1, frames, windows * slices, height, width)`): The volume.
        hidden (`torch.BoolTensor` of shape `(variants, *grid.shape)`): Which blocks.
        grid (`BlockGrid`): Where they lie.
        config (`Mu2VisionConfig`): Of the tower: patch size and number of windows.

    Returns:
        `torch.Tensor` of shape `(variants, frames, windows * slices, height, width)`.
    """
    num_slabs, size = grid.shape[0], tuple(config.patch_size)
    stacked = pixels[0].unflatten(1, (config.num_channels, -1)).transpose(0, 1)  # (C, T, K, H, W)
    means = F.avg_pool3d(stacked.flatten(1, 2), size)[:, :num_slabs]  # (C, slabs, rows, columns)
    inside = torch.from_numpy(grid.body >= INSIDE).to(pixels.device)
    fill = _mean_of_neighbours(means, (inside & ~hidden)[:, None].to(pixels.dtype), hidden[:, None])
    num_padding = stacked.shape[1] * stacked.shape[2] // size[0] - num_slabs
    for dim, length in enumerate(size):
        fill = fill.repeat_interleave(length, dim=dim + 2)
        hidden = hidden.repeat_interleave(length, dim=dim + 1)
    fill, hidden = (F.pad(x, (0, 0, 0, 0, 0, num_padding * size[0])) for x in (fill, hidden))
    frames = tuple(stacked.shape[1:3])
    filled = torch.where(hidden.unflatten(1, frames)[:, None], fill.unflatten(2, frames), stacked)
    return filled.transpose(1, 2).flatten(2, 3)


def _mean_of_neighbours(means: torch.Tensor, visible: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Average the visible blocks in the smallest cube around each wanted block that holds any: `(V, C, *blocks)`."""
    total = (means * visible).sum(dim=(2, 3, 4), keepdim=True)
    fill = (total / visible.sum(dim=(2, 3, 4), keepdim=True).clamp(min=1)).expand(-1, -1, *means.shape[1:])
    for radius in (3, 2, 1):
        weight = _cube_mean(visible, radius)
        near = _cube_mean(means * visible, radius) / weight.clamp(min=1e-9)
        fill = torch.where((weight > 1e-9) & wanted, near, fill)
    return fill


def _cube_mean(blocks: torch.Tensor, radius: int) -> torch.Tensor:
    return F.avg_pool3d(F.pad(blocks, (radius,) * 6), 2 * radius + 1, stride=1)
