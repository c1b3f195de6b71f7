"""How a finding is drawn: what its seed says, or a stated departure from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .anatomy import stream
from .report import Finding

OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Draw:
    """A departure of one finding from what its seed draws; everything else of the study stays.

    Args:
        variant (`int`): Which draw of the finding: 0 is the seed's own, others are as likely.
        is_mirrored (`bool`): On the other side of the patient.
        shrink (`float`): Factor on its size, at the same place; at most 1.
    """

    variant: int = 0
    is_mirrored: bool = False
    shrink: float = 1.0

    def side(self, rng: np.random.Generator) -> str:
        """Draw a side of the patient."""
        side = "right" if rng.random() < 0.5 else "left"
        return OTHER_SIDE[side] if self.is_mirrored else side


AS_THE_SEED_SAYS = Draw()


def graded(value: float, moderate: float, severe: float) -> str:
    """Name the severity of a size."""
    return "severe" if value >= severe else "moderate" if value >= moderate else "mild"


def paint_in_turn(
    scene: Any,
    painters: Mapping[str, Callable[..., list[Finding]]],
    labels: Sequence[str],
    draws: Mapping[str, Draw],
    order: Sequence[str],
) -> list[Finding]:
    """Paint the findings of the labels in the order of `painters`, and return them in the order of the label table.

    Each label has its own random stream, so one finding does not move another.
    """
    findings = []
    for label, painter in painters.items():
        if label in labels:
            draw = draws.get(label, AS_THE_SEED_SAYS)
            name = f"{label} {draw.variant}" if draw.variant else label
            findings += painter(replace(scene, draw=draw), stream(scene.anatomy.seed, name))
    return sorted(findings, key=lambda finding: order.index(finding.label))
