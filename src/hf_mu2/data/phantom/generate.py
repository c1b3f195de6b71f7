"""PhantomCT: synthetic chest CT in HU with known findings, the mask of each, and the report that follows from them.

Licence: CC0-1.0, no patient data is involved. Research use, not a medical device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..study import FINDING_LABELS
from .anatomy import Anatomy, Canvas, stream
from .chest import render_chest
from .findings import paint_findings
from .report import Finding, PhantomReport, write_report

if TYPE_CHECKING:
    import nibabel as nib

GENERATOR_VERSION = 1  # raised whenever the same seed gives another volume or report
PREVALENCE = dict(
    zip(
        FINDING_LABELS,
        # Flatter than in life, so that every label can be learned and measured.
        (
            0.22,
            0.28,
            0.23,
            0.19,
            0.25,
            0.20,
            0.24,
            0.22,
            0.27,
            0.34,
            0.29,
            0.26,
            0.24,
            0.20,
            0.22,
            0.24,
            0.22,
            0.22,
        ),
        strict=True,
    )
)
NORMAL_SHARE = 0.08
PROMPTS = (
    "Write the findings and impression of this chest CT.",
    "Report this chest CT: findings and impression.",
    "Describe the findings of this chest CT and give an impression.",
    "Please write a radiology report for this chest CT with findings and impression.",
    "What does this chest CT show? Give findings and impression.",
    "Generate the report of this CT of the chest, findings first, then the impression.",
    "Read this chest CT and state your findings and impression.",
)


@dataclass
class Phantom:
    """One synthetic study.

    Args:
        volume (`np.ndarray` of shape `(depth, height, width)`, int16): HU in canonical RAS order.
        affine (`np.ndarray` of shape `(4, 4)`): Maps voxel (x, y, z) to RAS mm.
        spacing (`tuple`): mm per voxel along (z, y, x).
        masks (`np.ndarray`, uint32, shape of the volume): Bit i is set where label i of `FINDING_LABELS` was drawn.
        orientation (`str`): Axis codes of the stored NIfTI file; the arrays here are canonical whatever it says.
    """

    study_id: str
    volume: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, float, float]
    findings: tuple[Finding, ...]
    masks: np.ndarray
    report: PhantomReport
    orientation: str = "RAS"

    @property
    def labels(self) -> dict[str, int]:
        """Return 1 for every label present, 0 for the others."""
        present = {finding.label for finding in self.findings}
        return {label: int(label in present) for label in FINDING_LABELS}

    def mask(self, label: str) -> np.ndarray:
        """Return where a label was drawn."""
        return (self.masks >> np.uint32(FINDING_LABELS.index(label))) & 1 == 1

    def nifti(self, array: np.ndarray | None = None) -> "nib.Nifti1Image":
        """Return the volume (or another array on its grid) as a NIfTI image stored in `orientation`."""
        import nibabel as nib

        array = self.volume if array is None else array
        image = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), self.affine)
        image.header.set_xyzt_units("mm", "sec")
        codes = nib.orientations.axcodes2ornt(tuple(self.orientation))
        image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(self.affine), codes))
        image.set_data_dtype(array.dtype)
        return image


def draw_labels(seed: int) -> list[str]:
    """Draw which findings a study has: each on its own at its prevalence, none in the normal share."""
    rng = stream(seed, "labels")
    if rng.random() < NORMAL_SHARE:
        return []
    chance = rng.random(len(FINDING_LABELS))
    return [label for label, draw in zip(FINDING_LABELS, chance, strict=True) if draw < PREVALENCE[label]]


def make_phantom(
    seed: int,
    *,
    spacing: Sequence[float] | None = None,
    orientation: str = "RAS",
    difficulty: str = "standard",
    labels: Sequence[str] | None = None,
) -> Phantom:
    """Make the study of a seed.

    Args:
        seed (`int`): Fixes patient, findings, report and noise. The patient is the same at every spacing.
        spacing (`Sequence[float]`, *optional*): mm per voxel along (z, y, x); drawn from the seed when not given.
        orientation (`str`): Axis codes under which the volume is stored, e.g. `"LPS"`; arrays stay canonical.
        difficulty (`str`): `"standard"`, or `"easy"`: larger findings, a quiet background, no artefacts.
        labels (`Sequence[str]`, *optional*): Exactly these findings instead of drawn ones; anatomy, noise and the other
            findings keep their place, so two studies can be one finding apart.
    """
    if difficulty not in ("standard", "easy"):
        raise ValueError(
            f'`difficulty` must be "standard" or "easy", got "{difficulty}". Pass one of the two.'
        )
    if sorted(orientation.translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise ValueError(
            f'`orientation` names one direction per axis, got "{orientation}". Use e.g. "RAS" or "LPS".'
        )
    spacing = random_spacing(seed) if spacing is None else tuple(float(s) for s in spacing)
    if len(spacing) != 3 or not all(0.3 <= s <= 20 for s in spacing):
        raise ValueError(
            f"`spacing` must be three values of 0.3 to 20 mm, got {spacing}. Pass (z, y, x) in mm."
        )
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}. Pass 0 or more.")
    labels = draw_labels(seed) if labels is None else list(labels)
    unknown = sorted(set(labels) - set(FINDING_LABELS))
    if unknown:
        raise ValueError(
            f"`labels` must come from the 18 finding labels, got {unknown}. See `FINDING_LABELS`."
        )
    easy = difficulty == "easy"
    ratio = float(stream(seed, "Cardiomegaly").uniform(0.56, 0.65)) if "Cardiomegaly" in labels else None
    anatomy = Anatomy(seed, enlarged_heart=ratio)
    canvas = Canvas(*anatomy.field_of_view(), spacing)
    scene = render_chest(anatomy, canvas)
    scene.scale = 1.25 if easy else 1.0
    findings = paint_findings(scene, labels)
    _acquire(seed, canvas, easy)
    volume = np.clip(np.rint(canvas.hu), -1024, 3071).astype(np.int16)
    report = write_report(findings, seed)
    return Phantom(
        f"phantom_{seed:06d}",
        volume,
        canvas.affine,
        spacing,
        tuple(findings),
        canvas.masks,
        report,
        orientation,
    )


def random_spacing(seed: int) -> tuple[float, float, float]:
    """Draw a spacing in mm along (z, y, x): slices of 2 to 6 mm, 1.4 to 3 mm in plane."""
    rng = stream(seed, "spacing")
    in_plane = round(float(rng.uniform(1.4, 3.0)), 2)
    return float(rng.choice([2.0, 2.5, 3.0, 4.0, 5.0, 6.0])), in_plane, in_plane


def _acquire(seed: int, canvas: Canvas, easy: bool) -> None:
    """Add what the scanner does: blur of the kernel, correlated noise, streaks, a small error of the HU scale."""
    rng = stream(seed, "scanner")
    sigma_mm, noise, offset = rng.uniform(0.5, 1.1), rng.uniform(9, 30), rng.normal(0, 6)
    streaks = rng.random() < 0.15
    for axis in (1, 2):
        _blur(canvas.hu, axis, sigma_mm / canvas.spacing[axis])
    grain = rng.standard_normal(canvas.shape, dtype=np.float32)
    for axis in (1, 2):
        _blur(grain, axis, 0.55)
    # Larger voxels collect more photons; the exponent is below 1/2 since noise is correlated.
    level = noise / (0.62 * (canvas.edge / 1.5) ** 0.9)
    if easy:
        level *= 0.5
    canvas.hu += grain * np.float32(level)
    if streaks and not easy:  # horizontal streaks of arms and shoulders
        rows = canvas.noise_field(rng, 16, (slice(None), slice(None), slice(0, 1)))
        height = np.clip((canvas.z - rng.uniform(0, 40)) / 30, 0, 1)
        canvas.hu += np.float32(rng.uniform(10, 28)) * height * rows
    if not easy:
        canvas.hu += np.float32(offset)


def _blur(volume: np.ndarray, axis: int, sigma_voxels: float) -> None:
    """Blur one axis in place with three taps of the wanted variance."""
    side = np.float32(min(0.25, 0.5 * sigma_voxels**2))
    moved = np.moveaxis(volume, axis, 0)
    if len(moved) < 3 or side < 1e-3:
        return
    around = moved[:-2] + moved[2:]
    moved[1:-1] *= 1 - 2 * side
    moved[1:-1] += side * around


def spoil(phantom: Phantom, seed: int) -> PhantomReport:
    """Write a wrong report for a study: one finding dropped, added or moved to the other side."""
    rng = stream(seed, "rejected")
    findings = list(phantom.findings)
    sided = [i for i, finding in enumerate(findings) if finding.side in ("left", "right")]
    absent = [label for label, present in phantom.labels.items() if not present]
    ways = ["add"] * bool(absent) + ["drop"] * bool(findings) + ["move"] * bool(sided)
    way = str(rng.choice(ways))
    if way == "drop":
        findings.pop(int(rng.integers(len(findings))))
    elif way == "move":
        index = int(rng.choice(sided))
        finding = findings[index]
        regions: dict[str | None, str | None] = {"middle lobe": "lingula", "lingula": "middle lobe"}
        findings[index] = replace(
            finding,
            side="left" if finding.side == "right" else "right",
            region=regions.get(finding.region, finding.region),
        )
    else:
        label = str(rng.choice(absent))
        donor = make_phantom(seed + 500_000_000, spacing=(12, 12, 12), labels=[label])
        findings = sorted([*findings, *donor.findings], key=lambda f: FINDING_LABELS.index(f.label))
    return write_report(findings, seed)
