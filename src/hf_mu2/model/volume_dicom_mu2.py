"""Read one CT series from a DICOM folder, file or zip; refuse what is incomplete, mixed or tilted."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .volume_checks_mu2 import AIR_HU, MAX_VOXELS, Stored, VolumeError

try:
    import pydicom
    from pydicom.errors import InvalidDicomError
except ImportError:
    pydicom = None

TILT_DEGREES = 0.5
GAP_TOLERANCE = 0.1  # of the median gap
ROUNDING_MM = 0.11  # positions are often rounded to 0.1 mm
_TAGS = [
    "Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ImageType", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "GantryDetectorTilt", "ConvolutionKernel", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
]  # fmt: skip


def read_dicom(source: Any, name: str, series: int | str | None, max_voxels: int) -> Stored:
    """Read one CT series as HU along (column, row, slice).

    Args:
        source: A folder, a file, or the bytes of a file or zip.
        name (`str`): What to call the source in messages.
        series (`int` or `str`, *optional*): Series number, SeriesInstanceUID or series description.
        max_voxels (`int`): Refuse larger series before decoding.
    """
    if pydicom is None:
        raise ImportError('Reading DICOM needs pydicom: `pip install "hf_mu2[dicom]"`.')
    headers = _read_headers(source, name, max_voxels)
    slices = _choose_series(headers, name, series)
    first = slices[0][1]
    _refuse_kind(slices, name, max_voxels)
    positions, affine = _geometry(slices, name)
    order = np.argsort(positions)
    raw = np.empty((len(slices), first.Rows, first.Columns), np.int16)
    for target, index in enumerate(order):
        array = _decode(slices[index][0], name)
        if raw.dtype == np.int16 and array.dtype != np.int16:
            raw = raw.astype(np.float32)  # a rescale that is not integral
        raw[target] = array
    kernel = first.get("ConvolutionKernel")
    facts = {
        "modality": "CT",
        "kernel": kernel if kernel is None or isinstance(kernel, str) else "/".join(kernel),
        "slice_thickness_mm": _number(first.get("SliceThickness")),
    }
    steps = [f"stacked {len(slices)} slices of one series"]
    return Stored(raw.transpose(2, 1, 0), affine, name, "dicom", is_ours=True, facts=facts, steps=steps)


def series_headers(source: Any, series: int | str | None = None, max_voxels: int = MAX_VOXELS) -> list:
    """Read the full headers of a CT series, without pixels, in the order of its slices along their normal.

    Args: those of [`read_dicom`], which reads the same series.
    """
    if pydicom is None:
        raise ImportError('Reading DICOM needs pydicom: `pip install "hf_mu2[dicom]"`.')
    name = str(source) if isinstance(source, Path) else "the given bytes"
    slices = _choose_series(_read_headers(source, name, max_voxels), name, series)
    positions, _ = _geometry(slices, name)
    items = [slices[index][0] for index in np.argsort(positions)]
    return [
        pydicom.dcmread(item if isinstance(item, Path) else io.BytesIO(item), stop_before_pixels=True)
        for item in items
    ]


def _files(source: Any, name: str, max_voxels: int) -> Iterator[bytes | Path]:
    """Yield every file of a folder or zip, in a stable order."""
    if isinstance(source, Path) and source.is_dir():
        yield from sorted(p for p in source.rglob("*") if p.is_file() and p.name != "DICOMDIR")
        return
    stream: BinaryIO | Path = source if isinstance(source, Path) else io.BytesIO(source)
    if not zipfile.is_zipfile(stream):
        yield source if isinstance(source, Path) else bytes(source)
        return
    with zipfile.ZipFile(stream) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and Path(m.filename).name != "DICOMDIR"]
        total = sum(member.file_size for member in members)
        if total > 4 * max_voxels:
            raise VolumeError(
                f"A zip must not unpack to more than {4 * max_voxels:,} bytes, `{name}` announces {total:,}. Zip one "
                "series only; if this is one, pass `max_voxels=`."
            )
        try:
            for member in sorted(members, key=lambda m: m.filename):
                yield archive.read(member)
        except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
            raise VolumeError(
                f"A zip must be complete and not encrypted, `{name}` is not ({error})."
            ) from error


def _read_headers(source: Any, name: str, max_voxels: int) -> list[tuple[bytes | Path, Any]]:
    headers = []
    for item in _files(source, name, max_voxels):
        stream = item if isinstance(item, Path) else io.BytesIO(item)
        try:
            headers.append((item, pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)))
        except (InvalidDicomError, EOFError):
            continue  # a README, a thumbnail, a report
    if not headers:
        nifti = isinstance(source, Path) and any(source.rglob("*.nii*"))
        hint = "It holds NIfTI files: pass one of them." if nifti else "Pass the folder of one CT series."
        raise VolumeError(f"A folder or zip must hold DICOM files, none was found in `{name}`. {hint}")
    return headers


def _choose_series(headers: list, name: str, series: int | str | None) -> list:
    groups: dict[str, list] = {}
    for item, header in headers:
        localizer = "LOCALIZER" in header.get("ImageType", [])
        if header.get("Modality") == "CT" and not localizer and "Rows" in header:
            groups.setdefault(str(header.SeriesInstanceUID), []).append((item, header))
    if not groups:
        found = sorted({str(header.get("Modality")) for _, header in headers})
        raise VolumeError(
            f"A volume is a CT series (modality CT, not a localizer), `{name}` holds modality {', '.join(found)}. Pass "
            "the folder of a CT series."
        )
    if series is not None:
        wanted = str(series)
        chosen = [
            uid
            for uid, group in groups.items()
            if wanted
            in (uid, str(group[0][1].get("SeriesNumber")), str(group[0][1].get("SeriesDescription")))
        ]
        if len(chosen) != 1:
            problem = "matches none" if not chosen else f"matches {len(chosen)}"
            raise VolumeError(f"`series={series!r}` {problem} of the series in `{name}`:\n{_listing(groups)}")
        return groups[chosen[0]]
    if len(groups) > 1:
        number = next(iter(groups.values()))[0][1].get("SeriesNumber")
        raise VolumeError(
            f"A volume is one series, `{name}` holds {len(groups)}:\n{_listing(groups)}\nChoose one by its "
            f"number or UID, e.g. `series={number}`, on the command line `--series {number}`."
        )
    return next(iter(groups.values()))


def _listing(groups: dict[str, list]) -> str:
    lines = []
    for uid, group in groups.items():
        header = group[0][1]
        thickness = _number(header.get("SliceThickness"))
        lines.append(
            f"  series {header.get('SeriesNumber')}: {header.get('SeriesDescription') or 'no description'}, "
            f"{len(group)} slices of {thickness} mm, {uid}"
        )
    return "\n".join(lines)


def _refuse_kind(slices: list, name: str, max_voxels: int) -> None:
    first = slices[0][1]
    if any(int(header.get("NumberOfFrames") or 1) > 1 for _, header in slices):
        raise VolumeError(
            f"A series is read from single-frame files, `{name}` is multi-frame (enhanced CT). Use dcm2niix."
        )
    if any(int(header.get("SamplesPerPixel") or 1) != 1 for _, header in slices):
        raise VolumeError(
            f"A CT slice has one value per pixel, `{name}` is RGB: a screen capture. Pass the series itself."
        )
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    missing = [tag for tag in needed if any(header.get(tag) is None for _, header in slices)]
    if missing:
        raise VolumeError(
            f"Each slice must say where it lies, `{name}` lacks {', '.join(missing)}. Export the series again."
        )
    for tag in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ConvolutionKernel"):
        values = {str(header.get(tag)) for _, header in slices}
        same = len(values) == 1
        if not same and tag in needed:
            rows = np.array([header.get(tag) for _, header in slices], float)
            same = bool(np.ptp(rows, axis=0).max() < 1e-3)
        if not same:
            raise VolumeError(
                f"A series has one geometry and one kernel, `{name}` mixes {len(values)} values of {tag} under one "
                "SeriesInstanceUID. Split it by that value and pass one part."
            )
    voxels = len(slices) * int(first.Rows) * int(first.Columns)
    if voxels > max_voxels:
        raise VolumeError(
            f"A volume holds at most {max_voxels:,} voxels, `{name}` has {voxels:,}. Pass `max_voxels=`."
        )


def _geometry(slices: list, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each slice along the normal in mm, and the affine of the sorted stack to RAS."""
    first = slices[0][1]
    tilt = abs(_number(first.get("GantryDetectorTilt")) or 0.0)
    rows, columns = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(rows, columns)
    origins = np.array([header.ImagePositionPatient for _, header in slices], float)
    positions = origins @ normal
    origins, sorted_positions = origins[np.argsort(positions)], np.sort(positions)
    if len(slices) == 1:
        gap = _number(first.get("SpacingBetweenSlices")) or _number(first.get("SliceThickness"))
        if not gap:
            raise VolumeError(
                f"A slice alone must name its thickness, `{name}` has no SliceThickness. Pass the whole series, or the "
                "slice as an array with `spacing=(z, y, x)`."
            )
    else:
        gaps = np.diff(sorted_positions)
        gap = float(np.median(gaps))
        _refuse_gaps(gaps, sorted_positions, gap, name)
        step = origins[-1] - origins[0]
        sideways = np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
        tilt = max(tilt, float(sideways))
        gap = float(sorted_positions[-1] - sorted_positions[0]) / (len(slices) - 1)
    if tilt > TILT_DEGREES:
        raise VolumeError(
            f"Slices must be stacked along their normal, the gantry of `{name}` is tilted by {tilt:.1f} degrees. "
            "Correct the tilt first, e.g. convert with dcm2niix and use its `_Tilt` output."
        )
    row_mm, column_mm = (float(value) for value in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([rows * column_mm, columns * row_mm, normal * gap], axis=1)
    affine[:3, 3] = origins[0]
    return positions, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM is LPS


def _refuse_gaps(gaps: np.ndarray, positions: np.ndarray, gap: float, name: str) -> None:
    twice = int((gaps < 0.01).sum())
    if twice or gap < 0.01:
        raise VolumeError(
            f"A series has one slice per position, `{name}` has {twice} positions twice: two phases or "
            "reconstructions under one SeriesInstanceUID. Split them (e.g. by AcquisitionNumber) and pass one."
        )
    tolerance = max(GAP_TOLERANCE * gap, min(ROUNDING_MM, gap / 2))
    is_uneven = np.abs(gaps - gap) > tolerance
    if not is_uneven.any():
        return
    where = ", ".join(
        f"between {positions[i]:g} and {positions[i + 1]:g} mm" for i in np.flatnonzero(is_uneven)[:4]
    )
    step = gap if is_uneven.all() else float(np.mean(gaps[~is_uneven]))  # the mean undoes the rounding
    missing = np.round(gaps[is_uneven] / step).astype(int) - 1
    if missing.min() > 0 and np.allclose(
        gaps[is_uneven], (missing + 1) * step, rtol=0, atol=max(tolerance, step / 4)
    ):
        raise VolumeError(
            f"A series must be complete, `{name}` lacks {missing.sum()} slices of {step:.3g} mm ({where}). Fetch the "
            "whole series from the archive."
        )
    raise VolumeError(
        f"Slices must be evenly spaced, those of `{name}` lie {gaps.min():g} to {gaps.max():g} mm apart ({where}). It "
        "is not one acquisition, or slices are missing: fetch the whole series."
    )


def _decode(item: bytes | Path, name: str) -> np.ndarray:
    """Decode one slice to HU: int16 where the rescale is integral, float32 otherwise."""
    dataset = pydicom.dcmread(item if isinstance(item, Path) else io.BytesIO(item))
    try:
        stored = dataset.pixel_array
    except (RuntimeError, NotImplementedError) as error:
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise VolumeError(
            f'No decoder for {syntax} is installed, which `{name}` uses. `pip install "hf_mu2[dicom]"` brings one.'
        ) from error
    except (AttributeError, ValueError, EOFError) as error:
        raise VolumeError(
            f"A slice of `{name}` holds no complete pixels ({error}). Fetch the series again."
        ) from error
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    padding = dataset.get("PixelPaddingValue")
    if slope.is_integer() and intercept.is_integer():
        hu = np.clip(stored.astype(np.int32) * int(slope) + int(intercept), -32768, 32767).astype(np.int16)
    else:
        hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if padding is not None and padding * slope + intercept < -500:  # else it would erase tissue of that value
        hu[stored == padding] = AIR_HU
    return hu


def _number(value: Any) -> float | None:
    return None if value in (None, "") else float(value)
