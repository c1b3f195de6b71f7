"""Check that the checkpoint in the wheel stays within its budget: `python -m tests.wheel_size dist`."""

import sys
import zipfile
from pathlib import Path

BUDGET_MB = 15.0


def checkpoint_megabytes(wheel: Path) -> float:
    """Sum what the files of the embedded checkpoint take up in a wheel, compressed as they are there."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = [entry.compress_size for entry in archive.infolist() if "/checkpoints/" in entry.filename]
    return sum(sizes) / 1e6


def main(folder: str) -> int:
    wheels = sorted(Path(folder).glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        print(f"no wheel in {folder}: run `make wheel` first", file=sys.stderr)
        return 2
    megabytes = checkpoint_megabytes(wheels[-1])
    print(f"{wheels[-1].name}: checkpoint {megabytes:.2f} MB of {BUDGET_MB:.0f} MB")
    if megabytes == 0:
        print("the embedded checkpoint is missing from the wheel", file=sys.stderr)
        return 1
    return int(megabytes > BUDGET_MB)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
