from pathlib import Path

import pytest

from hf_mu2.reporting.inference import Reader, load_reader


@pytest.fixture(scope="session")
def reader(checkpoint: Path) -> Reader:
    return load_reader(checkpoint, "cpu")
