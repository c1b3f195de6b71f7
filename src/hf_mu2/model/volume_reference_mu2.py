"""Name a volume and what its file does not say, as one line of text that fits wherever a path does."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .volume_checks_mu2 import VolumeError

_FIELDS = ("path", "spacing", "orientation", "rescale", "series", "channel", "member")


@dataclass(frozen=True)
class VolumeReference:
    """What [`volume_reference`] writes, read back."""

    path: str
    spacing: tuple[float, float, float] | None = None
    orientation: str | None = None
    rescale: tuple[float, float] | None = None
    series: int | str | None = None
    channel: int | None = None
    member: str | None = None

    @property
    def name(self) -> str:
        """What messages call the volume."""
        return self.member or Path(self.path).name


def volume_reference(
    path: str | os.PathLike[str],
    *,
    spacing: Sequence[float] | None = None,
    orientation: str | None = None,
    rescale: Sequence[float] | None = None,
    series: int | str | None = None,
    channel: int | None = None,
    member: str | None = None,
) -> str:
    """Write a reference to a volume: JSON text that `load_volume` and the processors take as they take a path.

    Args:
        path (`str` or `os.PathLike`): The file or folder. Relative paths are relative to the working directory of
            whoever opens the reference.
        spacing (`Sequence[float]`, *optional*): Millimetres along (z, y, x), where the header's are wrong or missing.
        orientation (`str`, *optional*): Where the stored axes point, e.g. `"LPS"`. With `spacing` it replaces the
            whole geometry of the header; alone it is refused.
        rescale (`Sequence[float]`, *optional*): (slope, intercept) from stored values to HU, in place of the header's.
            It is never applied on top of those.
        series (`int` or `str`, *optional*): Series of a DICOM folder.
        channel (`int`, *optional*): Volume of a 4-D file.
        member (`str`, *optional*): Name of a NIfTI inside `path`, a tar archive. Uncompressed archives are sought
            through, compressed ones are read up to the member.

    Returns:
        `str`: compact JSON with sorted keys, so that equal references are equal texts.
    """
    if spacing is not None and len(spacing) != 3:
        raise ValueError(f"`spacing` is (z, y, x) in mm, got {tuple(spacing)}. Give three numbers.")
    if orientation is not None and spacing is None:
        raise ValueError(
            f"`orientation` replaces the header's geometry, so it needs `spacing`, got {orientation!r} alone. "
            "Give both, or leave the geometry to the header."
        )
    if rescale is not None and len(rescale) != 2:
        raise ValueError(f"`rescale` is (slope, intercept), got {tuple(rescale)}. Give two numbers.")
    values = {
        "path": os.fspath(path),
        "spacing": None if spacing is None else [float(mm) for mm in spacing],
        "orientation": orientation,
        "rescale": None if rescale is None else [float(number) for number in rescale],
        "series": series,
        "channel": channel,
        "member": member,
    }
    given = {name: value for name, value in values.items() if value is not None}
    return json.dumps(given, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def parse_reference(source: Any) -> VolumeReference | None:
    """Read a reference, or the `{"bytes", "path"}` of `datasets` around one; `None` if the source is something else.

    Raises:
        VolumeError: if it looks like a reference and is none.
    """
    if isinstance(source, dict) and source.get("bytes") is None:
        source = source.get("path")
    if not isinstance(source, str) or not source.startswith("{"):
        return None
    try:
        fields = json.loads(source)
    except json.JSONDecodeError as error:
        raise VolumeError(
            f"A volume reference is JSON, `{source[:80]}` is not ({error}). Write it with `volume_reference`."
        ) from error
    unknown = sorted(set(fields) - set(_FIELDS))
    if unknown or "path" not in fields:
        raise VolumeError(
            f"A volume reference has `path` and any of {', '.join(_FIELDS[1:])}, got {sorted(fields)}. Write it with "
            "`volume_reference`."
        )
    for name in ("spacing", "rescale"):
        if name in fields:
            fields[name] = tuple(fields[name])
    return VolumeReference(**fields)


__all__ = ["VolumeReference", "parse_reference", "volume_reference"]
