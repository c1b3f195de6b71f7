"""Where the patches of a model lie in a volume, and the way back from patches to the volume's own voxels.

Shapes: blocks are the patches of a volume as one grid (slabs, rows, columns), padding left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.volume_mu2 import Volume

_TISSUE_HU = -500.0


@dataclass(frozen=True)
class BlockGrid:
    """The blocks of a volume on the volume's own grid.

    Args:
        shape (`tuple`): Number of blocks (slabs, rows, columns) that hold anatomy.
        axes (`tuple`): Which axis of the blocks each axis (depth, height, width) of the volume runs along; the
            published preprocessing turns the plane.
        places (`tuple` of `np.ndarray`): Per axis of the volume, the place of each voxel among the blocks: 0 is the
            centre of the first block.
        body (`np.ndarray` of shape `shape`): Share of each block that lies inside the body; 0 outside the volume.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    places: tuple[np.ndarray, ...]
    body: np.ndarray

    def to_volume(self, blocks: np.ndarray) -> np.ndarray:
        """Interpolate `blocks` trilinearly at every voxel of the volume: float32; 0 where the model saw nothing."""
        heat = blocks.transpose(self.axes).astype(np.float32)
        for axis in range(3):
            heat = np.moveaxis(np.tensordot(self._interpolation(axis), heat, (1, axis)), 0, axis)
        return heat

    def profile(self, blocks: np.ndarray) -> np.ndarray:
        """Sum the interpolated `blocks` over every axial slice of the volume, without laying out its voxels."""
        columns = (self._interpolation(axis).sum(axis=0) for axis in (1, 2))
        return self._interpolation(0) @ np.einsum("zyx,y,x->z", blocks.transpose(self.axes), *columns)

    def gather(self, mask: np.ndarray) -> np.ndarray:
        """Sum a mask (depth, height, width) with the weights of the interpolation: the transpose of `to_volume`.

        So that `(to_volume(blocks) * mask).sum() == (blocks * gather(mask)).sum()`, for many maps and one mask.
        """
        total = mask.astype(np.float32)
        for axis in range(3):
            total = np.moveaxis(np.tensordot(self._interpolation(axis).T, total, (1, axis)), 0, axis)
        return total.transpose(np.argsort(self.axes))

    def share(self, mask: np.ndarray) -> np.ndarray:
        """Return the share of each block that a boolean mask (depth, height, width) of the volume covers."""
        return _mean_per_block(mask, self.shape, self.axes, self.places)

    def _interpolation(self, axis: int) -> np.ndarray:
        """Linear weights (voxels, blocks); a block's outer half repeats it, and beyond its edge there is nothing."""
        count, places = self.shape[self.axes[axis]], self.places[axis]
        weights = np.maximum(0.0, 1.0 - np.abs(places.clip(0, count - 1)[:, None] - np.arange(count)))
        return (weights * _inside(places, count)[:, None]).astype(np.float32)


def lay_blocks(volume: Volume, image_processor: Mu2ImageProcessor, block_size: Sequence[int]) -> BlockGrid:
    """Find the blocks of a volume under the geometry of an image processor.

    Args:
        volume (`Volume`): As the processor gets it.
        image_processor (`Mu2ImageProcessor`): Either mode.
        block_size (`tuple`): Voxels per patch (slices, rows, columns) on the processor's grid.
    """
    processed = image_processor(volume, return_tensors="np", return_provenance=True)
    num_slabs = int(processed["pixel_attention_mask"].sum())
    grid = processed["provenance"][0]["grid"]
    shape = (num_slabs, *(size // block for size, block in zip(grid["shape"][1:], block_size[1:])))
    # Voxels (x, y, z) of the volume to voxels of the grid: scaled, moved, and at most turned by right angles.
    to_grid = np.linalg.inv(np.asarray(grid["affine"])) @ volume.affine
    axes, places = [], []
    for axis, size in enumerate(volume.array.shape):
        along = 2 - int(np.abs(to_grid[:3, 2 - axis]).argmax())
        at = to_grid[2 - along, 2 - axis] * np.arange(size) + to_grid[2 - along, 3]
        axes.append(along)
        places.append((at + 0.5) / block_size[along] - 0.5)
    body = _mean_per_block(find_body(volume), shape, tuple(axes), tuple(places))
    return BlockGrid(shape, tuple(axes), tuple(places), body)


def find_body(volume: Volume) -> np.ndarray:
    """Mark the voxels between tissue both along their row and along their column: the body with the air in it."""
    tissue = volume.array > _TISSUE_HU
    return _between(tissue, axis=1) & _between(tissue, axis=2)


def _between(mask: np.ndarray, axis: int) -> np.ndarray:
    """Mark what lies between the first and the last true element along one axis."""
    before = np.logical_or.accumulate(mask, axis)
    after = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis), axis)
    return before & after


def _inside(places: np.ndarray, count: int) -> np.ndarray:
    return (places >= -0.5 - 1e-6) & (places <= count - 0.5 + 1e-6)


def _mean_per_block(
    mask: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...], places: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Average a mask over the voxels of each block, giving each voxel to the block it lies in.

    A block finer than the voxels may hold the centre of none: it takes the voxel nearest to its centre.
    """
    total: np.ndarray = mask
    for axis in range(3):
        count = shape[axes[axis]]
        weights = (np.rint(places[axis])[:, None] == np.arange(count)) & _inside(places[axis], count)[:, None]
        nearest = np.abs(places[axis][:, None] - np.arange(count)).argmin(axis=0)
        is_empty = ~weights.any(axis=0) & (np.abs(places[axis][nearest] - np.arange(count)) < 1)
        weights[nearest[is_empty], is_empty] = True
        share = (weights / np.maximum(weights.sum(axis=0), 1)).astype(np.float32)
        total = np.moveaxis(np.tensordot(share.T, total.astype(np.float32, copy=False), (1, axis)), 0, axis)
    return total.transpose(np.argsort(axes))
