"""Gaussian negatives: a volume of noise as large as a study's own.

Reads: the volume whose size, spacing and place the noise takes.
Writes: NIfTI volumes, for training from cached features alone; otherwise noise is made when a row is read.

The paper (Gao and Zhao) names a Gaussian volume of the same size and gives neither mean nor deviation. Ours has mean 0
and deviation 1000/3 HU, so that three deviations span the range that its volumes are clamped to, and is clamped too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hf_mu2.model.volume_mu2 import Volume, load_volume

from .nifti import save_nifti

MEAN_HU, STD_HU, LIMIT_HU = 0.0, 1000 / 3, 1000


def gaussian_volume(source: Any, seed: int, *, epoch: int = 0) -> Volume:
    """Make noise of the size, spacing and orientation of a volume.

    Args:
        source: Anything that `load_volume` takes.
        seed (`int`): The same seed and epoch give the same voxels.
    """
    like = load_volume(source)
    noise = np.random.default_rng([seed, epoch]).standard_normal(like.array.shape, dtype=np.float32)
    hu = np.clip(MEAN_HU + STD_HU * noise, -LIMIT_HU, LIMIT_HU).round().astype(np.int16)
    return Volume(hu, like.affine, like.spacing, {"steps": ["Gaussian noise in place of the volume"]})


def noise_seed(seed: int, study_id: str, number: int) -> int:
    """Return the seed of the noise for one volume of a study."""
    return zlib.crc32(f"{seed} {study_id} {number}".encode())


def write_gaussian_volumes(
    rows: Iterable[Mapping[str, Any]], folder: str | Path, *, seed: int = 0
) -> Iterator[list[str]]:
    """Write the noise of every row's volumes and yield its paths; what is there already is left.

    Args:
        rows: Rows with `study_id` and `images`.
    """
    import nibabel as nib

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for row in tqdm(rows, desc="noise", unit=" studies", disable=None):
        paths = []
        for number, source in enumerate(row["images"]):
            path = folder / f"{row['study_id']}_{number}.nii.gz"
            if not path.exists():
                noise = gaussian_volume(source, noise_seed(seed, row["study_id"], number))
                image = nib.Nifti1Image(np.ascontiguousarray(noise.array.transpose(2, 1, 0)), noise.affine)
                image.header.set_xyzt_units("mm")
                save_nifti(image, path)
            paths.append(str(path))
        yield paths
