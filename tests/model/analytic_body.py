"""A smooth body known at every point in space, so that any sampling of it can be checked against the truth."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

FIELD_MM = (320.0, 320.0, 160.0)  # extent along x, y, z, centred on the origin
# Bright blobs in RAS mm, none the mirror image of another.
LANDMARKS = {
    "right": (100.0, 10.0, -20.0),
    "left": (-98.0, 30.0, 25.0),
    "front": (10.0, 78.0, 5.0),
    "back": (-3.0, -78.0, 50.0),
}
ORIENTATIONS = [
    "".join(codes)
    for axes in permutations(("RL", "AP", "SI"))
    for codes in product(*axes)
]  # fmt: skip


def body_hu(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return HU at RAS mm: a soft-edged trunk in air with two unequal lungs and four bright landmarks."""

    def soft(distance: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(distance / 5.0))  # edges about 20 mm wide

    trunk = soft((np.hypot(x / 125, y / 105) - 1) * 110)
    hu = -1000 + 1040 * trunk
    for side, size in ((1, 36), (-1, 30)):  # the right lung is larger
        hu = hu - 850 * soft(
            (np.sqrt(((x - side * 48) / size) ** 2 + (y / 62) ** 2 + (z / 140) ** 2) - 1) * 30
        )
    for cx, cy, cz in LANDMARKS.values():
        hu = hu + 700 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * 7.0**2))
    return hu


def sample_body(spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Sample the body in RAS order at `spacing` (x, y, z): voxels (x, y, z) in HU and their affine."""
    shape = [round(extent / mm) for extent, mm in zip(FIELD_MM, spacing)]
    axes = [mm * (np.arange(n) - (n - 1) / 2) for mm, n in zip(spacing, shape)]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    x, y, z = axes
    return body_hu(x[:, None, None], y[:, None], z), affine


def reorient(voxels: np.ndarray, affine: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """Store the same anatomy along other disk axes."""
    change = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return apply_orientation(voxels, change), affine @ inv_ornt_aff(change, voxels.shape)


def as_nifti(
    voxels: np.ndarray, affine: np.ndarray, dtype: str = "int16", codes: str = "RAS"
) -> nib.Nifti1Image:
    """Store HU under an on-disk type; `"uint16"` carries the usual intercept of -1024."""
    voxels, affine = reorient(voxels, affine, codes)
    if dtype == "uint16":
        image = nib.Nifti1Image(np.round(voxels + 1024).clip(0).astype(np.uint16), affine)
        image.header.set_slope_inter(1, -1024)
        return _stored(image)
    stored = voxels.astype(dtype) if dtype.startswith("float") else np.round(voxels).astype(dtype)
    return nib.Nifti1Image(stored, affine, dtype=stored.dtype)


def _stored(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return the image as a file reader sees it, with stored values and the rescale in the header."""
    header = image.header.copy()
    header["vox_offset"] = 352
    content = header.binaryblock + b"\0" * 4 + np.asarray(image.dataobj).tobytes(order="F")
    return nib.Nifti1Image.from_bytes(content)
