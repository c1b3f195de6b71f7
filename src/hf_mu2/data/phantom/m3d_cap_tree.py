"""Write PhantomCT studies as M3D-Cap: numbered 8-bit slices seen through a window, and the text of each case.

Writes: `M3D_Cap.json`, `ct_case/<number>/<series>/<slice>.png` and `ct_case/<number>/text.txt`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_mu2.files import replace_text, replacing

from ..m3d_cap import INDEX, SPLITS
from ..pictures import NAMED_WINDOWS
from .generate import Phantom

WINDOW = (40.0, 400.0)
FIRST_CASE = 7


def write_m3d_cap_tree(root: str | Path, studies: Sequence[Phantom], *, num_held_out: int = 1) -> Path:
    """Write studies in the layout of M3D-Cap and return `root`.

    Every case has axial and coronal slices through a soft tissue window and axial ones through a bone window; every
    third tells its findings under `discussion:` alone.

    Args:
        num_held_out (`int`): How many of the last studies go to validation, and as many before them to test.
    """
    root = Path(root)
    index: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for number, phantom in enumerate(studies):
        case = f"ct_case/{FIRST_CASE + number:06d}"
        for series, window in (
            ("Axial_bone_window", NAMED_WINDOWS["bone"]),
            ("Axial_non_contrast", WINDOW),
            ("Coronal_non_contrast", WINDOW),
        ):
            _write_slices(root / case / series, phantom, window, series.startswith("Coronal"))
            left = len(studies) - number
            split = "validation" if left <= num_held_out else "test" if left <= 2 * num_held_out else "train"
            index[split].append({"image": f"{case}/{series}.npy", "text": f"{case}/text.txt"})
        findings, impression = phantom.report.findings, phantom.report.impression
        told = [f"discussion: {impression}", f"study_findings: {findings}"]
        lines = ["presentation: synthetic case", *([f"discussion: {findings}"] if number % 3 == 2 else told)]
        replace_text(root / case / "text.txt", "\n".join(lines) + "\n")
    replace_text(root / INDEX, json.dumps(index))
    return root


def _write_slices(folder: Path, phantom: Phantom, window: tuple[float, float], is_coronal: bool) -> None:
    """Render slices as a viewer shows them: left on the right, front or head on top."""
    from PIL import Image

    level, width = window
    grey = np.clip((phantom.volume - (level - width / 2)) / width * 255, 0, 255).round().astype(np.uint8)
    stack = grey[
        ::-1, ::-1, ::-1
    ]  # first slice on top, first row in front, first column on the patient's right
    stack = stack.transpose(1, 0, 2) if is_coronal else stack
    for number, slice_ in enumerate(stack, start=1):
        with replacing(folder / f"{number}.png") as partial:
            Image.fromarray(slice_).save(partial)
