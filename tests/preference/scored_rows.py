"""Scored candidates as `hf-mu2 score` writes them, with scores of the test's choice."""

from typing import Any

from tests.preference.candidate_rows import REFERENCE, candidate_row

TEXTS = (
    "Findings: Pleural effusion on the left. Emphysema.\nImpression: Effusion on the left side.",
    "Findings: Pleural effusion on the left. Nothing else of note in either lung.",
    "Findings: Cardiomegaly. The lungs are clear, no effusion is seen at all.",
    "Findings: The lungs are clear and the heart is of normal size as before.",
)


def scored_row(
    study_id: str,
    scores: tuple[float, ...] = (0.9, 0.6, 0.3, 0.1),
    texts: tuple[str, ...] = TEXTS,
    **fields: Any,
) -> dict[str, Any]:
    """Make the scored row of one study: candidate k has text k and score k; label-F1 is the score."""
    row = candidate_row(study_id, texts) | {"reference": REFERENCE, "signature": "1*label_f1|rules"} | fields
    for candidate, score in zip(row["candidates"], scores, strict=True):
        candidate |= {"scores": {"label_f1": score, "total": score}, "status": "ok"}
    return row
