"""Where the optional real sample data lie; tests that need them skip when they are absent."""

import os
from pathlib import Path

import pytest


def shared_data() -> Path | None:
    """Return the folder of real sample data (`HF_MU2_SHARED_DATA`, or `shared/data` beside the checkout), if any."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HF_MU2_SHARED_DATA", default))
    return folder if folder.is_dir() else None


def shared_data_or_skip(*parts: str) -> Path:
    """Return a file or folder of the real sample data, or skip the calling test."""
    folder = shared_data()
    if folder is None or not folder.joinpath(*parts).exists():
        pytest.skip("real sample data are not at hand (set HF_MU2_SHARED_DATA)")
    return folder.joinpath(*parts)
