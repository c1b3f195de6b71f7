"""PhantomCT: synthetic CT in HU with known findings, the mask of each, and the report that follows from them.

Licence: CC0-1.0, no patient data is involved. Research use, not a medical device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .abdomen import render_abdomen
from .abdomen_anatomy import AbdomenAnatomy
from .abdomen_findings import paint_abdomen_findings
from .anatomy import Anatomy, Canvas, stream
from .chest import render_chest
from .draw import Draw
from .findings import paint_findings
from .regions import BODY_REGIONS, NORMAL_SHARE, BodyRegion, body_region
from .report import Finding, PhantomReport, write_report
from .wording import write_steady_report

if TYPE_CHECKING:
    import nibabel as nib

GENERATOR_VERSION = 1  # raised whenever the same seed gives another volume or report


@dataclass(frozen=True)
class Difficulty:
    """How hard the findings are to see: their size, the noise, and whether the scanner adds artefacts."""

    scale: float
    noise: float
    has_artefacts: bool


DIFFICULTIES = {
    "easy": Difficulty(1.25, 0.5, False),
    "standard": Difficulty(1.0, 1.0, True),
    "hard": Difficulty(0.75, 1.6, True),
}


@dataclass
class Phantom:
    """One synthetic study.

    Args:
        volume (`np.ndarray` of shape `(depth, height, width)`, int16): HU in canonical RAS order.
        affine (`np.ndarray` of shape `(4, 4)`): Maps voxel (x, y, z) to RAS mm.
        spacing (`tuple`): mm per voxel along (z, y, x).
        masks (`np.ndarray`, uint32, shape of the volume): Bit i is set where label i of `label_table` was drawn.
        orientation (`str`): Axis codes of the stored NIfTI file; the arrays here are canonical whatever it says.
        seed (`int`): The patient: studies of the same seed and region show the same one.
        region (`str`): `"chest"` or `"abdomen"`.
        settings (`dict`): Difficulty and text shortcut, for the record.
    """

    study_id: str
    volume: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, float, float]
    findings: tuple[Finding, ...]
    masks: np.ndarray
    report: PhantomReport
    orientation: str = "RAS"
    seed: int = 0
    region: str = "chest"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def label_table(self) -> tuple[str, ...]:
        """Return the labels of the region, in the order of the bits of `masks`."""
        return BODY_REGIONS[self.region].labels

    @property
    def labels(self) -> dict[str, int]:
        """Return 1 for every label present, 0 for the others."""
        present = {finding.label for finding in self.findings}
        return {label: int(label in present) for label in self.label_table}

    def mask(self, label: str) -> np.ndarray:
        """Return where a label was drawn."""
        return (self.masks >> np.uint32(self.label_table.index(label))) & 1 == 1

    def truth(self) -> dict[str, Any]:
        """Return what is known of the study, as JSON can hold it: the patient, and of each finding what was drawn.

        A finding has the fields of [`Finding`], the `mask_bit` of its label, and of that mask the number of voxels,
        the volume in ml and the centre in RAS mm, `None` where the spacing is too coarse to leave it a voxel.
        """
        findings = []
        for finding in self.findings:
            inside = np.argwhere(self.mask(finding.label))
            center = None
            if len(inside):
                in_mm = self.affine[:3, :3] @ inside.mean(0)[::-1] + self.affine[:3, 3]
                center = [round(float(mm), 1) for mm in in_mm]
            findings.append(
                asdict(finding)
                | {
                    "mask_bit": self.label_table.index(finding.label),
                    "num_voxels": len(inside),
                    "volume_ml": round(len(inside) * float(np.prod(self.spacing)) / 1000, 3),
                    "center_mm": center,
                }
            )
        facts = {"seed": self.seed, "region": self.region, "generator_version": GENERATOR_VERSION}
        return facts | self.settings | {"spacing_mm": list(self.spacing), "findings": findings}

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


def draw_labels(seed: int, region: str = "chest") -> list[str]:
    """Draw which findings a study has: each on its own at its prevalence, none in the normal share."""
    rng = stream(seed, "labels")
    if rng.random() < NORMAL_SHARE:
        return []
    prevalence = body_region(region).prevalence
    chance = rng.random(len(prevalence))
    return [label for label, draw in zip(prevalence, chance, strict=True) if draw < prevalence[label]]


def make_phantom(
    seed: int,
    *,
    spacing: Sequence[float] | None = None,
    orientation: str = "RAS",
    difficulty: str = "standard",
    labels: Sequence[str] | None = None,
    region: str = "chest",
    text_shortcut: float | None = None,
    draws: Mapping[str, Draw] | None = None,
) -> Phantom:
    """Make the study of a seed.

    Args:
        seed (`int`): Fixes patient, findings, report and noise. The patient is the same at every spacing.
        spacing (`Sequence[float]`, *optional*): mm per voxel along (z, y, x); drawn from the seed when not given.
        orientation (`str`): Axis codes under which the volume is stored, e.g. `"LPS"`; arrays stay canonical.
        difficulty (`str`): `"standard"`; `"easy"`: larger findings, a quiet background, no artefacts; `"hard"`: smaller
            findings and the noise of a low dose.
        labels (`Sequence[str]`, *optional*): Exactly these findings instead of drawn ones; anatomy, noise and the other
            findings keep their place, so two studies can be one finding apart.
        region (`str`): `"chest"` (labels: `FINDING_LABELS`) or `"abdomen"` (abdomen and pelvis; `ABDOMEN_LABELS`).
        text_shortcut (`float`, *optional*): From 0, a report that says nothing but its findings in varied words, to 1,
            long fixed normal sentences for every organ in which a finding is a short clause: how far the loss can
            fall without looking. Reports vary both kinds of sentence when not given.
        draws (`Mapping[str, Draw]`, *optional*): Departures of single findings from what the seed draws.
    """
    body = body_region(region)
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}. Pass 0 or more.")
    if difficulty not in DIFFICULTIES:
        raise ValueError(
            f'`difficulty` must be "easy", "standard" or "hard", got "{difficulty}". Pass one of the three.'
        )
    if sorted(orientation.translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise ValueError(
            f'`orientation` names one direction per axis, got "{orientation}". Use e.g. "RAS" or "LPS".'
        )
    spacing = random_spacing(seed) if spacing is None else check_spacing(spacing)
    if text_shortcut is not None and not 0 <= text_shortcut <= 1:
        raise ValueError(
            f"`text_shortcut` must lie in 0 to 1, got {text_shortcut}. Leave it out for varied text."
        )
    labels = draw_labels(seed, region) if labels is None else list(labels)
    unknown = sorted(set(labels) - set(body.labels))
    if unknown:
        raise ValueError(
            f"`labels` must come from the {len(body.labels)} finding labels of the {region}, got {unknown}. "
            f"Use some of: {', '.join(body.labels)}."
        )
    level = DIFFICULTIES[difficulty]
    paint = _paint_chest if body.name == "chest" else _paint_abdomen
    canvas, findings = paint(seed, spacing, level.scale, labels, draws or {})
    _acquire(seed, canvas, level)
    return Phantom(
        f"{body.prefix}_{seed:06d}",
        np.clip(np.rint(canvas.hu), -1024, 3071).astype(np.int16),
        canvas.affine,
        spacing,  # type: ignore[arg-type]
        tuple(findings),
        canvas.masks,
        _report(body, findings, seed, text_shortcut),
        orientation,
        seed,
        region,
        {"difficulty": difficulty, "text_shortcut": text_shortcut},
    )


def _paint_chest(
    seed: int, spacing: Sequence[float], scale: float, labels: Sequence[str], draws: Mapping[str, Draw]
) -> tuple[Canvas, list[Finding]]:
    ratio = float(stream(seed, "Cardiomegaly").uniform(0.56, 0.65)) if "Cardiomegaly" in labels else None
    anatomy = Anatomy(seed, enlarged_heart=ratio)
    canvas = Canvas(*anatomy.field_of_view(), spacing)
    scene = render_chest(anatomy, canvas)
    scene.scale = scale
    return canvas, paint_findings(scene, labels, draws)


def _paint_abdomen(
    seed: int, spacing: Sequence[float], scale: float, labels: Sequence[str], draws: Mapping[str, Draw]
) -> tuple[Canvas, list[Finding]]:
    anatomy = AbdomenAnatomy(seed)
    canvas = Canvas(*anatomy.field_of_view(), spacing)
    scene = render_abdomen(anatomy, canvas)
    scene.scale = scale
    return canvas, paint_abdomen_findings(scene, labels, draws)


def _report(
    body: BodyRegion, findings: Sequence[Finding], seed: int, text_shortcut: float | None
) -> PhantomReport:
    if body.name == "chest" and text_shortcut is None:
        return write_report(findings, seed)
    return write_steady_report(findings, seed, body.vocabulary, text_shortcut)


def check_spacing(spacing: Sequence[float]) -> tuple[float, ...]:
    """Return mm along (z, y, x) as numbers, or refuse them."""
    spacing = tuple(float(s) for s in spacing)
    if len(spacing) != 3 or not all(0.3 <= s <= 20 for s in spacing):
        raise ValueError(
            f"`spacing` must be three values of 0.3 to 20 mm, got {spacing}. Pass (z, y, x) in mm."
        )
    return spacing


def random_spacing(seed: int) -> tuple[float, float, float]:
    """Draw a spacing in mm along (z, y, x): slices of 2 to 6 mm, 1.4 to 3 mm in plane."""
    rng = stream(seed, "spacing")
    in_plane = round(float(rng.uniform(1.4, 3.0)), 2)
    return float(rng.choice([2.0, 2.5, 3.0, 4.0, 5.0, 6.0])), in_plane, in_plane


def _acquire(seed: int, canvas: Canvas, difficulty: Difficulty) -> None:
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
    level = difficulty.noise * noise / (0.62 * (canvas.edge / 1.5) ** 0.9)
    canvas.hu += grain * np.float32(level)
    if streaks and difficulty.has_artefacts:  # horizontal streaks of arms and shoulders
        rows = canvas.noise_field(rng, 16, (slice(None), slice(None), slice(0, 1)))
        height = np.clip((canvas.z - rng.uniform(0, 40)) / 30, 0, 1)
        canvas.hu += np.float32(rng.uniform(10, 28)) * height * rows
    if difficulty.has_artefacts:
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
        donor = make_phantom(seed + 500_000_000, spacing=(12, 12, 12), labels=[label], region=phantom.region)
        findings = sorted([*findings, *donor.findings], key=lambda f: phantom.label_table.index(f.label))
    shortcut = phantom.settings.get("text_shortcut")
    return _report(BODY_REGIONS[phantom.region], findings, seed, shortcut)
