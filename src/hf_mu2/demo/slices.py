"""Show a volume: single slices as pictures, and the whole of it as a NIfTI that a browser can hold.

Reads: a `Volume` (HU, canonical RAS), optionally a heat map on its grid.
Writes: PNG and NIfTI bytes. Radiological convention: the patient's right is on the left of the picture.
"""

import io
import math

import numpy as np
from isal import igzip
from PIL import Image

from hf_mu2.explain.evidence_figure import PLANES, overlay
from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.montage import WINDOWS

# Level and width in HU; the abdomen as in https://radiopaedia.org/articles/windowing-ct (soft tissues).
PRESETS: dict[str, tuple[float, float]] = WINDOWS | {"Abdomen": (50.0, 400.0)}
FULL_HEAT = 255
LONGEST_PIXELS = 640
BROWSER_VOXELS = 2**25


def slice_png(
    volume: Volume,
    plane: str,
    index: int,
    preset: str,
    heat: np.ndarray | None = None,
    opacity: float = 0.5,
) -> bytes:
    """Draw one slice through a display window, with true proportions, as PNG bytes.

    Args:
        volume (`Volume`): Voxels in HU, canonical RAS.
        plane (`str`): `"axial"`, `"coronal"` or `"sagittal"`.
        index (`int`): Which slice; outside the volume, the nearest one in it.
        preset (`str`): A name in `PRESETS`.
        heat (`np.ndarray` of the shape of `volume.array`, *optional*): 0 to `FULL_HEAT`.
        opacity (`float`): 0 hides the heat, 1 shows it in full.

    Raises:
        ValueError: if there is no such plane or preset.
    """
    if plane not in PLANES or preset not in PRESETS:
        raise ValueError(
            f"A slice is one of {', '.join(PLANES)} through one of {', '.join(PRESETS)}, got `{plane}` and `{preset}`. "
            "Choose from these."
        )
    index = min(max(index, 0), volume.array.shape[PLANES.index(plane)] - 1)

    def draw(warmth: np.ndarray) -> Image.Image:
        return overlay(
            volume,
            warmth,
            plane,
            index,
            PRESETS[preset],
            maximum=FULL_HEAT,
            size=LONGEST_PIXELS,
        )

    picture = draw(np.broadcast_to(np.uint8(0), volume.array.shape))
    if heat is not None and opacity > 0:
        picture = Image.blend(picture, draw(heat), min(opacity, 1.0))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def scale_heat(heat: np.ndarray) -> np.ndarray:
    """Bring the positive part of a heat map to 0 .. `FULL_HEAT`, uint8: an eighth of the memory, all that is seen."""
    top = float(heat.max(initial=0))
    return np.rint(heat.clip(0) * (FULL_HEAT / top if top > 0 else 0.0)).astype(np.uint8)


def browser_nifti(volume: Volume, voxels: np.ndarray) -> bytes:
    """Write voxels on the grid of a volume as `.nii.gz` bytes, int16 or uint8, without any other fact about it.

    What has more than `BROWSER_VOXELS` is thinned out, its finest axis first.
    """
    import nibabel as nib

    steps = browser_steps(volume)
    thinned = voxels[tuple(slice(None, None, step) for step in steps)]
    if thinned.dtype != np.uint8:
        thinned = np.clip(np.rint(thinned), -32768, 32767).astype(np.int16)
    affine = volume.affine @ np.diag([*reversed(steps), 1.0])
    image = nib.Nifti1Image(np.ascontiguousarray(thinned.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    return igzip.compress(image.to_bytes(), compresslevel=1)


def browser_steps(volume: Volume) -> tuple[int, int, int]:
    """Return how many voxels along (depth, height, width) become one in the browser."""
    steps = [1, 1, 1]
    while math.prod(-(-size // step) for size, step in zip(volume.array.shape, steps)) > BROWSER_VOXELS:
        can_thin = [axis for axis in range(3) if volume.array.shape[axis] > steps[axis]]
        steps[min(can_thin, key=lambda axis: volume.spacing[axis] * steps[axis])] += 1
    return steps[0], steps[1], steps[2]
