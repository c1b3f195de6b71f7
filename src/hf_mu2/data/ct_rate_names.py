"""Names of CT-RATE volumes, which say patient, scan and reconstruction."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from .corpus import inside

_NAME = re.compile(r"((train|valid)_([1-9][0-9]*))_([a-z]+)_([1-9][0-9]*)", re.ASCII)

PARTS = {  # official parts and how their files are spelled
    "train": ("train",),
    "valid": ("valid", "validation"),
}


class VolumeName(NamedTuple):
    """What `train_1_a_2.nii.gz` says: patient `train_1`, scan `train_1_a`, reconstruction 2.

    Args:
        text (`str`): The name without `.nii.gz`.
        part (`str`): `"train"` or `"valid"`.
    """

    text: str
    part: str
    patient: str
    scan: str
    reconstruction: int

    @property
    def letters(self) -> str:
        """Return what tells the scans of a patient apart: a, b, ..., z, aa, ..."""
        return self.scan.removeprefix(f"{self.patient}_")

    @property
    def order(self) -> tuple[str, int, int, str, int]:
        """Sort by part, patient, scan and reconstruction, as one would count them."""
        number = int(self.patient.removeprefix(f"{self.part}_"))
        return self.part, number, len(self.letters), self.letters, self.reconstruction


def volume_name(text: str) -> VolumeName | None:
    """Take a volume's name apart, with or without `.nii.gz`; `None` for what is not one."""
    text = text.strip().removesuffix(".nii.gz")
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    patient, part, _, letters, reconstruction = match.groups()
    return VolumeName(text, part, patient, f"{patient}_{letters}", int(reconstruction))


def volume_key(text: str) -> str | None:
    """Return a volume's name without `.nii.gz`; `None` for what is not one."""
    name = volume_name(text)
    return name and name.text


def by_scan(texts: Iterable[str]) -> Iterator[list[VolumeName]]:
    """Group the names of volumes by scan, in order."""
    names = sorted(filter(None, map(volume_name, texts)), key=lambda name: name.order)
    for _, scan in groupby(names, key=lambda name: name.scan):
        yield list(scan)


def spelled(pattern: str, *parts: str) -> list[str]:
    """Return the names that a pattern may have for parts, in either spelling."""
    return [pattern.format(word) for part in parts for word in PARTS[part]]


def find_spelled(base: Path, part: str, pattern: str) -> Path | None:
    """Return the file of a part in either spelling, if it is there."""
    for name in spelled(pattern, part):
        if (base / name).exists():
            return inside(base, name)
    return None
