"""hf_mu2: report generation from 3D CT in the Hugging Face ecosystem. Research software, not a medical device."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .registration import register

try:
    __version__ = version("hf-mu2")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

register()


def embedded_checkpoint() -> Path:
    """Return the folder of the small demo checkpoint that ships with the package (synthetic CT only)."""
    return Path(__file__).parent / "checkpoints" / "mu2-phantom"


__all__ = ["__version__", "embedded_checkpoint"]
