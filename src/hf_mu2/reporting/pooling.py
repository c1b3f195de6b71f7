"""Pool what the vision tower made of a volume into one vector. Needs PyTorch alone."""

import torch


def pool_patches(vision_hidden_states: torch.Tensor, slab_mask: torch.Tensor) -> torch.Tensor:
    """Put the mean and the maximum over the patches that hold anatomy side by side, in float32.

    Args:
        vision_hidden_states (`torch.Tensor` of shape `(volumes, frames, patches, width)`): Of the vision tower, patches
            slab by slab as it gives them. What lies in padded slabs is never read.
        slab_mask (`torch.BoolTensor` of shape `(volumes, frames, slabs)`): `pixel_attention_mask` of the processor.

    Returns:
        `torch.Tensor` of shape `(volumes, 2 * width)`: means, then maxima.

    Raises:
        ValueError: if the mask does not fit the patches, or a volume has no slab with anatomy.
    """
    states, slabs = torch.as_tensor(vision_hidden_states), torch.as_tensor(slab_mask).bool()
    if (
        states.ndim != 4
        or slabs.ndim != 3
        or states.shape[:2] != slabs.shape[:2]
        or states.shape[2] % slabs.shape[2]
    ):
        raise ValueError(
            "Patches (volumes, frames, patches, width) need a mask (volumes, frames, slabs) of the same frames, with a "
            f"whole number of patches per slab, got {tuple(states.shape)} and {tuple(slabs.shape)}. Pass what the "
            "tower and the processor of one checkpoint return."
        )
    if not bool(slabs.flatten(1).any(dim=1).all()):
        raise ValueError(
            "Every volume must have a slab with anatomy, got one whose mask is empty. Drop that volume from the batch."
        )
    mask = slabs.repeat_interleave(states.shape[2] // slabs.shape[2], dim=2).flatten(1, 2)[:, :, None]
    patches = states.flatten(1, 2).float()  # (B, T*N, E)
    mean = patches.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1)
    return torch.cat([mean, patches.masked_fill(~mask, -torch.inf).amax(dim=1)], dim=1)
