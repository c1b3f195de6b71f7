"""Pairs of studies that are one finding apart: the same patient, noise and words, but for that finding.

Reads: nothing; every pair is computed from its seed.
Writes: a folder like that of `folder.py`, with both studies of every pair, and masks beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .benchmark import FIRST_SEED
from .draw import Draw
from .folder import PhantomFolder
from .generate import Phantom, draw_labels, make_phantom
from .lungs import lesion_sites, mirrored
from .regions import BODY_REGIONS, body_region
from .wording import write_steady_report

CHANGES = ("presence", "side", "size")
# These change the whole organ and what lies around it; any other label can come and go.
_EVERYWHERE = {"Cardiomegaly", "Mosaic attenuation pattern"}
_SIDED = {
    "Atelectasis",
    "Bronchiectasis",
    "Consolidation",
    "Interlobular septal thickening",
    "Lung nodule",
    "Lung opacity",
    "Lymphadenopathy",
    "Peribronchial thickening",
    "Pleural effusion",
    "Pulmonary fibrotic sequela",
    "Abdominal lymphadenopathy",
    "Adrenal nodule",
    "Hydronephrosis",
    "Renal cyst",
    "Renal stone",
}
# A size from which the finding can shrink and still be seen, in mm.
_LARGE_MM = {
    "Consolidation": 52,
    "Hiatal hernia": 56,
    "Lung nodule": 17,
    "Lung opacity": 48,
    "Lymphadenopathy": 19,
    "Pericardial effusion": 14,
    "Pleural effusion": 32,
    "Abdominal lymphadenopathy": 19,
    "Adrenal nodule": 22,
    "Aortic aneurysm": 52,
    "Bowel obstruction": 40,
    "Bowel wall thickening": 11,
    "Gallstone": 12,
    "Liver lesion": 28,
    "Pancreatic lesion": 26,
    "Renal cyst": 32,
    "Renal stone": 11,
    "Splenomegaly": 165,
}
SHRINK = 0.6
# How far from both masks voxels may differ: a halo and a few voxels, since a mask holds only what is half filled.
# Some halos are wide: compressed lung along fluid, faint ground glass around a core, thin layers of fluid.
_NARROW_MM, _VOXELS = 8.0, 2.5
_HALO_MM = {
    "Consolidation": 45.0,
    "Emphysema": 40.0,
    "Interlobular septal thickening": 28.0,
    "Lung opacity": 80.0,
    "Pericardial effusion": 45.0,
    "Pleural effusion": 80.0,
}
_NUM_VARIANTS = 60  # the rarest wanted draw, peribronchial thickening of one side, is one in five


@dataclass(frozen=True)
class PhantomPair:
    """Two studies of one patient that are one finding apart.

    Args:
        first, second (`Phantom`): Without and with the finding; on one side and on the other; large and small.
        label (`str`): The label of the finding.
        change (`str`): `"presence"`, `"side"` or `"size"`.
    """

    first: Phantom
    second: Phantom
    label: str
    change: str

    @property
    def reach_mm(self) -> float:
        """Return how far from the masks of the finding voxels may differ, where the spacing leaves it a mask."""
        return _HALO_MM.get(self.label, _NARROW_MM) + _VOXELS * max(self.first.spacing)


def pair_labels(change: str, region: str = "chest") -> tuple[str, ...]:
    """Return the labels that can make a pair of a kind of change."""
    labels = body_region(region).labels
    if change not in CHANGES:
        raise ValueError(f"`change` must be one of {CHANGES}, got {change!r}. Pass one of them.")
    if change == "presence":
        return tuple(label for label in labels if label not in _EVERYWHERE)
    return tuple(label for label in labels if label in (_SIDED if change == "side" else _LARGE_MM))


def make_pair(
    seed: int,
    label: str,
    change: str = "presence",
    *,
    spacing: Sequence[float] | None = None,
    difficulty: str = "standard",
    region: str = "chest",
    text_shortcut: float | None = None,
) -> PhantomPair:
    """Make two studies of one patient that differ in one finding.

    Voxels differ only in the finding's masks and within `reach_mm` of them, and reports only in what they say about
    the finding. Both studies keep the other findings that the seed draws, but for those in the place that a change of
    side needs.

    Args:
        label (`str`): One of `pair_labels(change, region)`.
        change (`str`): `"presence"`: absent, present. `"side"`: the same finding in one of the sides, each in turn.
            `"size"`: large, and 0.6 times as large at the same place, but never as small as what is normal.
        spacing, difficulty, text_shortcut: As in [`make_phantom`]. Reports are always those of `wording.py`.
    """
    if label not in pair_labels(change, region):
        raise ValueError(
            f"A pair of change {change!r} in the {region} takes one of {pair_labels(change, region)}, got {label!r}. "
            "Pass one of these."
        )
    others = [other for other in draw_labels(seed, region) if other != label]
    draws = [Draw(), Draw()]
    if change != "presence":
        variant = _wanted_variant(seed, label, change, difficulty, region)
        draws = [
            Draw(variant),
            Draw(variant, is_mirrored=change == "side", shrink=SHRINK if change == "size" else 1),
        ]
    if change == "side" and region == "chest":
        sites = lesion_sites(seed)
        free = mirrored(sites[label]) if label in sites else None
        others = [other for other in others if other not in sites or sites[other] != free]
    first, second = (
        _steady(
            make_phantom(
                seed,
                spacing=spacing,
                difficulty=difficulty,
                labels=others if change == "presence" and number == 0 else [*others, label],
                region=region,
                text_shortcut=text_shortcut,
                draws={label: draws[number]},
            )
        )
        for number in range(2)
    )
    return PhantomPair(first, second, label, change)


def write_pairs(
    out: str | Path,
    n: int,
    seed: int = FIRST_SEED["test"],
    *,
    change: str = "presence",
    labels: Sequence[str] | None = None,
    spacing: Sequence[float] | None = None,
    difficulty: str = "standard",
    region: str = "chest",
    text_shortcut: float | None = None,
    split: str = "test",
) -> Path:
    """Write `n` pairs, of seeds `seed` to `seed + n - 1`, as a folder for `load_dataset`; return the folder.

    The first seed is that of the benchmark's test split, so that no pair shows a patient of its training split.

    A killed run continues where it stopped. The two studies of a pair are two rows, `<study>_<change>_a` and `_b`; the
    `metadata` of each has `pair`: its id, change and label, and the id of the other study.

    Args:
        labels (`Sequence[str]`, *optional*): Labels to change, each in turn; all that can when not given.
    """
    labels = pair_labels(change, region) if labels is None else tuple(labels)
    settings = {
        "change": change,
        "changed_labels": list(labels),
        "spacing": None if spacing is None else list(spacing),
        "difficulty": difficulty,
        "region": region,
        "text_shortcut": text_shortcut,
    }
    folder = PhantomFolder(Path(out), split, {"seed": seed, "n": n, "view": "sft"} | settings)
    rows: list[Any] = []
    for number in range(n):
        names = [f"{BODY_REGIONS[region].prefix}_{seed + number:06d}_{change}_{end}" for end in "ab"]
        done = [folder.finished(name) for name in names]
        if None in done:
            pair = make_pair(
                seed + number,
                labels[number % len(labels)],
                change,
                spacing=spacing,
                difficulty=difficulty,
                region=region,
                text_shortcut=text_shortcut,
            )
            done = []
            for name, other, phantom in zip(names, names[::-1], (pair.first, pair.second), strict=True):
                facts: dict[str, Any] = {
                    "id": name[:-2],
                    "change": change,
                    "label": pair.label,
                    "other": other,
                }
                done.append(folder.write(replace(phantom, study_id=name), {"pair": facts}))
        rows += done
    return folder.close(rows)


def _wanted_variant(seed: int, label: str, change: str, difficulty: str, region: str) -> int:
    """Return the first draw of a finding that lies on one side, or is large enough to shrink."""
    scale = {"easy": 1.25, "standard": 1.0, "hard": 0.75}[difficulty]
    for variant in range(_NUM_VARIANTS):
        (finding,) = make_phantom(
            seed,
            spacing=(15, 15, 15),
            labels=[label],
            difficulty=difficulty,
            region=region,
            draws={label: Draw(variant)},
        ).findings
        if change == "side" and finding.side in ("left", "right"):
            return variant
        if change == "size" and finding.size_mm is not None and finding.size_mm >= _LARGE_MM[label] * scale:
            return variant
    raise ValueError(
        f"No draw of {label!r} in {_NUM_VARIANTS} can change its {change} for seed {seed}. Pass another seed."
    )


def _steady(phantom: Phantom) -> Phantom:
    vocabulary = BODY_REGIONS[phantom.region].vocabulary
    shortcut = phantom.settings["text_shortcut"]
    return replace(phantom, report=write_steady_report(phantom.findings, phantom.seed, vocabulary, shortcut))
