"""Studies per second into a training loop: raw and prepared, against MONAI's PersistentDataset doing the same work.

Run: python benchmarks/loading.py [CT.nii.gz] [--volumes 4] [--rounds 5]

Each figure is one epoch of a `DataLoader` with batches of 2, one thread per process, files in the page cache, workers
started before; the clock stops when the last float32 batch is in the training process. The loaders take turns, round
after round, so that a busy machine slows all of them alike; medians and ratios of medians are printed. Without a file
it writes a synthetic chest of 1 x 0.75 x 0.75 mm, about as many voxels as a volume of CT-RATE. The volumes are links to
that one file.
MONAI is no dependency of the package: `pip install monai --no-deps` adds its rows.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "benchmarks")]

import nibabel  # noqa: E402
from preprocess import monai_chain  # noqa: E402

from hf_mu2.data.phantom import make_phantom  # noqa: E402
from hf_mu2.data.prepare import PreparedStudies, prepare  # noqa: E402
from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor  # noqa: E402

BATCH_SIZE = 2


class Rows(Dataset):
    """Rows as a list, the processor in the collator: what our trainers do."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


class Collate:
    def __init__(self, processor: Mu2ImageProcessor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> torch.Tensor:
        return self.processor([row["images"][0] for row in rows], return_tensors="pt")["pixel_values"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("volume", nargs="?", type=Path)
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = (arguments.volume or write_phantom(folder)).resolve()
        rows = []
        for index in range(arguments.volumes):
            link = folder / f"ct{index}{''.join(source.suffixes[-2:])}"
            link.symlink_to(source)
            rows.append({"study_id": f"study_{index}", "images": [str(link)]})
        run(source, rows, folder, arguments.rounds)


def run(source: Path, rows: list[dict], folder: Path, rounds: int) -> None:
    processor = Mu2ImageProcessor(antialias=False)  # what MONAI resamples with, so that both do the same work
    started = time.perf_counter()
    prepared = prepare(
        rows, folder / "prepared", processor, volumes_per_shard=1
    )  # equal content is stored once per shard
    seconds = time.perf_counter() - started
    loaders: dict[str, dict[int, DataLoader]] = {
        "raw, ours": make_loaders(Rows(rows), Collate(processor)),
        "prepared, ours": make_loaders(PreparedStudies(prepared.folder), Collate(processor)),
        "cached, MONAI PersistentDataset": {},
    }
    try:
        loaders["cached, MONAI PersistentDataset"] = make_loaders(
            monai_dataset(processor, rows, folder), default_collate
        )
    except ImportError:
        print("MONAI is not installed: `pip install monai --no-deps` adds the comparison.")
    times: dict[tuple[str, int], list[float]] = {}
    last: dict[str, torch.Tensor] = {}
    for number in range(rounds + 1):
        for name, by_workers in loaders.items():
            for workers, loader in by_workers.items():
                started = time.perf_counter()
                for last[name] in loader:
                    pass
                if number:  # the first epoch starts workers and fills caches
                    times.setdefault((name, workers), []).append(time.perf_counter() - started)
    rate = {key: len(rows) / statistics.median(values) for key, values in times.items()}
    sizes = {
        "files": len(rows) * source.stat().st_size,
        "prepared": sum(path.stat().st_size for path in prepared.folder.rglob("*.safetensors")),
        "MONAI cache": sum(path.stat().st_size for path in folder.glob("monai/*")),
    }
    shape, stored = tuple(last["prepared, ours"].shape[1:]), processor.load(source).array.shape
    print(f"{source.name} {stored}, {len(rows)} links, pixel_values {shape}")
    print(f"{rounds} rounds, median; load average {os.getloadavg()[0]:.1f}")
    print("MB: " + ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.items()))
    print(f"prepare: {len(rows) / seconds:.2f} volumes/s with one worker")
    print(f"{'studies per second':34}{'1 worker':>10}{'2 workers':>11}{'/ raw':>8}{'/ MONAI':>9}")
    for name in loaders:
        if (name, 1) not in rate:
            continue
        to_raw = min(rate[name, n] / rate["raw, ours", n] for n in (1, 2))
        line = f"{name:34}{rate[name, 1]:10.2f}{rate[name, 2]:11.2f}{to_raw:8.2f}"
        if ("cached, MONAI PersistentDataset", 1) in rate:
            to_monai = min(rate[name, n] / rate["cached, MONAI PersistentDataset", n] for n in (1, 2))
            line += f"{to_monai:9.2f}"
        print(line)
    print("ratios are the worse of the two numbers of workers")
    if "cached, MONAI PersistentDataset" in last:
        ours, theirs = last["prepared, ours"], last["cached, MONAI PersistentDataset"]
        body = (theirs > 0.25) & (theirs < 1)  # above -500 HU, not clipped
        median, p99 = np.percentile(2000 * (ours - theirs)[body].abs().numpy(), (50, 99))
        print(f"difference of the two caches in the body: median {median:.3f} HU, p99 {p99:.3f} HU")


def write_phantom(folder: Path) -> Path:
    nibabel.save(make_phantom(0, spacing=(1.0, 0.75, 0.75)).nifti(), folder / "phantom.nii.gz")
    return folder / "phantom.nii.gz"


def make_loaders(dataset: Any, collate: Any) -> dict[int, DataLoader]:
    return {
        workers: DataLoader(
            dataset, BATCH_SIZE, collate_fn=collate, num_workers=workers, persistent_workers=True
        )
        for workers in (1, 2)
    }


def monai_dataset(processor: Mu2ImageProcessor, rows: list[dict], folder: Path) -> Any:
    """Return MONAI's persistent dataset over the same chain, float32 frames as plain tensors."""
    from monai.data import PersistentDataset
    from monai.transforms import Transform

    paths = [row["images"][0] for row in rows]
    chain = monai_chain(processor, Path(paths[0]))
    assert chain is not None

    class ToFrames(Transform):
        """One deterministic transform: `PersistentDataset` stores what it returns."""

        def __call__(self, path: str) -> torch.Tensor:
            return chain(path)[0]

    return PersistentDataset(paths, ToFrames(), cache_dir=folder / "monai")


if __name__ == "__main__":
    main()
