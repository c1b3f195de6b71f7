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


def write_pairs_folder(folder: Path, num_rows: int, num_eval_rows: int = 0) -> Path:
    """Write volumes beside `metadata.jsonl` with the columns of `hf-mu2 pairs`."""
    for split, number in (("train", num_rows), ("validation", num_eval_rows)):
        if not number:
            continue
        (folder / split).mkdir(parents=True)
        lines = []
        for i in range(number):
            nib.save(tiny_nifti(i), folder / split / f"{i}.nii.gz")
            row = {
                "images_file_names": [f"{i}.nii.gz"],
                "study_id": f"{split}-{i}",
                "patient_id": f"{split}-patient-{i}",
                "prompt": turns("user", f"Write the findings, {i % 2}."),
                "chosen": turns("assistant", f"Findings: {FINDINGS[i % len(FINDINGS)]}"),
                "rejected": turns("assistant", "Findings: none at all of any kind."[: 20 + 4 * i]),
                "scores": {"chosen": 0.9, "rejected": 0.1},
            }
            lines.append(json.dumps(row))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_online_folder(folder: Path, num_rows: int) -> Path:
    """Write volumes beside `metadata.jsonl` with prompts and references."""
    (folder / "train").mkdir(parents=True)
    lines = []
    for i in range(num_rows):
        nib.save(tiny_nifti(i), folder / "train" / f"{i}.nii.gz")
        row = {
            "images_file_names": [f"{i}.nii.gz"],
            "study_id": f"study-{i}",
            "patient_id": f"patient-{i}",
            "egress": True,
            "prompt": turns("user", "Write the findings."),
            "reference": f"Findings: {FINDINGS[i % len(FINDINGS)]}",
        }
        lines.append(json.dumps(row))
    (folder / "train" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
