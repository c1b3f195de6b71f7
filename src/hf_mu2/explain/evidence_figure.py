"""Draw heat maps over slices.

Reads: a `Volume` (HU, canonical RAS) and a heat map on its grid.
Writes: RGB images in radiological convention, the patient's right on the picture's left.
"""

import textwrap
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_mu2.model.volume_mu2 import Volume

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")  # in the order of the volume's axes
# Level and width in HU.
SOFT_TISSUE = (40.0, 400.0)
LUNG = (-600.0, 1500.0)
_AERATED_HU = -400.0  # between lung and soft tissue
_OPACITY = 0.6
# Black, red, yellow, white: the ramp in which heat is drawn.
_RAMP = np.array([[0, 0, 0], [190, 20, 10], [255, 200, 40], [255, 255, 220]], np.float32)
_TILE, _GAP, _LINE = 320, 4, 18
_BLACK, _TEXT, _NOTICE = (12, 13, 16), (236, 238, 240), (255, 190, 70)


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
        raise ValueError(f"A plane is one of {', '.join(PLANES)}, got `{plane}`. Pass one of the three.")
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


def choose_window(volume: Volume, heat: np.ndarray) -> tuple[float, float]:
    """Choose the lung or the soft-tissue window by what the positive heat lies on."""
    weights = heat.clip(min=0)
    mean_hu = float((weights * volume.array).sum() / max(float(weights.sum()), 1e-12))
    return LUNG if weights.any() and mean_hu < _AERATED_HU else SOFT_TISSUE


def draw_planes(volume: Volume, heat: np.ndarray, notice: str, lines: Sequence[str]) -> Image.Image:
    """Draw the three planes through the peak of a map, with what it says of them above.

    Args:
        notice (`str`): What the reader must know before looking.
        lines (`Sequence[str]`): Written below it, wrapped.
    """
    window = choose_window(volume, heat)
    peak = np.unravel_index(int(heat.argmax()), heat.shape)
    tiles = [
        (overlay(volume, heat, plane, int(index), window, size=_TILE), f"{plane} {index}")
        for plane, index in zip(PLANES, peak)
    ]
    return _lay_out(tiles, notice, lines)


def draw_slices(
    volume: Volume, heat: np.ndarray, slices: Sequence[int], notice: str, lines: Sequence[str]
) -> Image.Image:
    """Draw axial slices beside each other, with what they are of above."""
    window = choose_window(volume, heat)
    tiles = [(overlay(volume, heat, "axial", z, window, size=_TILE), f"axial {z}") for z in slices]
    return _lay_out(tiles, notice, lines)


def _lay_out(tiles: list[tuple[Image.Image, str]], notice: str, lines: Sequence[str]) -> Image.Image:
    columns = max(1, len(tiles))
    width = _GAP + (_TILE + _GAP) * columns
    wrapped = [part for line in lines for part in textwrap.wrap(line, width // 8) or [""]]
    header = _LINE * (len(wrapped) + 1) + 12
    canvas = Image.new("RGB", (width, header + _TILE + _GAP), _BLACK)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    draw.text((_GAP + 4, 5), notice, fill=_NOTICE, font=font)
    for row, line in enumerate(wrapped, 1):
        draw.text((_GAP + 4, 5 + row * _LINE), line, fill=_TEXT, font=font)
    for column, (tile, name) in enumerate(tiles):
        left = _GAP + column * (_TILE + _GAP)
        canvas.paste(tile, (left + (_TILE - tile.width) // 2, header + (_TILE - tile.height) // 2))
        draw.text((left + 6, header + 4), name, fill=_TEXT, font=font, stroke_width=2, stroke_fill=_BLACK)
    return canvas
