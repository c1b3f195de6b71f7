"""Read prepared volumes: HU on a processor's grid, int16, memory-mapped from the shard that holds them.

A shard is a safetensors file, one tensor per volume, named by its source's content; the metadata state how it was
prepared. Reading takes numpy alone.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .volume_checks_mu2 import VolumeError

FORMAT = "hf_mu2.prepared/1"
_AGAIN = "Prepare the volumes again with `hf-mu2 data prepare`."


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """HU (depth, height, width) on the grid of a processor, a view of the file, with what was noted at its making."""

    array: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, float, float]
    provenance: dict[str, Any]


def preparation_key(preparation: Mapping[str, Any]) -> str:
    """Hash the settings that the stored voxels depend on."""
    return hashlib.sha256(_compact(preparation).encode()).hexdigest()[:16]


def prepared_reference(shard: str | os.PathLike[str], volume: str, key: str) -> str:
    """Write a reference to a prepared volume: JSON text that `load_volume` and the processor take as they take a path.

    Args:
        shard (`str` or `os.PathLike`): The safetensors file.
        volume (`str`): Name of the tensor.
        key (`str`): [`preparation_key`] of the settings the caller expects.
    """
    return _compact({"prepared": os.fspath(shard), "volume": volume, "key": key})


def shard_metadata(preparation: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Write the metadata of a shard: its settings, and the facts of each volume.

    Args:
        preparation (`Mapping`): The settings.
        facts (`Mapping`): `affine`, `spacing` and `provenance` of each volume by name.
    """
    return {"format": FORMAT, "preparation": _compact(preparation)} | {
        name: _compact(fact) for name, fact in facts.items()
    }


def is_prepared(source: Any) -> bool:
    """Tell references to prepared volumes, also in the `{"bytes", "path"}` of `datasets`, from other sources."""
    if isinstance(source, dict) and source.get("bytes") is None:
        source = source.get("path")
    return isinstance(source, str) and source.startswith("{") and '"prepared":' in source


def read_prepared(source: Any) -> PreparedVolume:
    """Open what a reference to a prepared volume names.

    Raises:
        VolumeError: if the shard is missing, half-written, or not the one the reference was made for.
    """
    reference = json.loads(source["path"] if isinstance(source, dict) else source)
    path, name = Path(reference["prepared"]), reference["volume"]
    try:
        status = path.stat()
    except OSError as error:
        raise VolumeError(
            f"A prepared volume must exist on this machine, nothing is at `{path}`. If the folder was moved, run "
            "`hf-mu2 data relocate FOLDER`; otherwise prepare the volumes again."
        ) from error
    data, header, metadata, preparation = _open_shard(
        path, status.st_size, (status.st_ino, status.st_mtime_ns)
    )
    if preparation_key(preparation) != reference["key"] or name not in header:
        raise VolumeError(
            f"A reference and its shard must come from one run, `{path.name}` was replaced by another: it has the key "
            f"{preparation_key(preparation)}, the reference {reference['key']} for volume {name}. {_AGAIN}"
        )
    tensor, facts = header[name], json.loads(metadata[name])
    first, end = tensor["data_offsets"]
    return PreparedVolume(
        data[first:end].view(np.int16).reshape(tensor["shape"]),
        np.array(facts["affine"]),
        tuple(facts["spacing"]),
        {**facts["provenance"], "prepared": reference["key"], "preparation": preparation},
    )


@lru_cache(maxsize=256)
def _open_shard(
    path: Path, size: int, identity: tuple[int, int]
) -> tuple[np.ndarray, dict[str, Any], dict[str, str], dict[str, Any]]:
    """Map a shard into memory: its data, the place of each tensor, its metadata and its settings.

    `size` and `identity` (inode, time) tell a shard from the one that it replaced.
    """
    try:
        content = np.memmap(path, np.uint8, mode="r")
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:start].tobytes()) if start <= size else {}
        metadata = header.pop("__metadata__", {})
    except ValueError as error:
        raise VolumeError(
            f"A shard is a safetensors file, `{path.name}` is damaged ({error}). {_AGAIN}"
        ) from error
    end = start + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if metadata.get("format") != FORMAT or end != size:
        raise VolumeError(
            f"A shard must be whole and of the format {FORMAT}, `{path.name}` has {size:,} bytes of {end:,} and the "
            f"format {metadata.get('format', 'of something else')}. {_AGAIN}"
        )
    # A view of the plain base class: slices of a memmap subclass cost microseconds each.
    return np.asarray(content)[start:], header, metadata, json.loads(metadata["preparation"])


def _compact(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


__all__ = [
    "FORMAT",
    "PreparedVolume",
    "is_prepared",
    "preparation_key",
    "prepared_reference",
    "read_prepared",
    "shard_metadata",
]
