"""Turn numbered 8-bit slices, as teaching sites publish them, into NIfTI volumes with stated assumptions.

Reads: folders of `1.png`, `2.png`, ... (or `.jpeg`) that a viewer rendered through some window.
Writes: one `.nii.gz` per folder and a `manifest.json` that states the window and spacing that were assumed.

A picture has no Hounsfield units, no spacing and no orientation. What is written here is no measurement: values are
interpolated through the window the caller states, everything black counts as air, everything white as the top of the
window, and left is taken to be on the viewer's right, as radiologists look at slices.
"""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from hf_mu2.files import replace_text

from .corpus import CorpusError
from .nifti import save_nifti

if TYPE_CHECKING:
    import nibabel as nib

MANIFEST = "manifest.json"
PLANES = {"axial": "LPI", "coronal": "LIP", "sagittal": "PIL"}  # where columns, rows and slices point
NAMED_WINDOWS = {"lung": (-600.0, 1500.0), "bone": (400.0, 1800.0)}  # for folders that say so
BLACK = 3  # grey levels that JPEG leaves around what was 0
AIR_HU = -1000

_ENDINGS = (".png", ".jpeg", ".jpg")


def plane_of(name: str) -> str | None:
    """Return the plane a folder is named after, such as `"axial"` for `Axial_bone_window`."""
    return next((plane for plane in PLANES if plane in name.lower()), None)


def window_of(name: str) -> tuple[float, float] | None:
    """Return the window (level, width) that a folder's name speaks of, if it speaks of one."""
    return next((window for word, window in NAMED_WINDOWS.items() if word in name.lower()), None)


def stack_slices(
    folder: str | Path, *, window: Sequence[float], spacing: Sequence[float], plane: str = "axial"
) -> "nib.Nifti1Image":
    """Stack the numbered slices of a folder into a volume. Its values are not HU, whatever they look like.

    Args:
        window (`Sequence[float]`): Level and width in HU that the slices are assumed to be rendered through.
        spacing (`Sequence[float]`): Assumed mm between slices, rows and columns.
        plane (`str`): `"axial"` (first slice on top), `"coronal"` (first in front) or `"sagittal"` (first on the
            right); the pictures do not say.

    Raises:
        CorpusError: if there are no slices, one is not numbered, missing, damaged, or of another size.
    """
    import nibabel as nib
    from PIL import Image

    folder = Path(folder)
    level, width = (float(value) for value in window)
    if width <= 0:
        raise CorpusError(
            f"A window is level and width > 0 in HU, got {level:g} and {width:g}. Pass e.g. 40 400."
        )
    if len(spacing) != 3 or min(spacing) <= 0:
        raise CorpusError(
            f"`spacing` is three positive numbers in mm, got {tuple(spacing)}. Pass e.g. 5 0.8 0.8."
        )
    slices: list[np.ndarray] = []
    for path in _numbered(folder):
        try:
            with Image.open(path) as picture:
                grey = np.asarray(picture.convert("L"))
        except OSError as error:
            raise CorpusError(
                f"A slice must be a readable picture, `{folder.name}/{path.name}` is not."
            ) from error
        if slices and grey.shape != slices[0].shape:
            raise CorpusError(
                f"The slices of a series have one size, `{folder.name}/{path.name}` has {grey.shape} and the first "
                f"{slices[0].shape}. Remove the pictures that belong to another series."
            )
        slices.append(grey)
    stack = np.stack(slices)
    hu = np.rint(level - width / 2 + stack * np.float32(width / 255)).astype(np.int16)
    hu[stack <= BLACK] = min(AIR_HU, int(level - width / 2))
    codes = PLANES[plane]
    affine = np.eye(4)
    for axis, (code, mm) in enumerate(zip(codes, spacing[::-1], strict=True)):
        world, sign = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}[code]
        affine[:3, axis] = 0
        affine[world, axis] = sign * float(mm)
    image = nib.Nifti1Image(hu.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"pictures, window {level:g} {width:g} and spacing assumed: not HU".encode()[
        :79
    ]
    return image


def convert_pictures(
    root: str | Path,
    folders: Iterable[str],
    *,
    window: Sequence[float],
    spacing: Sequence[float],
    out: str = "nifti",
    num_workers: int = 1,
) -> dict[str, str]:
    """Write `<root>/<out>/<folder>.nii.gz` for every folder; return why each one that could not be was left out.

    Folders named after lung or bone windows use `NAMED_WINDOWS` instead of `window`. A killed run continues where it
    stopped, with the same assumptions only.

    Raises:
        CorpusError: if `out` was begun with other assumptions.
    """
    root = Path(root)
    manifest = {
        "values": "not HU: 8-bit pictures read through an assumed window",
        "window": [float(value) for value in window],
        "named_windows": {name: list(value) for name, value in NAMED_WINDOWS.items()},
        "spacing_mm": [float(mm) for mm in spacing],
        "orientation": "assumed: viewer's left is the patient's right",
    }
    record = root / out / MANIFEST
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) != manifest:
        raise CorpusError(
            f"Pictures are converted under one set of assumptions, `{record}` was begun with others. Choose another "
            "`out` or pass the same window and spacing."
        )
    replace_text(record, json.dumps(manifest, indent=2) + "\n")
    jobs = [(root, folder, out, tuple(window), tuple(spacing)) for folder in folders]
    if num_workers > 1:
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            results = list(tqdm(pool.map(_convert, jobs, chunksize=8), total=len(jobs), disable=None))
    else:
        results = [_convert(job) for job in tqdm(jobs, disable=None)]
    return {folder: reason for folder, reason in results if reason}


def _convert(job: tuple[Path, str, str, tuple[float, ...], tuple[float, ...]]) -> tuple[str, str]:

    root, folder, out, window, spacing = job
    name = Path(folder).name
    target = root / out / f"{folder}.nii.gz"
    if not target.exists():
        try:
            image = stack_slices(
                root / folder,
                window=window_of(name) or window,
                spacing=spacing,
                plane=plane_of(name) or "axial",
            )
        except CorpusError as error:
            return folder, str(error)
        save_nifti(image, target)
    return folder, ""


def _numbered(folder: Path) -> list[Path]:
    """Return the slices of a folder by number."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS] if folder.is_dir() else []
    odd = [path.name for path in paths if not path.stem.isdecimal()]
    if not paths or odd:
        arrived = f"{sorted(odd)[:3]}" if odd else "none"
        raise CorpusError(
            f"A series of pictures is a folder of slices named 1.png, 2.png, ...; `{folder.name}` has {arrived}. "
            "Point at the folder of one series."
        )
    paths.sort(key=lambda path: int(path.stem))
    numbers = [int(path.stem) for path in paths]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise CorpusError(
            f"The slices of a series are numbered without a gap, `{folder.name}` has {len(numbers)} of "
            f"{numbers[-1] - numbers[0] + 1} or one twice. Download the missing ones."
        )
    return paths


def assumptions(folder: Path) -> dict[str, Any]:
    """Return what the volumes of a folder of conversions assume."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest
