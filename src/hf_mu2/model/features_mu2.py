"""Read cached features: what a frozen vision tower made of a volume, memory-mapped from the shard that holds it.

A shard is a safetensors file with one tensor (slabs, patches per slab, width) per volume, slabs that hold anatomy
alone, named by its source's content; the metadata state what the features depend on.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open  # comes with transformers

from .prepared_mu2 import preparation_key
from .volume_checks_mu2 import VolumeError

FORMAT = "hf_mu2.features/1"
_AGAIN = "Cache the features again with `hf_mu2.training.features.cache_features`."


def feature_key(settings: Mapping[str, Any]) -> str:
    """Hash what features depend on: the tower, and the processor that made its input."""
    return preparation_key(settings)


def feature_reference(shard: str | os.PathLike[str], volume: str, key: str) -> str:
    """Write a reference to cached features: JSON text that the processor takes as it takes a path.

    Args:
        shard (`str` or `os.PathLike`): The safetensors file.
        volume (`str`): Name of the tensor.
        key (`str`): [`feature_key`] of the settings the caller expects.
    """
    fields = {"features": os.fspath(shard), "volume": volume, "key": key}
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def is_features(source: Any) -> bool:
    """Tell references to cached features, also in the `{"bytes", "path"}` of `datasets`, from other sources."""
    if isinstance(source, dict) and source.get("bytes") is None:
        source = source.get("path")
    return isinstance(source, str) and source.startswith("{") and '"features":' in source


def parse_features(source: Any) -> dict[str, str]:
    """Return the `features`, `volume` and `key` of a reference."""
    return json.loads(source["path"] if isinstance(source, dict) else source)


def read_features(source: Any) -> torch.Tensor:
    """Open what a reference to cached features names: (slabs, patches per slab, width), a view of the file.

    Raises:
        VolumeError: if the shard is missing, half-written, or not the one the reference was made for.
    """
    check_reference(source)
    reference = parse_features(source)
    return open_shard(Path(reference["features"]))[0].get_tensor(reference["volume"])


def check_reference(source: Any) -> dict[str, Any]:
    """Return what the features of a reference depend on, without reading them.

    Raises:
        VolumeError: as for [`read_features`].
    """
    reference = parse_features(source)
    path, name = Path(reference["features"]), reference["volume"]
    shard, settings, _ = open_shard(path)
    key = feature_key(settings)
    if key != reference["key"] or name not in shard.keys():  # noqa: SIM118  no mapping
        raise VolumeError(
            f"A reference and its shard must come from one run, `{path.name}` was replaced by another: it has the key "
            f"{key}, the reference {reference['key']} for volume {name}. {_AGAIN}"
        )
    return settings


def stack_features(
    sources: Sequence[Any], pixel_settings: Mapping[str, Any], slabs_per_frame: int
) -> dict[str, torch.Tensor]:
    """Read features into one batch, padded with zeros as `pixel_values` are.

    Args:
        sources (`Sequence`): References to cached features, nothing else.
        pixel_settings (`Mapping`): What the caller's `pixel_values` depend on; other features are refused.
        slabs_per_frame (`int`): Slices per frame over patch depth.

    Returns:
        `vision_hidden_states` (volumes, frames, patches, width) in the type they are stored in, and
        `pixel_attention_mask` (volumes, frames, slabs).

    Raises:
        VolumeError: if volumes are among the sources, or features of another processor or of several towers.
    """
    num_volumes = sum(not is_features(source) for source in sources)
    if num_volumes:
        raise VolumeError(
            f"A batch holds volumes or cached features, never both, got {num_volumes} volumes among {len(sources)} "
            "sources. Cache the features of all rows, or of none."
        )
    if len(keys := {parse_features(source)["key"] for source in sources}) > 1:
        raise VolumeError(
            f"The features of a batch must come from one tower and one processor, got the keys {sorted(keys)}. {_AGAIN}"
        )
    its = check_reference(sources[0])["pixels"]
    if its != pixel_settings:
        raise VolumeError(
            "Cached features must come from this processor's settings, they were made with "
            f"{differences(its, pixel_settings)}. {_AGAIN}"
        )
    rows = [read_features(source) for source in sources]
    num_frames = math.ceil(max(map(len, rows)) / slabs_per_frame)
    num_slabs, (patches, width) = num_frames * slabs_per_frame, rows[0].shape[1:]
    states = torch.empty(len(rows), num_slabs, patches, width, dtype=rows[0].dtype)
    mask = torch.zeros(len(rows), num_slabs, dtype=torch.bool)
    for index, features in enumerate(rows):
        states[index, : len(features)], states[index, len(features) :] = features, 0
        mask[index, : len(features)] = True
    return {
        "vision_hidden_states": states.view(len(rows), num_frames, slabs_per_frame * patches, width),
        "pixel_attention_mask": mask.view(len(rows), num_frames, slabs_per_frame),
    }


def open_shard(path: Path) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Map a shard into memory: the open file, what its features depend on, and the fingerprint of each volume.

    Raises:
        VolumeError: if nothing is there, or the file is no whole shard.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise VolumeError(
            f"Cached features must exist on this machine, nothing is at `{path}`. {_AGAIN}"
        ) from error
    return _open_shard(path, status.st_size, (status.st_ino, status.st_mtime_ns))


@lru_cache(maxsize=4096)
def _open_shard(
    path: Path, size: int, identity: tuple[int, int]
) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Open a shard once; `size` and `identity` (inode, time) tell it from the one that it replaced."""
    try:
        shard = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise VolumeError(
            f"A shard is a whole safetensors file, `{path.name}` is damaged ({error}). Delete it. {_AGAIN}"
        ) from error
    metadata = shard.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise VolumeError(
            f"A shard of features must have the format {FORMAT}, `{path.name}` has "
            f"{metadata.get('format', 'none')}. {_AGAIN}"
        )
    return shard, json.loads(metadata["settings"]), json.loads(metadata["fingerprints"])


def shard_metadata(settings: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Write the metadata of a shard.

    Args:
        settings (`Mapping`): What its features depend on.
        fingerprints (`Mapping`): Per volume, what tells its source without reading it.
    """
    return {
        "format": FORMAT,
        "settings": json.dumps(settings, sort_keys=True),
        "fingerprints": json.dumps(fingerprints, sort_keys=True),
    }


def differences(its: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Say where two settings differ: `its` value, not the `own` one."""
    return "; ".join(
        f"{name} {its.get(name)}, not {own.get(name)}"
        for name in {**own, **its}
        if its.get(name) != own.get(name)
    )


__all__ = [
    "FORMAT",
    "check_reference",
    "differences",
    "feature_key",
    "feature_reference",
    "is_features",
    "open_shard",
    "parse_features",
    "read_features",
    "shard_metadata",
    "stack_features",
]
