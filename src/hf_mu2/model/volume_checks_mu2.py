"""Turn stored voxels into HU, canonical RAS order and millimetres, and refuse what is not one CT volume."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np

AIR_HU = -1024  # lowest value a 12-bit CT can store; what lies below is scanner padding
MAX_VOXELS = 2**30  # 2 GiB of int16, twice a 512 x 512 CT of 2,000 slices
SPACING_MM = (0.05, 25.0)
THICK_SLICE_MM = 8.0
OBLIQUE_DEGREES = 5.0
SHEAR_DEGREES = 1.0


class VolumeError(ValueError):
    """A source that cannot be read as one CT volume: the rule, what arrived, what to do."""


class OutOfDomainWarning(UserWarning):
    """A readable volume unlike what the models are made for, such as thick slices or oblique axes."""


@dataclass
class Stored:
    """Voxels as a source holds them, before any check.

    Args:
        voxels (`np.ndarray`): Stored values along the disk axes (i, j, k).
        affine (`np.ndarray` of shape `(4, 4)`, *optional*): Disk voxel to RAS mm; `None` where the source has none.
        name (`str`): What to call the source in messages.
        kind (`str`): "nifti", "dicom", "array" or "picture".
        slope, inter (`float`): HU = slope * stored + inter.
        is_ours (`bool`): The voxels may be overwritten.
        blank (`str`): Why `affine` is missing, for the message.
        facts, steps: What goes into the provenance.
    """

    voxels: np.ndarray
    affine: np.ndarray | None
    name: str
    kind: str
    slope: float = 1.0
    inter: float = 0.0
    is_ours: bool = False
    blank: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)


def canonical_hu(
    stored: Stored, spacing: Sequence[float] | None, orientation: str | None, clamp: bool, check_hu: bool
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float], dict[str, Any]]:
    """Return HU (depth, height, width) in RAS order, its affine, its spacing and its provenance."""
    if spacing is not None:
        spacing = checked_spacing(spacing, "the `spacing` argument")
    array, low, high = _to_hu(stored)
    if check_hu:
        _refuse_unless_hu(array, low, high, stored.name)
    if clamp and low < AIR_HU:
        array = _raise_padding(array, low, stored)
    affine = stored.affine if stored.affine is not None else _assumed_affine(stored, spacing, orientation)
    array, affine, codes = _canonical(array, affine, stored)
    if stored.affine is not None and spacing is not None:
        affine[:3, :3] *= np.asarray(spacing[::-1]) / np.linalg.norm(affine[:3, :3], axis=0)
        stored.steps.append("spacing given by the caller")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    depth_mm, height_mm, width_mm = checked_spacing(lengths, f"`{stored.name}`")
    if depth_mm >= THICK_SLICE_MM and len(array) > 1:
        warn_out_of_domain(
            f"`{stored.name}` has slices {depth_mm:g} mm apart; the models are made for less than "
            f"{THICK_SLICE_MM:g} mm and miss small findings here. Use a thinner reconstruction if there is one."
        )
    provenance = {
        "source": stored.kind,
        "shape": list(array.shape),
        "spacing_mm": [round(value, 4) for value in (depth_mm, height_mm, width_mm)],
        "orientation_on_disk": codes,
        "dtype_on_disk": str(stored.voxels.dtype),
        "hu_range": [max(low, AIR_HU) if clamp else low, high],
        **stored.facts,
        "steps": stored.steps,
    }
    return array, affine, (depth_mm, height_mm, width_mm), provenance


def warn_out_of_domain(message: str) -> None:
    """Warn with the category that users filter by."""
    warnings.warn(message, OutOfDomainWarning, stacklevel=5)


def refuse_shape(shape: Sequence[int], name: str, channel: int | None, max_voxels: int) -> None:
    """Refuse 2-D, 4-D without a channel, empty and enormous arrays from the header alone."""
    shape = tuple(int(n) for n in shape)
    channels = math.prod(shape[3:])
    if len(shape) < 3:
        raise VolumeError(f"A volume is 3-D, `{name}` is 2-D with shape {shape}. Pass the whole series.")
    if len(shape) > 4:
        raise VolumeError(f"A volume is 3-D, `{name}` has shape {shape}. Save one volume per file.")
    if min(shape) < 1:
        raise VolumeError(f"A volume has at least one voxel along each axis, `{name}` has shape {shape}.")
    if math.prod(shape) > max_voxels:
        raise VolumeError(
            f"A volume holds at most {max_voxels:,} voxels, the header of `{name}` announces {math.prod(shape):,} "
            f"(shape {shape}). If that is true, pass `max_voxels=`; if not, the file is damaged or a decompression "
            "bomb."
        )
    if channels > 1 and channel is None:
        raise VolumeError(
            f"A volume is 3-D, `{name}` is 4-D with {channels} volumes in shape {shape}. Choose one with "
            f"`channel=0` .. `channel={channels - 1}`."
        )
    if channel is not None and not 0 <= channel < channels:
        raise VolumeError(f"`channel` must be in 0..{channels - 1} for `{name}`, got {channel}.")


def checked_spacing(spacing: Sequence[float], name: str) -> tuple[float, float, float]:
    """Return (z, y, x) in mm, or refuse what no CT has."""
    values = tuple(float(value) for value in spacing)
    low, high = SPACING_MM
    if len(values) != 3 or not all(low <= value <= high for value in values):  # NaN is refused as well
        raise VolumeError(
            f"Voxel spacing must be 3 numbers between {low:g} and {high:g} mm, got {values} in {name}. The header is "
            "damaged or in other units: export the series again or pass `spacing=(z, y, x)` in mm."
        )
    return values


def _assumed_affine(
    stored: Stored, spacing: tuple[float, float, float] | None, orientation: str | None
) -> np.ndarray:
    """Build the affine of a source that carries none, from the given spacing and the given or assumed orientation."""
    if spacing is None:
        raise VolumeError(
            f"A volume needs a voxel spacing and an orientation, `{stored.name}` has {stored.blank}. Pass "
            '`spacing=(z, y, x)` in mm (and `orientation=`, e.g. "LPS") from the DICOM header, or export the series '
            "again."
        )
    codes = (orientation or "RAS").upper()
    letters = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    if sorted(letters[c][0] if c in letters else 9 for c in codes) != [0, 1, 2]:
        raise VolumeError(f'`orientation` is three letters such as "RAS" or "LPS", got {orientation!r}.')
    if orientation is None:
        stored.steps.append("orientation assumed RAS")
        warn_out_of_domain(
            f"`{stored.name}` names no orientation: its axes are taken as RAS, so left and right may be swapped. Pass "
            '`orientation=` (e.g. "LPS", from the DICOM header) to state it.'
        )
    affine = np.eye(4)
    for axis, code in enumerate(codes):
        world, sign = letters[code]
        affine[:3, axis] = 0
        affine[world, axis] = sign * spacing[2 - world]
    return affine


def _to_hu(stored: Stored) -> tuple[np.ndarray, float, float]:
    """Apply the rescale in the smallest type that holds it; return HU with their lowest and highest."""
    raw, slope, inter = stored.voxels, stored.slope, stored.inter
    if raw.dtype.kind == "V":
        raise VolumeError(
            f"A CT volume has one value in HU per voxel, `{stored.name}` is RGB ({raw.dtype.itemsize} bytes per "
            "voxel): a rendering or a colour map. Pass the CT series it was made from."
        )
    if raw.dtype.kind not in "iuf":
        raise VolumeError(
            f"Voxels must be HU, `{stored.name}` holds {raw.dtype}: a mask or complex data, not a CT."
        )
    if not raw.dtype.isnative:
        raw, stored.is_ours = raw.astype(raw.dtype.newbyteorder("=")), True
    low, high = sorted((float(raw.min()) * slope + inter, float(raw.max()) * slope + inter))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise VolumeError(
            f"Voxels must be finite, `{stored.name}` holds NaN or infinite values. Find out where they come from, "
            "then fill them, e.g. `np.nan_to_num(array, nan=-1024)`."
        )
    rescaled = (slope, inter) != (1.0, 0.0)
    if (
        raw.dtype.kind in "iu"
        and slope.is_integer()
        and inter.is_integer()
        and low >= -32768
        and high <= 32767
    ):
        if rescaled:
            raw, stored.is_ours = raw.astype(np.int32) * int(slope) + int(inter), True
        array, low, high = raw.astype(np.int16, copy=False), int(low), int(high)
    else:
        array = raw.astype(np.float32, copy=False)
        if rescaled:
            array, stored.is_ours = array * np.float32(slope) + np.float32(inter), True
    if rescaled:
        stored.steps.append(f"rescaled: {slope:g} * stored + {inter:g}")
    return array, low, high


def _raise_padding(array: np.ndarray, low: float, stored: Stored) -> np.ndarray:
    """Raise what the scanner filled in outside its field of view to the HU of air."""
    is_ours = stored.is_ours and array.flags.writeable
    stored.steps.append(f"padding below {AIR_HU} HU clamped, lowest was {low:g}")
    return np.maximum(array, array.dtype.type(AIR_HU), out=array if is_ours else None)


def _canonical(array: np.ndarray, affine: np.ndarray, stored: Stored) -> tuple[np.ndarray, np.ndarray, str]:
    """Flip and permute disk axes to the closest RAS axes: views only, no voxel is resampled."""
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise VolumeError(
            f"An affine is a finite 4 x 4 matrix, `{stored.name}` has a damaged one. Export it again."
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    checked_spacing(lengths[::-1], f"`{stored.name}`")
    cosines = affine[:3, :3] / lengths  # one column per disk axis: its direction in RAS
    shear = math.degrees(math.asin(min(1.0, np.abs(cosines.T @ cosines - np.eye(3)).max())))
    if shear > SHEAR_DEGREES:
        raise VolumeError(
            f"Voxel axes must be perpendicular, those of `{stored.name}` are off by {shear:.1f} degrees: a tilted "
            "gantry. Correct the tilt first, e.g. convert with dcm2niix and use its `_Tilt` output."
        )
    order = max(
        permutations(range(3)), key=lambda p: sum(abs(cosines[world, p[world]]) for world in range(3))
    )
    along = [cosines[world, order[world]] for world in range(3)]
    codes = "".join("RAS"[world] if along[world] > 0 else "LPI"[world] for world in np.argsort(order))
    oblique = math.degrees(math.acos(min(1.0, min(map(abs, along)))))
    if oblique > OBLIQUE_DEGREES:
        stored.steps.append(f"oblique by {oblique:.1f} degrees, kept on its own axes")
        warn_out_of_domain(
            f"`{stored.name}` is oblique by {oblique:.1f} degrees; its closest axes are used, unrotated."
        )
    array = array.transpose(order)
    canonical = np.eye(4)
    canonical[:3, 3] = affine[:3, 3]
    for world in range(3):
        column = affine[:3, order[world]]
        if along[world] < 0:
            array = np.flip(array, world)
            canonical[:3, 3] += column * (array.shape[world] - 1)
            column = -column
        canonical[:3, world] = column
    if codes != "RAS":
        stored.steps.append(f"reoriented {codes} -> RAS")
    return array.transpose(2, 1, 0), canonical, codes


def _refuse_unless_hu(array: np.ndarray, low: float, high: float, name: str) -> None:
    """Tell HU from grey levels, MR, normalised and wrongly rescaled values by where air and soft tissue lie.

    `array` still holds what lies below air, which no CT has but as one padding value: where air and lung are spread
    there, an intercept was applied twice, as CT-RATE's csv is to its `_fixed` files.
    """
    stop = f"A CT volume is in HU (air -1000, water 0); `{name}` holds {low:g}..{high:g}"
    advice = (
        "Export the series from DICOM with its rescale applied once (`check_hu=False` if you are certain)."
    )
    if low > -500:
        if low >= 0 and 10 < high <= 255:
            reason = "8-bit grey levels of a windowed picture, the HU are lost"
        elif low >= -10 and high <= 10:
            reason = "normalised values; the image processor applies the window itself"
        elif low > -200 and high > 1500:
            reason = "no air, so the rescale intercept (about -1024) was not applied, or it is an MR"
        else:
            reason = "no air, so an MR, a mask, a narrow window or another unit"
        raise VolumeError(f"{stop}: {reason}. {advice}")
    twice = (
        "the rescale was applied twice. If the file holds HU already, as CT-RATE's `_fixed` does, load it without a "
        f"rescale. {advice}"
    )
    if high < AIR_HU:  # a second intercept of -8192
        raise VolumeError(f"{stop}, nothing as dense as air: {twice}")
    steps = [max(1, n // most) for n, most in zip(array.shape, (96, 96, 24))]
    sample = array[:: steps[0], :: steps[1], :: steps[2]]
    # In ten real volumes and three phantoms none of the voxels lies here; after a second -1024 it is 27 % and more.
    below_air = sample[(sample > -1950) & (sample < -1100)]
    if below_air.size > 0.05 * sample.size and below_air.min() != below_air.max():
        raise VolumeError(f"{stop}, with air and lung far below -1000: {twice}")
    air = np.mean((sample > AIR_HU) & (sample < -400))  # above padding
    soft = np.mean((sample > -200) & (sample < 300))
    if air < 1e-4:
        raise VolumeError(f"{stop} but no air near -1000: the rescale was not applied. {advice}")
    # Real volumes have 24 % and more. A second intercept moves soft tissue to about -980, where it stays when what is
    # below air was clamped afterwards; bone alone, at most .5 %, then lies near 0.
    if soft < 0.01:
        raise VolumeError(
            f"{stop} but almost no soft tissue near 0: the rescale was applied twice, or no body is in it. {advice}"
        )
