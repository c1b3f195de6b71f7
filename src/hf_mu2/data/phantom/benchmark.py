"""Write PhantomCT as a benchmark: fixed seeds per split, far from each other and from those of the demo checkpoint.

Reads: nothing; every study is computed from its seed.
Writes: one folder with all splits, masks beside; `load_dataset` and `load_corpus("phantom_ct", ...)` open it.
"""

from collections.abc import Mapping
from pathlib import Path

from .folder import write_phantoms

# The demo checkpoint has seen seeds below 2,400 and was measured from 10,000,000 on.
FIRST_SEED = {"train": 100_000_000, "validation": 200_000_000, "test": 300_000_000}
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"train": 16, "validation": 4, "test": 8},
    "demo": {"train": 320, "validation": 48, "test": 48},  # `make demo-train`
    "small": {"train": 400, "validation": 60, "test": 100},
    "standard": {"train": 2400, "validation": 200, "test": 400},
}
RESOLUTIONS: dict[str, tuple[float, float, float] | None] = {
    "native": None,  # drawn per study: slices of 2 to 6 mm, 1.4 to 3 mm in plane
    "coarse": (5.0, 4.5, 4.5),  # what the demo checkpoint sees
    "quick": (10.0, 7.0, 7.0),  # experiments in minutes on two cores; lesions under 15 mm are lost
}


def write_benchmark(
    out: str | Path,
    size: str | Mapping[str, int] = "small",
    *,
    region: str = "chest",
    resolution: str = "native",
    difficulty: str = "standard",
    text_shortcut: float | None = None,
    view: str = "sft",
    num_workers: int = 1,
) -> Path:
    """Write the splits of the benchmark into one folder; return the folder.

    A study has the same patient, findings and report at every resolution, and the first studies of a split are the same
    at every size. A killed run continues where it stopped.

    Args:
        size (`str` or `Mapping[str, int]`): One of `SIZES`, or the number of studies of each split.
        resolution (`str`): One of `RESOLUTIONS`.
        region, difficulty, text_shortcut: As in [`make_phantom`].
        view (`str`): As in [`write_phantoms`], of the training split; the others are always written for SFT.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise ValueError(f"`size` must be one of {tuple(SIZES)} or numbers per split, got {size!r}.")
        size = SIZES[size]
    if not size or set(size) - set(FIRST_SEED):
        raise ValueError(f"`size` has numbers for some of {tuple(FIRST_SEED)}, got {sorted(size)}.")
    if resolution not in RESOLUTIONS:
        raise ValueError(
            f"`resolution` must be one of {tuple(RESOLUTIONS)}, got {resolution!r}. Pass one of them."
        )
    for split, count in size.items():
        write_phantoms(
            out,
            count,
            FIRST_SEED[split],
            view=view if split == "train" else "sft",
            spacing=RESOLUTIONS[resolution],
            difficulty=difficulty,
            region=region,
            text_shortcut=text_shortcut,
            split=split,
            num_workers=num_workers,
        )
    return Path(out)
