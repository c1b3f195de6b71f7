"""Borrow a GPU for one call where the Space has ZeroGPU; elsewhere the call runs where the model is."""

import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

try:  # before anything touches CUDA, as its documentation asks
    import spaces
except ImportError:
    spaces = None

GPU_SECONDS = 120
P = ParamSpec("P")
R = TypeVar("R")


def on_gpu(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function or generator in `spaces.GPU`; what it is called with must be picklable."""
    return function if spaces is None else spaces.GPU(duration=GPU_SECONDS)(function)


def model_device() -> str | None:
    """Return where models are loaded to: with ZeroGPU CUDA, which it stands in for; else `load_reader` chooses."""
    return "cuda" if spaces is not None and os.environ.get("SPACES_ZERO_GPU") else None
