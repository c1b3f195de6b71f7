"""File to `pixel_values`: ours against the same chain in MONAI and against bare decompression.

Run: python benchmarks/preprocess.py [CT.nii.gz]

Everything on one thread (set OMP_NUM_THREADS for another number), median of several runs after one warm-up. Without a
file it takes a real 512 x 512 x 64 chest of the sample data, else writes a synthetic one. MONAI and zlib-ng are no
dependencies of the package: `pip install monai --no-deps` and `pip install zlib-ng` add their rows.
"""

import gzip
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor  # noqa: E402
from hf_mu2.model.volume_mu2 import load_volume  # noqa: E402
from tests.paths import shared_data  # noqa: E402

RUNS = 9


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else find_or_write(Path(folder))
        run(path)


def run(path: Path) -> None:
    plain, smooth = Mu2ImageProcessor(antialias=False), Mu2ImageProcessor()
    volume = load_volume(path)
    print(
        f"{path.name}: {volume.array.shape}, {path.stat().st_size / 1e6:.1f} MB, {torch.get_num_threads()} thread(s)"
    )
    readers = {"read + decompress, Python gzip": lambda: gzip.decompress(path.read_bytes())}
    readers |= fast_readers(path)
    calls = {**readers, "load_volume": lambda: load_volume(path)}
    calls["ours, anti-aliased (default)"] = lambda: smooth(str(path), return_tensors="pt")
    calls["ours, plain trilinear"] = lambda: plain(str(path), return_tensors="pt")
    monai = monai_chain(plain, path)
    if monai is not None:
        calls["MONAI, the same grid"] = lambda: monai(str(path))
    seconds = median_seconds(calls)
    fastest = min(seconds[name] for name in readers)
    print(f"{'':34}{'seconds':>9}{'/ fastest read':>16}{'/ ours':>9}")
    for name, value in seconds.items():
        ratio = value / seconds["ours, anti-aliased (default)"]
        print(f"{name:34}{value:9.3f}{value / fastest:16.2f}{ratio:9.2f}")
    if monai is None:
        print("MONAI is not installed: `pip install monai --no-deps` adds the comparison.")
        return
    theirs = monai(str(path))
    ours = plain(str(path), return_tensors="pt")["pixel_values"]
    body = (theirs > 0.25) & (theirs < 1)  # above -500 HU, not clipped
    difference = 2000 * (ours - theirs)[body].abs().numpy()
    median, p99 = np.percentile(difference, (50, 99))
    print(f"agreement in the body, plain trilinear: median {median:.3f} HU, p99 {p99:.3f} HU (aim 2 and 20)")


def median_seconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Time the calls in turn, round after round, so that a busy machine slows all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(RUNS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def fast_readers(path: Path) -> dict[str, Callable[[], object]]:
    """Return bare reads of the file, per fast gzip library at hand."""
    readers: dict[str, Callable[[], object]] = {}
    try:
        from isal import isal_zlib

        readers["read + decompress, isal"] = lambda: isal_zlib.decompress(path.read_bytes(), 31)
    except ImportError:
        pass
    try:
        from zlib_ng import zlib_ng

        readers["read + decompress, zlib-ng"] = lambda: zlib_ng.decompress(path.read_bytes(), 31)
    except ImportError:
        pass
    return readers


def monai_chain(processor: Mu2ImageProcessor, path: Path) -> Callable[[str], torch.Tensor] | None:
    """Return load, orientation, resampling on our grid, window and frames in MONAI, or `None` without it."""
    warnings.filterwarnings("ignore", module="monai")
    try:
        from monai.transforms import (
            Compose,
            EnsureChannelFirst,
            LoadImage,
            Orientation,
            ScaleIntensityRange,
            SpatialResample,
        )
    except ImportError:
        return None
    volume = processor.load(path)
    grid = processor.grid(volume)
    affine = torch.as_tensor(grid.affine(volume))
    prepare = Compose([LoadImage(image_only=True), EnsureChannelFirst(), Orientation("RAS")])
    # What Spacing calls inside; given our affine and shape it also crops, so it samples no voxel in vain.
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float32)
    window = ScaleIntensityRange(-1000, 1000, 0, 1, clip=True)
    size = processor.num_slices

    def chain(name: str) -> torch.Tensor:
        image = window(resample(prepare(name), dst_affine=affine, spatial_size=grid.shape[::-1]))
        slices = image.as_tensor()[0].permute(2, 1, 0)
        frames = -(-len(slices) // size)
        pixels = slices.new_zeros(frames * size, *slices.shape[1:])
        pixels[: len(slices)] = slices
        return pixels.view(1, frames, size, *slices.shape[1:])

    return chain


def find_or_write(folder: Path) -> Path:
    """Return the real volume where it is at hand, else write a noisy synthetic one of the same size."""
    data = shared_data()
    if data is not None and (data / "ct" / "chest_dxA0001_a_2.nii.gz").exists():
        return data / "ct" / "chest_dxA0001_a_2.nii.gz"
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    slice_hu = np.full((512, 512), -1000.0)
    slice_hu[(x / 0.8) ** 2 + (y / 0.55) ** 2 < 1] = 40
    for side in (-0.35, 0.35):
        slice_hu[((x - side) / 0.28) ** 2 + (y / 0.42) ** 2 < 1] = -850
    noisy = slice_hu + 20 * rng.standard_normal((64, 512, 512), np.float32)
    path = folder / "synthetic.nii.gz"
    affine = np.diag([-0.84, -0.84, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(noisy.round().astype(np.int16).transpose(2, 1, 0), affine), path)
    return path


if __name__ == "__main__":
    main()
