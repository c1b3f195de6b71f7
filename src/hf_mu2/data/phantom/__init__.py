"""PhantomCT: synthetic CT with known findings, the mask of each, and the report that follows from them.

`generate.py` makes a study from its seed, `folder.py` writes studies to disk.
"""

from .folder import write_phantoms
from .generate import (
    GENERATOR_VERSION,
    PREVALENCE,
    PROMPTS,
    Phantom,
    draw_labels,
    make_phantom,
    random_spacing,
    spoil,
)

__all__ = [
    "GENERATOR_VERSION",
    "PREVALENCE",
    "PROMPTS",
    "Phantom",
    "draw_labels",
    "make_phantom",
    "random_spacing",
    "spoil",
    "write_phantoms",
]
