"""Cut the volumes of a dataset into shards of work: each volume once, in the order of its first study.

Reads: rows with `images`.
Writes: `rows.jsonl`, the rows with volume numbers in place of their images; `volumes.jsonl`, one line per volume.
Workers read nothing else, so they may run elsewhere, in any order and again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from hf_mu2.files import replacing
from hf_mu2.model.volume_mu2 import source_path


@dataclass(frozen=True)
class Plan:
    """The work on one split: `volumes_per_shard` volumes of `num_volumes` in each shard but the last."""

    folder: Path
    num_rows: int
    num_volumes: int
    volumes_per_shard: int
    offsets: tuple[int, ...]  # where each shard begins in volumes.jsonl, in bytes

    @property
    def num_shards(self) -> int:
        return len(self.offsets)

    def shard(self, number: int) -> list[str]:
        """Return the lines of `volumes.jsonl` that make a shard."""
        with (self.folder / "volumes.jsonl").open("rb") as lines:
            lines.seek(self.offsets[number])
            return [line.decode() for line in islice(lines, self.volumes_per_shard)]

    def rows(self) -> Iterator[dict[str, Any]]:
        with (self.folder / "rows.jsonl").open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def fingerprint(lines: list[str], settings: Mapping[str, Any]) -> str:
    """Hash a shard's work: sources with their sizes and times of writing, and the settings."""
    return sha256((to_line(settings) + "".join(lines)).encode()).hexdigest()


def write_plan(rows: Iterable[Mapping[str, Any]], folder: Path, volumes_per_shard: int) -> Plan:
    """Write the plan of a dataset. Rows stream; of each distinct volume a path and a number are kept.

    Raises:
        ValueError: if a row has no column `images`, or an image that is no path or reference.
    """
    numbers: dict[str, int] = {}
    offsets: list[int] = []
    num_rows = 0
    with (
        replacing(folder / "rows.jsonl") as rows_path,
        replacing(folder / "volumes.jsonl") as volumes_path,
        rows_path.open("w", encoding="utf-8") as row_lines,
        volumes_path.open("wb") as volume_lines,
    ):
        for num_rows, row in enumerate(rows, 1):
            study_id = str(row.get("study_id", f"{num_rows - 1:06d}"))
            if "images" not in row:
                raise ValueError(
                    f"A row must have the column `images`, a list of volumes, got {sorted(row)} in `{study_id}`. "
                    "Build rows with `hf_mu2.data`, or rename the column."
                )
            images = row["images"]
            own = []
            for index, image in enumerate(images if isinstance(images, (list, tuple)) else [images]):
                source = source_text(image, study_id)
                if source not in numbers:
                    if len(numbers) % volumes_per_shard == 0:
                        offsets.append(volume_lines.tell())
                    numbers[source] = len(numbers)
                    volume = {"source": source, "study_id": study_id, "image": index, "file": _stat(source)}
                    volume_lines.write(to_line(volume | {"region": row.get("region", "")}).encode())
                own.append(numbers[source])
            row_lines.write(to_line({**row, "study_id": study_id, "images": own}, sort=False))
    return Plan(folder, num_rows, len(numbers), volumes_per_shard, tuple(offsets))


def source_text(image: Any, study_id: str) -> str:
    """Write an image as a path or reference that holds from any working directory.

    Raises:
        ValueError: if it is neither, or a volume that was prepared already.
    """
    if isinstance(image, Mapping) and image.get("bytes") is None:
        image = image.get("path")
    if not isinstance(image, (str, Path)):
        raise ValueError(
            f"An image must be a path or a volume reference, got {type(image).__name__} in `{study_id}`. Cast the "
            "column with `List(Nifti(decode=False))`, and write volumes that are held in memory to files first."
        )
    text = str(image).split("::")[-1]  # datasets writes "gzip://ct.nii::/data/ct.nii.gz"
    if not text.startswith("{"):
        return os.path.abspath(text)  # noqa: PTH100
    fields = json.loads(text)
    if "path" not in fields:
        raise ValueError(
            f"An image must be a path or a volume reference, `{study_id}` has one that is prepared already. Start "
            "from the volumes it was prepared from."
        )
    fields["path"] = os.path.abspath(fields["path"])  # noqa: PTH100
    return to_line(fields)[:-1]


def undecoded(rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Let a dataset yield paths in place of nibabel images; other iterables pass."""
    features = dataset_features(rows)
    if features is None:
        return rows
    from datasets import List, Nifti, Value

    if features.get("images") in (None, List(Value("string"))):
        return rows
    return rows.cast_column("images", List(Nifti(decode=False)))  # type: ignore[attr-defined]


def dataset_features(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Return the features of a dataset, `None` for anything else."""
    if "datasets" not in sys.modules:
        return None
    from datasets import Dataset, IterableDataset

    return rows.features if isinstance(rows, (Dataset, IterableDataset)) else None


def source_files(source: str) -> list[Path]:
    """List the files a source is read from, sorted; none where nothing is there."""
    path = Path(source_path(source) or "")
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []


def to_line(value: Mapping[str, Any], sort: bool = True) -> str:
    """Write one line of JSON; equal values give equal lines."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=sort, separators=(",", ":"), default=str)
    return text + "\n"


def _stat(source: str) -> list[list[int]]:
    """Size and time of writing of every file: what tells a changed source without reading it."""
    statuses = [file.stat() for file in source_files(source)]
    return [[status.st_size, status.st_mtime_ns] for status in statuses]
