"""Say what a result was made with, and what this machine can do, without importing torch.

Reads: installed package metadata, the embedded checkpoint's folder.
Writes: nothing.
"""

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from packaging.requirements import Requirement

import hf_mu2

_VERSIONED = ("torch", "transformers", "huggingface-hub", "numpy", "nibabel")


def library_versions() -> dict[str, str]:
    """State the versions a result depends on."""
    versions = {"python": platform.python_version(), "hf-mu2": hf_mu2.__version__}
    return versions | {name: version(name) for name in _VERSIONED}


def describe_command(command: str, options: dict[str, Any]) -> str:
    """Restate a command with the options that were given."""
    words = [command]
    for name, value in options.items():
        if value is not None:
            shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            words.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(words)


def describe_environment() -> dict[str, Any]:
    """Describe versions, devices, extras and the embedded checkpoint, ready for JSON."""
    checkpoint = hf_mu2.embedded_checkpoint()
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return {
        "notice": "Research software. Not a medical device.",
        "versions": library_versions(),
        "platform": platform.platform(),
        "devices": list_devices(),
        "extras": {extra: not missing for extra, missing in missing_requirements().items()},
        "embedded_checkpoint": {
            "name": checkpoint.name,
            "path": str(checkpoint),
            "present": (checkpoint / "config.json").is_file(),
            "megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 2),
        },
    }


def list_devices() -> list[str]:
    """Name the devices of this machine, the accelerators first; whether torch can use them is torch's business."""
    devices = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        devices += [f"cuda: {line.strip()}" for line in answer.stdout.splitlines() if answer.returncode == 0]
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        devices.append("mps: Apple silicon")
    return [*devices, f"cpu: {platform.machine()}"]


def missing_requirements() -> dict[str, list[str]]:
    """List, for each extra of the package, the requirements that are not installed."""
    missing: dict[str, list[str]] = {}
    for line in requires("hf-mu2") or []:
        requirement = Requirement(line)
        if requirement.marker is None or "extra" not in str(requirement.marker):
            continue
        extra = str(requirement.marker).split('"')[1]
        missing.setdefault(extra, [])
        if not _is_installed(requirement):
            missing[extra].append(str(requirement.name))
    return missing


def _is_installed(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False
