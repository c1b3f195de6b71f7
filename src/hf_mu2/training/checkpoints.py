"""Find the checkpoint from which a killed run continues.

Reads: `checkpoint-<step>` folders of a trainer. A kill in the middle of a save leaves one that lacks files or holds
half of one: such folders are passed over, with a warning, and left where they are.
"""

from __future__ import annotations

import json
import logging
import re
import struct
import zipfile
from pathlib import Path

logger = logging.getLogger(__name__)


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """Return the newest whole checkpoint under `output_dir`, `None` when there is none."""
    folders = [
        path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)
    ]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        problem = find_damage(folder)
        if problem is None:
            return str(folder)
        logger.warning("Passed over `%s`: %s. The run continues from an earlier one.", folder, problem)
    return None


def find_damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a trainer's checkpoint, `None` when it is whole.

    Sizes are read from the headers of safetensors files and the directories of zip files (`torch.save`): no tensor is
    loaded.
    """
    needed = ["trainer_state.json", "training_args.bin"]
    missing = [name for name in needed if not (checkpoint / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    if not list(checkpoint.glob("*.safetensors")) + list(checkpoint.glob("*_model_*")):
        return "no weights"
    for path in sorted(checkpoint.rglob("*")):
        if path.suffix == ".json" and not _is_json(path):
            return f"{path.name} is cut off"
        if path.suffix == ".safetensors" and not _is_whole_safetensors(path):
            return f"{path.name} is cut off"
        if path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
            return f"{path.name} is cut off"
    return None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _is_whole_safetensors(path: Path) -> bool:
    """Compare the file's size with the last offset its header names."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return False
        (length,) = struct.unpack("<Q", start)
        if length > size - 8:
            return False
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)
