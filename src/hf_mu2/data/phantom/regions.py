"""The regions of the body that PhantomCT shows: the labels of each, how often they occur, and their words."""

from dataclasses import dataclass

from ..study import FINDING_LABELS
from .abdomen_sentences import ABDOMEN
from .vocabulary import CHEST, Vocabulary

NORMAL_SHARE = 0.08
PROMPTS = (
    "Write the findings and impression of this chest CT.",
    "Report this chest CT: findings and impression.",
    "Describe the findings of this chest CT and give an impression.",
    "Please write a radiology report for this chest CT with findings and impression.",
    "What does this chest CT show? Give findings and impression.",
    "Generate the report of this CT of the chest, findings first, then the impression.",
    "Read this chest CT and state your findings and impression.",
)
PREVALENCE = dict(
    zip(
        FINDING_LABELS,
        # Flatter than in life, so that every label can be learned and measured.
        (0.22, 0.28, 0.23, 0.19, 0.25, 0.20, 0.24, 0.22, 0.27,
         0.34, 0.29, 0.26, 0.24, 0.20, 0.22, 0.24, 0.22, 0.22),
        strict=True,
    )
)  # fmt: skip
ABDOMEN_PREVALENCE = {
    "Liver lesion": 0.34,
    "Hepatic steatosis": 0.24,
    "Gallstone": 0.24,
    "Splenomegaly": 0.22,
    "Pancreatic lesion": 0.24,
    "Adrenal nodule": 0.22,
    "Renal cyst": 0.32,
    "Renal stone": 0.26,
    "Hydronephrosis": 0.24,
    "Bowel obstruction": 0.20,
    "Bowel wall thickening": 0.24,
    "Ascites": 0.22,
    "Aortic aneurysm": 0.20,
    "Aortic calcification": 0.28,
    "Abdominal lymphadenopathy": 0.24,
}
ABDOMEN_LABELS: tuple[str, ...] = ABDOMEN.labels


@dataclass(frozen=True)
class BodyRegion:
    """One region.

    Args:
        prefix (`str`): What the ids of its studies start with.
        parts (`str`): The region as a study row says it.
    """

    name: str
    prefix: str
    parts: str
    prevalence: dict[str, float]
    vocabulary: Vocabulary
    prompts: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the label table, in the order of the mask bits."""
        return self.vocabulary.labels


BODY_REGIONS = {
    "chest": BodyRegion("chest", "phantom", "chest", PREVALENCE, CHEST, PROMPTS),
    "abdomen": BodyRegion(
        "abdomen",
        "phantom_abdomen",
        "abdomen+pelvis",
        ABDOMEN_PREVALENCE,
        ABDOMEN,
        tuple(prompt.replace("chest", "abdomen") for prompt in PROMPTS),
    ),
}


def body_region(name: str) -> BodyRegion:
    """Return a region by its name.

    Raises:
        ValueError: if there is no such region.
    """
    if name not in BODY_REGIONS:
        raise ValueError(f'`region` must be "chest" or "abdomen", got "{name}". Pass one of the two.')
    return BODY_REGIONS[name]
