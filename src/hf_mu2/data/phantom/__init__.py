"""PhantomCT: synthetic CT with known findings, the mask of each, and the report that follows from them.

`generate.py` makes a study from its seed, `pairs.py` two that are one finding apart, `folder.py` and `benchmark.py`
write studies to disk.
"""

from .draw import Draw
from .folder import write_phantoms
from .generate import (
    DIFFICULTIES,
    GENERATOR_VERSION,
    Phantom,
    draw_labels,
    make_phantom,
    random_spacing,
    spoil,
)
from .regions import ABDOMEN_LABELS, PREVALENCE, PROMPTS

__all__ = [
    "ABDOMEN_LABELS",
    "DIFFICULTIES",
    "GENERATOR_VERSION",
    "PREVALENCE",
    "PROMPTS",
    "Draw",
    "Phantom",
    "draw_labels",
    "make_phantom",
    "random_spacing",
    "spoil",
    "write_phantoms",
]
