import pytest
import torch

from hf_mu2.reporting.pooling import pool_patches

MASK = torch.tensor([[[True, True], [True, False]], [[True, False], [False, False]]])


@pytest.fixture
def states() -> torch.Tensor:
    """Two volumes of two frames, two slabs of three patches each."""
    return torch.randn(2, 2, 6, 5, generator=torch.Generator().manual_seed(0))


def test_means_and_maxima_are_those_of_the_patches_with_anatomy(states):
    pooled = pool_patches(states, MASK)
    valid = [torch.cat([states[0, 0], states[0, 1, :3]]), states[1, 0, :3]]
    expected = torch.stack([torch.cat([patches.mean(0), patches.max(0).values]) for patches in valid])
    assert pooled.shape == (2, 10) and pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("padding", [1e6, float("nan"), float("inf")])
def test_what_lies_in_masked_slabs_changes_nothing(states, padding):
    padded = states.clone()
    padded[0, 1, 3:], padded[1, 0, 3:], padded[1, 1] = padding, padding, padding
    torch.testing.assert_close(pool_patches(padded, MASK), pool_patches(states, MASK))
    longer = torch.cat([states, torch.full((2, 3, 6, 5), padding)], dim=1)
    mask = torch.cat([MASK, torch.zeros(2, 3, 2, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(pool_patches(longer, mask), pool_patches(states, MASK))


def test_half_precision_is_pooled_in_full(states):
    many = states.bfloat16().repeat(1, 40, 1, 1)
    pooled = pool_patches(many, torch.ones(2, 80, 2, dtype=torch.bool))
    torch.testing.assert_close(pooled[:, :5], states.bfloat16().double().flatten(1, 2).mean(1).float())


def test_arrays_are_taken_too(states):
    torch.testing.assert_close(pool_patches(states.numpy(), MASK.numpy()), pool_patches(states, MASK))


def test_a_mask_that_does_not_fit_or_is_empty_is_refused(states):
    with pytest.raises(ValueError, match=r"got \(2, 2, 6, 5\) and \(2, 1, 2\)"):
        pool_patches(states, MASK[:, :1])
    with pytest.raises(ValueError, match="slab with anatomy"):
        pool_patches(states, MASK & torch.tensor([True, False])[:, None, None])
