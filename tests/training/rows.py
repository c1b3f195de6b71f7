"""Small datasets for training tests, written as folders that `load_dataset` opens."""

import json
from pathlib import Path

import nibabel as nib

from tests.tiny import tiny_nifti

FINDINGS = ("Emphysema.", "Pleural effusion on the left.", "Normal.", "Lung nodule of 6 mm.")


def turns(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def write_sft_folder(folder: Path, num_rows: int) -> Path:
    """Write volumes beside `metadata.jsonl` with prompts and completions."""
    (folder / "train").mkdir(parents=True)
    lines = []
    for i in range(num_rows):
        nib.save(tiny_nifti(i), folder / "train" / f"{i}.nii.gz")
        row = {
            "images_file_names": [f"{i}.nii.gz"],
            "study_id": f"study-{i}",
            "patient_id": f"patient-{i}",
            "prompt": turns("user", "Write the findings."),
            "completion": turns("assistant", f"Findings: {FINDINGS[i % len(FINDINGS)]}"),
        }
        lines.append(json.dumps(row))
    (folder / "train" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
