"""Rows of small volumes on disk, and shards of them written in this process."""

from pathlib import Path
from typing import Any

import nibabel as nib

from hf_mu2.data.prepare_shards import ShardWork
from hf_mu2.data.work_list import write_plan
from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.volume_mu2 import preparation_key, prepared_reference
from tests.tiny import tiny_nifti


def small_processor(**fields: Any) -> Mu2ImageProcessor:
    """A processor on whose grid a tiny volume takes 11 slices of 32 x 32."""
    defaults = {
        "spacing": (3.2, 3.0, 3.0),
        "size": {"height": 32, "width": 32},
        "num_slices": 8,
        "max_frames": 4,
    }
    return Mu2ImageProcessor(**{**defaults, **fields})


def write_rows(folder: Path, count: int, damaged: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Write NIfTI files, cut some of them in half, and return SFT rows that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        path = folder / f"ct{index}.nii.gz"
        nib.save(tiny_nifti(index), path)
        if index in damaged:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
        rows.append(
            {
                "study_id": f"study_{index}",
                "images": [str(path)],
                "prompt": [{"role": "user", "content": "Report."}],
                "completion": [{"role": "assistant", "content": f"Findings: number {index}."}],
            }
        )
    return rows


def prepare_here(rows: list[dict[str, Any]], out: Path, processor: Mu2ImageProcessor) -> list[str]:
    """Write one shard in this process; return the references to its volumes, in order."""
    plan = write_plan(rows, out / ".plan", sum(len(row["images"]) for row in rows))
    work = ShardWork(plan, out, "train", "tensors", processor.preparation)
    work.write(0, processor.prepare)
    shard = out / "shards" / "train" / "00000.safetensors"
    key = preparation_key(processor.preparation)
    return [prepared_reference(shard, volume["volume"], key) for volume in work.volumes(0)]
