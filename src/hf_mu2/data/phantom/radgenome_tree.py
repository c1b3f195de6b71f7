"""Write PhantomCT studies as the tree of RadGenome-ChestCT: volumes, masks and reports by region, questions.

Reads: nothing; every study is computed from its seed.
Writes: `dataset/` as on the Hub.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..nifti import save_nifti
from .ct_rate_tree import write_table
from .generate import Phantom, make_phantom
from .report import Finding, tell
from .sentences import POSITIVES

REGION_OF = {
    "Medical material": "bone",
    "Arterial wall calcification": "mediastinum",
    "Cardiomegaly": "heart",
    "Pericardial effusion": "heart",
    "Coronary artery wall calcification": "heart",
    "Hiatal hernia": "esophagus",
    "Lymphadenopathy": "mediastinum",
    "Pleural effusion": "pleura",
    "Peribronchial thickening": "trachea and bronchie",
    "Bronchiectasis": "trachea and bronchie",
}  # all others: lung
_QUESTION_COLUMNS = {
    "abnormality": ("Anatomy", "Abnormality"),
    "location": ("Anatomy", "Abnormality"),
    "presence": ("Anatomy", "Finding", "Presence"),
    "size": ("Anatomy", "Abnormality", "Size"),
}
SPACING = (5.0, 2.5, 2.5)


def write_radgenome_tree(
    out: str | Path,
    *,
    num_train: int = 3,
    num_valid: int = 2,
    seed: int = 0,
    spacing: Sequence[float] = SPACING,
    difficulty: str = "standard",
) -> Path:
    """Write patients `1` to `num_train` and `num_valid` of each part, one scan each; return `out`.

    Regions with a finding have a sentence, a mask and questions; the whole report has a row of its own, without a
    region.
    """
    out = Path(out)
    for part, word, num_patients in (("train", "train", num_train), ("valid", "validation", num_valid)):
        base = out / "dataset"
        reports: list[Sequence[Any]] = []
        disorders: list[Sequence[Any]] = []
        questions: dict[str, list[Sequence[Any]]] = {kind: [] for kind in _QUESTION_COLUMNS}
        for patient in range(1, num_patients + 1):
            phantom = make_phantom(seed, spacing=spacing, orientation="LPS", difficulty=difficulty)
            seed += 1
            name = f"{part}_{patient}_a_1.nii.gz"
            folder = base / f"{part}_preprocessed" / f"{part}_{patient}" / f"{part}_{patient}a"
            save_nifti(phantom.nifti(), folder / name)
            rng = random.Random(phantom.study_id)
            for region, findings in _by_region(phantom).items():
                mask = np.any([phantom.mask(finding.label) for finding in findings], axis=0)
                masks = base / f"{part}_region_mask" / f"seg_{name.removesuffix('.nii.gz')}"
                save_nifti(phantom.nifti(mask.astype(np.uint8)), masks / f"{region}.nii.gz")
                for finding in findings:
                    reports.append((name, region, tell(POSITIVES[finding.label], finding, rng)))
                    thing = finding.label.lower()
                    questions["abnormality"].append((name, region, thing))
                    questions["location"].append((name, region, thing))
                    questions["presence"].append((name, region, thing, "Yes"))
                    if finding.size_mm is not None:
                        questions["size"].append((name, region, thing, f"{finding.size_mm:.0f} mm"))
            reports.append((name, "", phantom.report.findings))
            present = [label.lower() for label, there in phantom.labels.items() if there]
            disorders.append((name, ", ".join(present) or "no findings"))
        files = base / "radgenome_files"
        write_table(files / f"{word}_region_report.csv", ("Volumename", "Anatomy", "Sentence"), reports)
        write_table(files / f"{word}_case_disorders.csv", ("Volumename", "Disorders"), disorders)
        for kind, rows in questions.items():
            write_table(files / f"{word}_vqa_{kind}.csv", ("Volumename", *_QUESTION_COLUMNS[kind]), rows)
    return out


def _by_region(phantom: Phantom) -> dict[str, list[Finding]]:
    """Group the findings of a phantom by the region that RadGenome would report them under."""
    regions: dict[str, list[Finding]] = {}
    for finding in phantom.findings:
        regions.setdefault(REGION_OF.get(finding.label, "lung"), []).append(finding)
    return regions
