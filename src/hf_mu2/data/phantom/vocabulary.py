"""The words of a region, and those of the chest; `wording.py` says how they become a report."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..study import FINDING_LABELS
from .sentences import GROUPS, IMPORTANCE, IMPRESSION_NORMAL, IMPRESSIONS, LABEL_NOUNS, POSITIVES

Skeletons = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Organ:
    """Labels that are reported together.

    Args:
        normals (`tuple[str, ...]`): Ways to say that none of `labels` is present.
        fixed (`str`): The one long way of a report full of habit to say so.
        habit (`str`): A long sentence that such a report has whatever the volume shows; true of every phantom.
    """

    labels: tuple[str, ...]
    normals: tuple[str, ...]
    fixed: str
    habit: str


@dataclass(frozen=True)
class Vocabulary:
    """Everything a report of a region can say. Skeletons are those of `report.py`."""

    labels: tuple[str, ...]
    nouns: Skeletons
    positives: Skeletons
    impressions: Skeletons
    importance: tuple[str, ...]
    organs: tuple[Organ, ...]
    impression_normal: tuple[str, ...]


# One for each of GROUPS: what is said when nothing of the group is present, and what is said in any case.
_HABITS: tuple[tuple[str, str], ...] = (
    (
        "There is no catheter, tube, wire or implanted device within the chest or the chest wall on "
        "any of the slices.",
        "The examination was reviewed on axial slices with coronal and sagittal reformations in "
        "lung, mediastinal and "
        "bone windows, and image quality is sufficient for interpretation.",
    ),
    (
        "The trachea and both main bronchi are open, of regular caliber, and no occlusive pathology "
        "is detected in "
        "their lumen or along their walls.",
        "The trachea lies in the midline and divides at the usual level into the two main bronchi.",
    ),
    (
        "When examined in the lung parenchyma window, no mass, nodule or infiltrative lesion is "
        "detected in either lung.",
        "Both lungs were examined in the lung parenchyma window from the apices down to the "
        "costophrenic sulci.",
    ),
    (
        "Aeration of both lung parenchyma is normal, the lungs are well expanded, and no chronic "
        "parenchymal change is "
        "observed in any of the lobes.",
        "Both hemithoraces are of symmetrical shape and the ribs follow their normal course on both sides.",
    ),
    (
        "No pleural or pericardial effusion is detected, and no thickening of the pleural leaves is "
        "observed.",
        "The diaphragm is in its normal position on both sides, higher on the right than on the left.",
    ),
    (
        "The heart contour and the size of the heart are normal and the cardiac chambers are of the "
        "usual dimensions.",
        "The main mediastinal vessels, as far as they can be evaluated, follow their normal course "
        "through the chest.",
    ),
    (
        "No calcified plaque is observed in the walls of the thoracic aorta or of the coronary arteries.",
        "The aortic arch gives off its three branches in the usual order on its upper side.",
    ),
    (
        "No lymph node in pathological size or appearance is detected in the mediastinum, in either "
        "hilum or in the axillae.",
        "The fat planes of the mediastinum are visible and the thyroid gland is partly included in "
        "the images.",
    ),
    (
        "In the upper abdominal organs included in the sections, no hernia or other pathology is observed.",
        "Bone structures in the study area show vertebral corpus heights, alignments and densities "
        "that are natural, and "
        "no lytic or destructive lesion is detected.",
    ),
)

CHEST = Vocabulary(
    labels=FINDING_LABELS,
    nouns=LABEL_NOUNS,
    positives=POSITIVES,
    impressions=IMPRESSIONS,
    importance=IMPORTANCE,
    organs=tuple(
        Organ(labels, normals, fixed, habit)
        for (labels, normals), (fixed, habit) in zip(GROUPS, _HABITS, strict=True)
    ),
    impression_normal=IMPRESSION_NORMAL,
)
