"""Random findings for tests of the phantom's report: every label with the facts it may carry."""

import random

from hf_mu2.data.phantom.report import Finding
from hf_mu2.data.study import FINDING_LABELS

_SIDES = ("left", "right", "bilateral", None)
_LOBES = ("upper lobe", "middle lobe", "lingula", "lower lobe", "apical", "basal", None)
_LUNG = FINDING_LABELS[7:12] + FINDING_LABELS[13:]
_COUNTED = (
    "Lung nodule",
    "Lymphadenopathy",
    "Lung opacity",
    "Consolidation",
    "Coronary artery wall calcification",
)
_PLACES = {
    "Medical material": ((None, "left", "right"), (None, "chest wall", "superior vena cava", "right atrium")),
    "Arterial wall calcification": (
        (None,),
        (None, "aortic arch", "descending aorta", "aorta", "subclavian artery"),
    ),
    "Coronary artery wall calcification": ((None,), (None, "left anterior descending artery", "LAD")),
    "Lymphadenopathy": (_SIDES, ("mediastinal", "hilar", "axillary", None)),
    "Pleural effusion": (_SIDES, (None,)),
}
_KINDS = {
    "Medical material": (
        "central venous catheter",
        "pacemaker",
        "sternal wires",
        "chest tube",
        "surgical clips",
    ),
    "Hiatal hernia": ("sliding", "paraesophageal"),
    "Emphysema": ("centrilobular", "paraseptal", "bullous"),
    "Atelectasis": ("linear", "plate-like", "lobar"),
    "Lung nodule": ("solid", "calcified", "ground-glass", "spiculated"),
    "Lung opacity": ("patchy", "peripheral"),
    "Pulmonary fibrotic sequela": ("apical", "basal", "linear"),
    "Consolidation": ("lobar", "patchy"),
    "Bronchiectasis": ("cylindrical", "traction"),
    "Interlobular septal thickening": ("smooth", "irregular"),
}


def draw_findings(rng: random.Random, num_labels: int) -> list[Finding]:
    """Draw findings of `num_labels` different labels, now and then two of one label."""
    findings = []
    for label in rng.sample(FINDING_LABELS, num_labels):
        sides, regions = (_SIDES, _LOBES) if label in _LUNG else _PLACES.get(label, ((None,), (None,)))
        for _ in range(rng.choice((1, 1, 1, 2))):
            findings.append(
                Finding(
                    label,
                    rng.choice(sides),
                    rng.choice(regions),
                    rng.choice((1, 1, 2, 5, 12)) if label in _COUNTED else 1,
                    rng.choice((None, float(rng.randint(2, 90)), rng.uniform(2, 40))),
                    rng.choice((None, "mild", "moderate", "severe")),
                    rng.choice((None, *_KINDS.get(label, ()))),
                )
            )
    return findings
