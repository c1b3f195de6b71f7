"""Small corpora of one's own, written for tests."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib

from tests.tiny import tiny_nifti

HEADER = ("study_id", "patient_id", "split", "volume", "findings", "impression", "Emphysema")


def write_folder(
    root: Path, num_studies: int = 6, splits: Sequence[str] = ("train", "train", "test")
) -> Path:
    """Write `metadata.csv` and a volume per study; two studies per patient, whose splits come in turn."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [",".join(HEADER)]
    for i in range(num_studies):
        nib.save(tiny_nifti(i, (6, 16, 20)), root / f"ct{i}.nii.gz")
        split = splits[i // 2 % len(splits)]
        findings = f'"Nodule of {i + 3} mm, no effusion."'
        lines.append(f"s{i},p{i // 2},{split},ct{i}.nii.gz,{findings},Nodule {i}.,{i % 2}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def write_table(root: Path, rows: Sequence[dict[str, Any]], name: str = "metadata.jsonl") -> Path:
    """Write rows as JSON lines; return the root."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def run_without_package(code: str, *arguments: object) -> Any:
    """Run code that prints JSON in a process that cannot import the package; return what it printed last."""
    blocked = "import sys\nsys.modules['hf_mu2'] = None\n" + code
    result = subprocess.run(
        [sys.executable, "-c", blocked, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])
