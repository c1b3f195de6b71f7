from pathlib import Path

import nibabel as nib
import pytest

from hf_mu2.reporting.inference import Reader, load_reader
from tests.tiny import make_tiny_checkpoint, tiny_nifti


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised checkpoint: fast, and fluent in nothing."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-mu2"
    make_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def reader(checkpoint: Path) -> Reader:
    return load_reader(checkpoint, "cpu")


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A folder of five NIfTI files, the fourth of them broken."""
    folder = tmp_path / "volumes"
    folder.mkdir()
    for index in range(5):
        nib.save(tiny_nifti(index), folder / f"ct{index}.nii.gz")
    content = (folder / "ct3.nii.gz").read_bytes()
    (folder / "ct3.nii.gz").write_bytes(content[: len(content) // 2])
    return folder
