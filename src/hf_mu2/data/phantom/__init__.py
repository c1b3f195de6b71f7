"""PhantomCT: synthetic CT with known findings, the mask of each, and the report that follows from them.

`generate.py` makes a study from its seed, `pairs.py` two that are one finding apart, `folder.py` and `benchmark.py`
write studies to disk.
"""

from .benchmark import FIRST_SEED, RESOLUTIONS, SIZES, write_benchmark
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
from .pairs import CHANGES, PhantomPair, make_pair, pair_labels, write_pairs
from .regions import ABDOMEN_LABELS, PREVALENCE, PROMPTS

__all__ = [
    "ABDOMEN_LABELS",
    "CHANGES",
    "DIFFICULTIES",
    "FIRST_SEED",
    "GENERATOR_VERSION",
    "PREVALENCE",
    "PROMPTS",
    "RESOLUTIONS",
    "SIZES",
    "Draw",
    "Phantom",
    "PhantomPair",
    "draw_labels",
    "make_pair",
    "make_phantom",
    "pair_labels",
    "random_spacing",
    "spoil",
    "write_benchmark",
    "write_pairs",
    "write_phantoms",
]
