"""Read the files of a published checkpoint into one state dict under the names of the published code.

Reads: `model.safetensors`, `pytorch_model.bin`, `model_with_lora.bin` or `pretrained_ViT.bin`, alone or in a folder
with `config.json`, or a Hub repository of them. Writes: nothing.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file

_PATTERNS = ("model*.safetensors", "pytorch_model*.bin", "model_with_lora.bin", "pretrained_ViT.bin")
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")

_LORA_PREFIX = "base_model.model."
# Before March 2025 the tokenizer had another name.
_OLD_PREFIX, _PREFIX = "model.linear3d_tokenizer.", "model.u2tokenizer."

# The published LoRA option (r 16, alpha 32). The rank is seen in the tensors, alpha only in a config.
_LORA_ALPHA = 32


@dataclass(frozen=True)
class OfficialState:
    """A published checkpoint as read.

    Args:
        tensors (`dict[str, torch.Tensor]`): State dict under the newest published names, LoRA merged.
        folder (`Path`): Where the files lie.
        files (`list[str]`): Names of the weight files.
        fields (`dict`): `config.json` beside them, or empty.
        layout (`str`): What was found about names: `current`, `before March 2025`, `LoRA`.
        lora (`dict`, *optional*): Rank, alpha, where alpha comes from, and number of merged layers.
    """

    tensors: dict[str, torch.Tensor]
    folder: Path
    files: list[str]
    fields: dict[str, Any]
    layout: str
    lora: dict[str, Any] | None


def read_official(source: str | Path, lora_alpha: float | None = None) -> OfficialState:
    """Read a published checkpoint and bring its names to the newest form.

    Args:
        source: A weight file, a folder, or a Hub repository.
        lora_alpha (`float`, *optional*): Alpha of a LoRA dump; else `adapter_config.json` beside it, else 32.

    Raises:
        ValueError: if there is nothing to read, or the file is not what its name says.
    """
    path = _locate(source)
    files = _find_weights(path) if path.is_dir() else [path]
    folder = files[0].parent
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors.update(_load(file))
    fields = read_json(folder / "config.json")

    layout, lora = "current", None
    if any(name.startswith(_LORA_PREFIX) for name in tensors):
        layout = "LoRA"
        adapter = read_json(folder / "adapter_config.json")
        alpha, origin = (
            (lora_alpha, "given")
            if lora_alpha is not None
            else (adapter["lora_alpha"], "adapter_config.json")
            if "lora_alpha" in adapter
            else (fields["lora_alpha"], "config.json")
            if "lora_alpha" in fields
            else (_LORA_ALPHA, "published default")
        )
        tensors = {name.removeprefix(_LORA_PREFIX): tensor for name, tensor in tensors.items()}
        tensors, ranks = merge_lora(tensors, alpha)
        lora = {
            "rank": ranks[0] if ranks else None,
            "alpha": alpha,
            "alpha_from": origin,
            "layers": len(ranks),
        }
    if any(name.startswith(_OLD_PREFIX) for name in tensors):
        layout = "before March 2025" if layout == "current" else f"{layout}, before March 2025"
        tensors = {name.replace(_OLD_PREFIX, _PREFIX, 1): tensor for name, tensor in tensors.items()}
    return OfficialState(tensors, folder, [file.name for file in files], fields, layout, lora)


def merge_lora(
    tensors: Mapping[str, torch.Tensor], alpha: float
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Add each LoRA pair to its base layer, W + alpha / r B A, in float32.

    Pairs that do not fit stay under their own names, so that the table of keys names them.

    Returns:
        The plain state dict, and the rank of each merged layer.
    """
    merged = {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items()}
    ranks = []
    for name in tensors:
        if not name.endswith(".lora_A.default.weight"):
            continue
        other, base = name.replace(".lora_A.", ".lora_B."), name.replace(".lora_A.default.", ".")
        if other not in merged or base not in merged:
            continue
        down, up, weight = merged[name], merged[other], merged[base]
        if up.shape[1:] != down.shape[:1] or (up.shape[0], *down.shape[1:]) != tuple(weight.shape):
            continue
        delta = up.float() @ down.float() * (alpha / down.shape[0])
        merged[base] = (weight.float() + delta).to(weight.dtype)
        ranks.append(down.shape[0])
        del merged[name], merged[other]
    return merged, ranks


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; an absent one is empty."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _locate(source: str | Path) -> Path:
    path = Path(source)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise ValueError(
            f"A checkpoint to convert must be a file, a folder or a Hub repository, `{source}` does not exist. Check "
            "the path, or write the repository as `owner/name`."
        )
    try:
        return Path(snapshot_download(str(source), allow_patterns=[*_PATTERNS, *_SMALL_FILES]))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"`{source}` is neither a local path nor a Hub repository that can be fetched now. Check the name, the "
            "connection and, for a gated repository, `hf auth login`."
        ) from error


def _find_weights(folder: Path) -> list[Path]:
    for pattern in _PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    present = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise ValueError(
        f"A published checkpoint has one of {', '.join(_PATTERNS)}, `{folder}` holds {present}. Pass the folder, or "
        "the file itself, that the published code wrote."
    )


def _load(file: Path) -> dict[str, torch.Tensor]:
    """Load a state dict lazily: tensors stay on disk until they are read. Pickled code is never run."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"A checkpoint must hold tensors only, `{file}` cannot be read as such ({type(error).__name__}). It may be "
            "cut off, a Git LFS pointer, or hold pickled code: fetch it again with `hf download`."
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(tensor, torch.Tensor) for tensor in state.values()
    ):
        raise ValueError(
            f"A checkpoint must be one flat state dict, `{file}` holds other objects. Save `model.state_dict()` alone."
        )
    return dict(state)


__all__ = ["OfficialState", "merge_lora", "read_json", "read_official"]
