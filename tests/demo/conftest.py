"""The embedded checkpoint at a desk of its own, and a small phantom to upload."""

import pytest

from hf_mu2.data.phantom import make_phantom
from hf_mu2.demo.desk import Desk
from hf_mu2.demo.limits import Limits
from hf_mu2.reporting.inference import load_reader

LIMITS = Limits(
    upload_bytes=8 * 2**20, voxels=2**22, max_new_tokens=32, confidence_samples=2, faithfulness_draws=9
)


@pytest.fixture(scope="session")
def reader():
    return load_reader()


@pytest.fixture(scope="session")
def phantom_bytes() -> bytes:
    labels = ["Cardiomegaly", "Pericardial effusion"]
    phantom = make_phantom(300_000_011, spacing=(6.0, 5.0, 5.0), labels=labels, orientation="LPS")
    return phantom.nifti().to_bytes()


@pytest.fixture(scope="module")
def desk(reader):
    made = Desk([reader], LIMITS)
    yield made
    made.close()


@pytest.fixture
def upload(desk, phantom_bytes):
    """Put a fresh upload where gradio would."""

    def put(content: bytes = phantom_bytes, name: str = "DOE_JANE.nii"):
        path = desk.sessions.uploads / f"upload{len(list(desk.sessions.uploads.iterdir()))}" / name
        path.parent.mkdir()
        path.write_bytes(content)
        return path

    return put
