"""Write a NIfTI so that a reader never meets half of one."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_mu2.files import replacing

if TYPE_CHECKING:
    import nibabel as nib


def save_nifti(image: "nib.Nifti1Image", path: str | Path) -> None:
    """Write an image under a temporary name, then rename it."""
    import nibabel as nib

    with replacing(path) as partial:
        nib.save(image, partial)
