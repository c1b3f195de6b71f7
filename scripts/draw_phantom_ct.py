"""Draw the figures of `docs/phantom_ct.md`.

    python scripts/draw_phantom_ct.py --out docs/figures

Reads: nothing (studies are computed from their seeds). Writes: PNG files, in radiological convention: the patient's
right on the picture's left.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_mu2.data.phantom import ABDOMEN_LABELS, Phantom, make_pair, make_phantom
from hf_mu2.data.study import FINDING_LABELS

SPACING = (3.0, 2.0, 2.0)
SOFT, LUNG = (40.0, 400.0), (-500.0, 1500.0)  # level, width in HU
OUTLINE = (255, 176, 32)


def tile(
    plane: np.ndarray,
    pixel_mm: tuple[float, float],
    window: tuple[float, float],
    width: int,
    height: int,
    inside: np.ndarray | None = None,
    text: str = "",
) -> Image.Image:
    """Fit a plane (rows from the back or the feet, columns from the left) into a tile, with an outlined mask."""
    level, span = window
    grey = ((plane.astype(np.float32) - level) / span + 0.5).clip(0, 1) * 255
    scale = min(width / (plane.shape[1] * pixel_mm[1]), height / (plane.shape[0] * pixel_mm[0]))
    size = round(plane.shape[1] * pixel_mm[1] * scale), round(plane.shape[0] * pixel_mm[0] * scale)
    picture = (
        Image.fromarray(grey.astype(np.uint8)[::-1, ::-1])
        .resize(size, Image.Resampling.BILINEAR)
        .convert("RGB")
    )
    if inside is not None:
        mask = np.asarray(Image.fromarray(inside[::-1, ::-1]).resize(size, Image.Resampling.NEAREST))
        core = mask.copy()
        for axis in (0, 1):
            for step in (-1, 1):
                core &= np.roll(mask, step, axis)
        pixels = np.asarray(picture).copy()
        pixels[mask & ~core] = OUTLINE
        picture = Image.fromarray(pixels)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(picture, ((width - size[0]) // 2, (height - size[1]) // 2))
    if text:
        draw = ImageDraw.Draw(canvas)
        draw.text(
            (4, 2), text, fill=(255, 255, 255), font=ImageFont.load_default(12), stroke_width=2, stroke_fill=0
        )
    return canvas


def grid(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Lay tiles of one size in rows."""
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (columns * width, rows * height))
    for index, each in enumerate(tiles):
        canvas.paste(each, ((index % columns) * width, (index // columns) * height))
    return canvas


def study(phantom: Phantom, heights_mm: Sequence[float], window: tuple[float, float]) -> list[Image.Image]:
    """Draw axial slices at heights in mm, one coronal and one sagittal slice."""
    volume, (dz, dy, dx) = phantom.volume, phantom.spacing
    tiles = []
    for height in heights_mm:
        index = int(np.clip(round((height - phantom.affine[2, 3]) / dz), 0, len(volume) - 1))
        tiles.append(tile(volume[index], (dy, dx), window, 200, 160))
    tiles.append(tile(volume[:, volume.shape[1] // 2], (dz, dx), window, 200, 160))
    tiles.append(tile(volume[:, :, volume.shape[2] // 2], (dz, dy), window, 200, 160))
    return tiles


def finding(
    phantom: Phantom, label: str, window: tuple[float, float], text: str = "", at: int | None = None
) -> Image.Image:
    """Draw the slice that shows most of a finding, its mask outlined."""
    inside = phantom.mask(label)
    index = int(inside.sum((1, 2)).argmax()) if at is None else at
    return tile(phantom.volume[index], phantom.spacing[1:], window, 200, 152, inside[index], text)


def findings(labels: Sequence[str], region: str) -> Image.Image:
    """Draw every finding of a region alone, each in another patient."""
    tiles = []
    for seed, label in enumerate(labels):
        phantom = make_phantom(500 + seed, spacing=SPACING, labels=[label], region=region)
        window = (
            LUNG
            if region == "chest" and label in FINDING_LABELS[7:] and label != "Pleural effusion"
            else SOFT
        )
        tiles.append(finding(phantom, label, window, label))
    return grid(tiles, 5 if region == "abdomen" else 6)


def pair() -> Image.Image:
    """Draw three pairs, first and second study and their difference: presence, side and size."""
    tiles = []
    cases = (("Liver lesion", "presence", "abdomen", SOFT), ("Lung nodule", "side", "chest", LUNG),
             ("Renal cyst", "size", "abdomen", SOFT))  # fmt: skip
    for label, change, region, window in cases:
        both = make_pair(11, label, change, spacing=SPACING, region=region)
        either = both.first.mask(label) | both.second.mask(label)
        at = int(either.sum((1, 2)).argmax())
        if change == "side":  # a slice that shows both places
            both_sides = both.first.mask(label).sum((1, 2)) * both.second.mask(label).sum((1, 2))
            at = int(both_sides.argmax()) if both_sides.any() else at
        tiles += [
            finding(each, label, window, text, at)
            for each, text in ((both.first, f"{label}, {change}: first"), (both.second, "second"))
        ]
        apart = both.second.volume[at].astype(np.float32) - both.first.volume[at]
        span = 2 * max(100.0, float(np.abs(apart).max()))
        tiles.append(tile(apart, both.first.spacing[1:], (0, span), 200, 152, text="second - first"))
    return grid(tiles, 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    abdomens = [make_phantom(seed, spacing=SPACING, region="abdomen") for seed in (3, 6)]
    chests = [make_phantom(seed, spacing=SPACING) for seed in (3, 8)]
    pictures = {
        "abdomen": grid([t for p in abdomens for t in study(p, (105, 55, 20, -30, -130), SOFT)], 7),
        "chest": grid(
            [t for p, w in zip(chests, (LUNG, SOFT)) for t in study(p, (50, 10, -30, -70, -110), w)], 7
        ),
        "findings_abdomen": findings(ABDOMEN_LABELS, "abdomen"),
        "findings_chest": findings(FINDING_LABELS, "chest"),
        "pairs": pair(),
    }
    # Few grey levels and the colour of outlines: a third of the bytes. Dither would speckle the bones.
    greys = [level for grey in np.linspace(0, 255, 24).astype(int).tolist() for level in (grey, grey, grey)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*greys, *OUTLINE])
    for name, picture in pictures.items():
        reduced = picture.quantize(palette=palette, dither=Image.Dither.NONE)
        reduced.save(out / f"phantom_ct_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
