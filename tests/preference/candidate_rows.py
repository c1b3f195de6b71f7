"""Candidates as `hf-mu2 sample` writes them, without a model."""

from pathlib import Path
from typing import Any

from hf_mu2.tables import write_rows

REFERENCE = "Findings: There is a pleural effusion on the left. Emphysema.\nImpression: Effusion."
TEXTS = (
    "Findings: Pleural effusion on the left. Emphysema.",
    "Findings: Pleural effusion on the left.",
    "Findings: Cardiomegaly.",
    "Findings: The lungs are clear.",
)


def candidate_row(study_id: str, texts: tuple[str, ...] = TEXTS, **fields: Any) -> dict[str, Any]:
    """Make the row of one study; `fields` replace those it has."""
    row = {
        "notice": "Research use.",
        "study_id": study_id,
        "patient_id": f"patient of {study_id}",
        "egress": True,
        "images": [f"/data/{study_id}.nii.gz"],
        "prompt": [{"role": "user", "content": "Write the report."}],
        "volumes": [f"ct-{study_id}"],
        "candidates": [
            {"index": index, "text": text, "finish_reason": "eos", "num_tokens": 9, "seed": 1}
            for index, text in enumerate(texts)
        ],
    }
    return row | fields


def write_candidates(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_rows(path, rows)
    return path


def write_references(path: Path, study_ids: list[str], **fields: Any) -> Path:
    """Write one reference, the same for every study."""
    write_rows(path, [{"study_id": study_id, "reference": REFERENCE, **fields} for study_id in study_ids])
    return path
