"""What the metadata csv of CT-RATE says about a volume: its geometry in v1, and which reconstruction to prefer."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hf_mu2.model.volume_mu2 import volume_reference

# 99.4 % of the official validation volumes are shorter; longer ones hold several series, or more than a chest.
LONG_MM = 500.0
GEOMETRY_COLUMNS = (
    "XYSpacing",
    "ZSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "ImageOrientationPatient",
    "NumberofSlices",
    "ConvolutionKernel",
)

_SIEMENS_KERNEL = re.compile(
    r"[A-Z][a-z]?([0-9]{2})[a-z]?"
)  # Br40f, Bl57d, B70f: the number grows with sharpness
_PHILIPS_KERNELS = {"A": 0, "B": 0, "L": 2, "D": 2, "E": 2}  # smooth, standard; lung, bone, detail
_SOFT, _UNKNOWN, _SHARP = 0, 1, 2


class GeometryError(ValueError):
    """The metadata csv does not tell where the voxels of a v1 volume are, or what they mean."""


def v1_reference(path: Path, row: Mapping[str, str]) -> str:
    """Make the volume reference of a v1 file, whose own header is blank, from its row of the metadata csv.

    Raises:
        GeometryError: if the row lacks spacing, rescale or orientation, or the slices are oblique.
    """
    (rows_mm, columns_mm), depth_mm = _numbers(row, "XYSpacing", 2), _numbers(row, "ZSpacing", 1)[0]
    slope, intercept = _numbers(row, "RescaleSlope", 1)[0], _numbers(row, "RescaleIntercept", 1)[0]
    if min(depth_mm, rows_mm, columns_mm, slope) <= 0:
        raise GeometryError("spacing or slope in the metadata csv is not positive")
    return volume_reference(
        str(path),
        spacing=(depth_mm, rows_mm, columns_mm),
        orientation=_axis_codes(_numbers(row, "ImageOrientationPatient", 6)),
        rescale=(slope, intercept),
    )


def choice_order(row: Mapping[str, str] | None) -> tuple[bool, float, int]:
    """Order the reconstructions of a scan: one series before stacks, thin slices before thick, soft before sharp.

    One without a row comes after those whose spacing is known; without any row all are alike.
    """
    if row is None:
        return False, math.inf, _UNKNOWN
    try:
        depth_mm = round(_numbers(row, "ZSpacing", 1)[0], 1)  # 1.499, 1.5 and 1.5001 are one protocol
    except GeometryError:
        depth_mm = math.inf
    return is_long(row), depth_mm, _sharpness(row["ConvolutionKernel"])


def is_long(row: Mapping[str, str]) -> bool:
    """Tell whether a volume is longer than a chest: several series in one file, or more of the body."""
    try:
        return _numbers(row, "ZSpacing", 1)[0] * _numbers(row, "NumberofSlices", 1)[0] > LONG_MM
    except GeometryError:
        return False


def _sharpness(kernel: str) -> int:
    name = kernel.strip("[]'\" ").split("'")[0]  # Siemens kernels are lists: ['Br40f', '3']
    if match := _SIEMENS_KERNEL.fullmatch(name):
        return _SOFT if int(match[1]) < 50 else _SHARP
    if name.startswith(("Y", "Lung")):
        return _SHARP
    return _PHILIPS_KERNELS.get(name, _UNKNOWN)


def _numbers(row: Mapping[str, str], column: str, count: int) -> list[float]:
    """Read a number, or a list of numbers written as text."""
    try:
        value = json.loads(row[column])
        numbers = [float(number) for number in (value if isinstance(value, list) else [value])]
    except (ValueError, TypeError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise GeometryError("no spacing, rescale or orientation in the metadata csv")
    return numbers


def _axis_codes(orientation: list[float]) -> str:
    """Return where the stored axes point, e.g. `"LPS"`, from DICOM's direction of rows and of columns."""
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    codes = ""
    for direction in (along_row, along_column, np.cross(along_row, along_column)):
        axis = int(np.abs(direction).argmax())
        if not 0.996 < abs(direction[axis]) < 1.004:  # 5 degrees
            raise GeometryError("oblique slices, v1 files cannot say so")
        codes += "LPS"[axis] if direction[axis] > 0 else "RAI"[axis]
    return codes
