"""Draw heat maps over slices.

Reads: a `Volume` (HU, canonical RAS) and a heat map on its grid.
Writes: RGB images in radiological convention, the patient's right on the picture's left.
"""

from typing import Literal

import numpy as np
from PIL import Image

from hf_mu2.model.volume_mu2 import Volume

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")  # in the order of the volume's axes
SOFT_TISSUE = (40.0, 400.0)  # level and width in HU
_OPACITY = 0.6
# Black, red, yellow, white: ends of the ramp in which heat is drawn.
_RAMP = np.array([[0, 0, 0], [190, 20, 10], [255, 200, 40], [255, 255, 220]], np.float32)


def overlay(
    volume: Volume,
    heat: np.ndarray,
    plane: Plane,
    index: int,
    window: tuple[float, float] = SOFT_TISSUE,
    *,
    maximum: float | None = None,
    size: int = 384,
) -> Image.Image:
    """Draw one slice with the positive heat over it.

    Args:
        volume (`Volume`): Voxels in HU, canonical RAS.
        heat (`np.ndarray` of the shape of `volume.array`): Any unit; what is not positive is not drawn.
        plane (`str`): `"axial"`, `"coronal"` or `"sagittal"`.
        index (`int`): Slice along the axis of the plane, in voxels of `volume.array`.
        window (`tuple`): Level and width in HU.
        maximum (`float`, *optional*): Heat drawn at full strength, by default the largest of the whole map.
        size (`int`): Pixels of the longer side; the true proportions are kept.

    Raises:
        ValueError: for an unknown plane, a slice outside the volume, or a map of another shape.
    """
    if plane not in PLANES:
        raise ValueError(f"A plane is one of {', '.join(PLANES)}, got `{plane}`.")
    if heat.shape != volume.array.shape:
        raise ValueError(
            f"A heat map lies on the grid of its volume, got {heat.shape} for {volume.array.shape}. Use the volume "
            "that was explained."
        )
    axis = PLANES.index(plane)
    if not 0 <= index < heat.shape[axis]:
        raise ValueError(
            f"A slice must lie in the volume, got {plane} {index} of {heat.shape[axis]}. Count from 0."
        )
    maximum = float(heat.max(initial=0)) if maximum is None else maximum
    # RAS: index 0 is inferior, posterior, left. The patient's right and front go to the left and top of the picture.
    hu, warmth = (
        np.take(array, index, axis)[::-1, ::-1].astype(np.float32) for array in (volume.array, heat)
    )
    level, width = window
    grey = ((hu - (level - width / 2)) * (255 / width)).clip(0, 255)
    strength = (warmth / maximum if maximum > 0 else np.zeros_like(warmth)).clip(0, 1)
    ramp = np.linspace(0, 1, len(_RAMP))
    colour = np.stack([np.interp(strength, ramp, channel) for channel in _RAMP.T], axis=-1)
    opacity = _OPACITY * np.sqrt(strength)[..., None]  # faint heat stays visible
    pixels = grey[..., None] * (1 - opacity) + colour * opacity
    mm = [own for other, own in enumerate(volume.spacing) if other != axis]
    shape_mm = pixels.shape[0] * mm[0], pixels.shape[1] * mm[1]
    scale = size / max(shape_mm)
    height, columns = (max(1, round(length * scale)) for length in shape_mm)
    return Image.fromarray(pixels.round().astype(np.uint8)).resize(
        (columns, height), Image.Resampling.BILINEAR
    )
