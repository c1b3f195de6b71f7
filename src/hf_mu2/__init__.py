"""hf_mu2: report generation from 3D CT in the Hugging Face ecosystem. Research software, not a medical device.

Importing registers the classes with the Auto classes of transformers; the names below are imported when first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .registration import register

try:
    __version__ = version("hf-mu2")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

register()

_MODULE_OF = {
    "Mu2Config": "configuration_mu2",
    "Mu2ForConditionalGeneration": "modeling_mu2",
    "Mu2ImageProcessor": "image_processing_mu2",
    "Mu2Model": "modeling_mu2",
    "Mu2Processor": "processing_mu2",
    "Mu2TokenizerConfig": "configuration_mu2",
    "Mu2VisionConfig": "configuration_mu2",
    "Mu2VisionModel": "modeling_mu2_vision",
    "Volume": "volume_mu2",
    "VolumeError": "volume_mu2",
    "load_volume": "volume_mu2",
}


def embedded_checkpoint() -> Path:
    """Return the folder of the small demo checkpoint that ships with the package (synthetic CT only)."""
    return Path(__file__).parent / "checkpoints" / "mu2-phantom"


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(f".model.{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])


__all__ = ["__version__", "embedded_checkpoint", *_MODULE_OF]
