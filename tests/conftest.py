"""Settings every test shares: no network, no accelerator fights, the same numbers every time."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Before anything imports torch or huggingface_hub. An explicit setting of the caller wins only for the threads.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
os.environ.update(TOKENIZERS_PARALLELISM="false", WANDB_DISABLED="true")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need an accelerator on machines without one."""
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an accelerator")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised checkpoint: fast, and fluent in nothing."""
    from tests.tiny import make_tiny_checkpoint

    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-mu2")


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A folder of five NIfTI files, the fourth of them broken."""
    import nibabel as nib

    from tests.tiny import tiny_nifti

    folder = tmp_path / "volumes"
    folder.mkdir()
    for index in range(5):
        nib.save(tiny_nifti(index), folder / f"ct{index}.nii.gz")
    content = (folder / "ct3.nii.gz").read_bytes()
    (folder / "ct3.nii.gz").write_bytes(content[: len(content) // 2])
    return folder


@dataclass(frozen=True)
class CommandResult:
    """What a command left behind: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CommandResult]:
    """Run `hf-mu2` in this process, as the console script does."""
    from hf_mu2.cli import main

    def run(*arguments: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["hf-mu2", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return CommandResult(int(exit_info.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
