"""Synthetic report rows for tests: findings drawn per study, each said in one of two ways."""

import random
from typing import Any

FINDINGS = {
    "Cardiomegaly": ("The heart is enlarged.", "There is cardiomegaly."),
    "Emphysema": ("There is emphysema in both lungs.", "Emphysematous changes are seen in the upper lobes."),
    "Lung nodule": (
        "There is a {size} mm nodule in the {side} upper lobe.",
        "A {side} lung nodule of {size} mm is seen.",
    ),
    "Pleural effusion": (
        "There is a {side} pleural effusion.",
        "Pleural effusion is observed on the {side}.",
    ),
    "Hiatal hernia": ("There is a hiatal hernia.", "A sliding hiatal hernia is observed."),
}
DENIED = {
    "Cardiomegaly": "The heart size is normal.",
    "Emphysema": "No emphysema.",
    "Lung nodule": "No nodule in either lung.",
    "Pleural effusion": "No pleural effusion.",
    "Hiatal hernia": "No hiatal hernia.",
}


def make_references(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Two studies per patient."""
    rng = random.Random(seed)
    return [
        {"study_id": f"s{index:03}", "patient_id": f"p{index // 2}", "reference": _report(rng)}
        for index in range(number)
    ]


def make_predictions(references: list[dict[str, Any]], skill: float, seed: int = 1) -> list[dict[str, Any]]:
    """Copy a reference with probability `skill`, else write about nobody."""
    rng = random.Random(seed)
    return [
        {
            "study_id": row["study_id"],
            "candidate": row["reference"] if rng.random() < skill else _report(rng),
        }
        for row in references
    ]


def _report(rng: random.Random) -> str:
    sentences = ["Trachea and main bronchi are open."]
    for label, ways in FINDINGS.items():
        if rng.random() < 0.35:
            sentences.append(
                rng.choice(ways).format(size=rng.randint(2, 20), side=rng.choice(("left", "right")))
            )
        else:
            sentences.append(DENIED[label])
    rng.shuffle(sentences)
    return " ".join(sentences)
