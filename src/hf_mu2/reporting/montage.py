"""Draw a volume as one picture: four axial slices, one coronal, one sagittal, in three display windows.

Reads: a `Volume` (HU, canonical RAS).
Writes: an RGB image in radiological convention, the patient's right on the picture's left.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_mu2.model.volume_mu2 import Volume

# Level and width in HU, the usual presets of a chest workstation.
WINDOWS: dict[str, tuple[float, float]] = {
    "Lung": (-600.0, 1500.0),
    "Mediastinum": (40.0, 400.0),
    "Bone": (400.0, 1800.0),
}

NUM_AXIAL = 4
TILE = 256
GAP = 4
HEADER = 56
_BLACK, _TEXT, _MUTED, _NOTICE = (12, 13, 16), (236, 238, 240), (150, 156, 164), (255, 190, 70)
# Tissue, not air: where a slice holds any of it, the slice holds the patient or the table.
_BODY_HU = -500.0
_BAR_MM = 50.0


@dataclass(frozen=True)
class _Plane:
    """One slice in HU as it is shown, with its pixel size in mm, its position and what lies at its borders."""

    hu: np.ndarray
    pixel_mm: tuple[float, float]
    position: str
    left: str
    right: str


def draw_montage(volume: Volume, notice: str, title: str = "") -> Image.Image:
    """Draw the montage of a volume, one row per window of `WINDOWS`.

    Args:
        volume (`Volume`): Voxels in HU, canonical RAS.
        notice (`str`): What the reader must know before looking, drawn in the header.
        title (`str`): Drawn before the size and spacing, e.g. the study id. Never a patient name.
    """
    planes = _planes(volume)
    width = GAP + (TILE + GAP) * len(planes)
    canvas = Image.new("RGB", (width, HEADER + (TILE + GAP) * len(WINDOWS)), _BLACK)
    draw = ImageDraw.Draw(canvas)
    depth, height, columns = volume.array.shape
    spacing = " x ".join(f"{mm:.2f}" for mm in reversed(volume.spacing))
    facts = f"{columns} x {height} x {depth} voxels of {spacing} mm"
    draw.text((GAP + 6, 8), notice, fill=_NOTICE, font=ImageFont.load_default(18))
    draw.text((GAP + 6, 33), f"{title}   {facts}".strip(), fill=_MUTED, font=ImageFont.load_default(13))
    for row, (name, (level, width_hu)) in enumerate(WINDOWS.items()):
        for column, plane in enumerate(planes):
            label = f"{name}  L {level:.0f}  W {width_hu:.0f}" if column == 0 else ""
            tile = _draw_tile(plane, level, width_hu, label)
            canvas.paste(tile, (GAP + column * (TILE + GAP), HEADER + row * (TILE + GAP)))
    return canvas


def window_hu(hu: np.ndarray, level: float, width: float) -> np.ndarray:
    """Map Hounsfield units to grey values 0-255 through a display window of positive `width`."""
    scaled = (hu.astype(np.float32) - (level - width / 2)) * (255.0 / width)
    return np.nan_to_num(scaled).clip(0, 255).astype(np.uint8)


def _planes(volume: Volume) -> list[_Plane]:
    """Choose axial levels spread over the body, and the coronal and sagittal plane through its centre."""
    array = volume.array
    mm_z, mm_y, mm_x = (float(mm) for mm in volume.spacing)
    (bottom, top), (back, front), (left, right) = (_body_range(array, axis) for axis in range(3))
    body_y, body_x = slice(back, front + 1), slice(left, right + 1)
    levels = np.linspace(top, bottom, NUM_AXIAL + 2)[1:-1].round().astype(int)
    y, x = (back + front) // 2, (left + right) // 2
    # RAS: index 0 is inferior, posterior, left. The patient's right and front go to the left and top of the picture.
    return [
        *(
            _Plane(array[z, body_y, body_x][::-1, ::-1], (mm_y, mm_x), _position(volume, 2, z), "R", "L")
            for z in levels
        ),
        _Plane(array[:, y, body_x][::-1, ::-1], (mm_z, mm_x), _position(volume, 1, y), "R", "L"),
        _Plane(array[:, body_y, x][::-1, ::-1], (mm_z, mm_y), _position(volume, 0, x), "A", "P"),
    ]


def _body_range(array: np.ndarray, axis: int) -> tuple[int, int]:
    """Find the first and last plane along an axis that holds tissue; the whole axis where none does."""
    tissue = (array > _BODY_HU).mean(axis=tuple(other for other in range(3) if other != axis))
    planes = np.flatnonzero(tissue > 0.02)
    return (int(planes[0]), int(planes[-1])) if planes.size else (0, array.shape[axis] - 1)


def _position(volume: Volume, axis: int, index: int) -> str:
    """State where a plane lies in scanner coordinates, at the centre of the volume's other two axes."""
    voxel = [(size - 1) / 2 for size in reversed(volume.array.shape)]
    voxel[axis] = index
    mm = (np.asarray(volume.affine) @ [*voxel, 1.0])[axis]
    return f"{'xyz'[axis]} {round(mm):+d} mm"


def _draw_tile(plane: _Plane, level: float, width_hu: float, label: str) -> Image.Image:
    """Fit one slice into a square tile with its true proportions, and write its labels over it."""
    height_mm, width_mm = plane.hu.shape[0] * plane.pixel_mm[0], plane.hu.shape[1] * plane.pixel_mm[1]
    pixels_per_mm = TILE / max(height_mm, width_mm)
    size = max(1, round(width_mm * pixels_per_mm)), max(1, round(height_mm * pixels_per_mm))
    slice_image = Image.fromarray(window_hu(plane.hu, level, width_hu)).resize(
        size, Image.Resampling.BILINEAR
    )
    tile = Image.new("RGB", (TILE, TILE))
    tile.paste(slice_image, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    draw = ImageDraw.Draw(tile)
    small, side = ImageFont.load_default(12), ImageFont.load_default(15)

    def write(
        xy: tuple[int, int], text: str, anchor: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    ) -> None:
        draw.text(xy, text, fill=_TEXT, anchor=anchor, font=font, stroke_width=2, stroke_fill=_BLACK)

    write((6, 5), label, "la", small)
    write((TILE - 6, TILE - 6), plane.position, "rd", small)
    write((6, TILE // 2), plane.left, "lm", side)
    write((TILE - 6, TILE // 2), plane.right, "rm", side)
    if label:
        length = round(_BAR_MM * pixels_per_mm)
        draw.line([(8, TILE - 10), (8 + length, TILE - 10)], fill=_TEXT, width=2)
        write((8, TILE - 14), f"{_BAR_MM / 10:.0f} cm", "ld", small)
    return tile
