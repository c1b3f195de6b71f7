"""Prepared volumes give the model what the volumes themselves give it, and are refused where they would not."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from hf_mu2.model.volume_mu2 import VolumeError, load_volume, volume_reference
from tests.data.volume_rows import prepare_here, small_processor, write_rows
from tests.tiny import make_tiny_checkpoint

BOUND_HU = 0.5
ROUNDING = 1e-6  # of float32 pixels


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> list[str]:
    return [row["images"][0] for row in write_rows(tmp_path_factory.mktemp("volumes"), 3)]


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory) -> list[str]:
    rows = [{"study_id": str(i), "images": [path]} for i, path in enumerate(raw)]
    return prepare_here(rows, tmp_path_factory.mktemp("prepared"), small_processor())


@pytest.mark.parametrize("windows", [((-1000, 1000),), ((-1000.5, 400), (-160, 240))])
@pytest.mark.parametrize("augment", [False, True])
def test_pixels_differ_from_those_of_the_volumes_by_the_rounding_alone(raw, prepared, windows, augment):
    """Windows and augmentation come after the store, and leave its error of 0.5 HU what it is."""
    processor = small_processor(windows=windows)
    options = {
        "augment": augment,
        "seed": 3,
        "epoch": 1,
        "study_ids": ["a", "b", "c"],
        "return_tensors": "np",
    }
    expected, got = processor(raw, **options), processor(prepared, **options)
    np.testing.assert_array_equal(got["pixel_attention_mask"], expected["pixel_attention_mask"])
    assert not got["pixel_attention_mask"].all()  # the last frame is padded
    narrowest = min(high - low for low, high in windows)
    assert np.abs(got["pixel_values"] - expected["pixel_values"]).max() <= BOUND_HU / narrowest + ROUNDING
    assert got["pixel_values"].dtype == np.float32 and got["pixel_values"].any()


@pytest.mark.parametrize("intensity", ["percentile", "minmax"])
def test_intensities_of_the_volume_s_own_range_keep_the_bound_thrice(raw, prepared, intensity):
    """Both edges of the window may move by the rounding as well."""
    processor = small_processor(intensity=intensity)
    expected, got = (processor(sources, return_tensors="np")["pixel_values"] for sources in (raw, prepared))
    assert np.abs(got - expected).max() <= 3 * BOUND_HU / 900


def test_frames_of_another_length_read_the_same_store(raw, prepared):
    processor = small_processor(num_slices=16, max_frames=2, patch_depth=8)
    expected, got = processor(raw, return_tensors="np"), processor(prepared, return_tensors="np")
    np.testing.assert_array_equal(got["pixel_attention_mask"], expected["pixel_attention_mask"])
    np.testing.assert_allclose(got["pixel_values"], expected["pixel_values"], atol=BOUND_HU / 2000 + ROUNDING)


def test_a_prepared_volume_is_a_volume_on_the_grid(raw, prepared):
    processor = small_processor()
    expected, affine = processor.resample(raw[0])
    volume = load_volume(prepared[0])
    assert volume.array.dtype == np.int16 and not volume.array.flags.writeable
    np.testing.assert_allclose(volume.array, expected, atol=BOUND_HU + 1e-3)
    np.testing.assert_allclose(volume.affine, affine)
    assert volume.spacing == pytest.approx((3.2, 3.0, 3.0))
    same = load_volume({"bytes": None, "path": prepared[0]})
    np.testing.assert_array_equal(same.array, volume.array)
    np.testing.assert_array_equal(processor.resample(volume)[0], volume.array)


def test_a_deep_volume_is_stored_as_it_is_squeezed(tmp_path, raw):
    processor = small_processor(spacing=(1.0, 3.0, 3.0), max_frames=1)
    (reference,) = prepare_here([{"images": [raw[0]]}], tmp_path, processor)
    expected, got = (processor(source, return_tensors="np")["pixel_values"] for source in (raw[0], reference))
    assert got.shape == (1, 1, 8, 32, 32)
    np.testing.assert_allclose(got, expected, atol=BOUND_HU / 2000 + ROUNDING)


def test_the_shard_is_a_safetensors_file(prepared):
    reference = json.loads(prepared[1])
    with safe_open(reference["prepared"], "np") as shard:
        assert len(shard.keys()) == 3
        np.testing.assert_array_equal(shard.get_tensor(reference["volume"]), load_volume(prepared[1]).array)
        assert json.loads(shard.metadata()["preparation"]) == small_processor().preparation


def test_voxels_are_mapped_not_read(prepared):
    volume = load_volume(prepared[0])
    base = volume.array
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)


@pytest.mark.parametrize(
    "fields",
    [
        {"spacing": (3.2, 3.0, 2.9)},
        {"size": {"height": 32, "width": 40}},
        {"antialias": False},
        {"max_frames": 5},
    ],
)
def test_a_store_of_other_settings_is_refused_by_name(prepared, fields):
    name = {"max_frames": "max_slices"}.get(*fields) if "max_frames" in fields else next(iter(fields))
    with pytest.raises(VolumeError, match=f"made with {name} "):
        small_processor(**fields)(prepared[0])
    with pytest.raises(VolumeError, match="this processor's settings"):
        small_processor(**fields)(load_volume(prepared[0]))


def test_the_official_mode_takes_no_store_and_makes_none(raw, prepared):
    official = small_processor(mode="official")
    with pytest.raises(VolumeError, match="as they were scanned"):
        official(prepared[0])
    with pytest.raises(ValueError, match="in default mode"):
        official.prepare(raw[0])


def test_a_stale_reference_is_refused(tmp_path, raw):
    first = prepare_here([{"images": [raw[0]]}], tmp_path, small_processor())
    prepare_here([{"images": [raw[0]]}], tmp_path, small_processor(antialias=False))
    with pytest.raises(VolumeError, match="was replaced by another"):
        load_volume(first[0])
    prepare_here([{"images": [raw[1]]}], tmp_path, small_processor())
    with pytest.raises(VolumeError, match="was replaced by another"):
        load_volume(first[0])


@pytest.mark.parametrize("damage", ["cut", "head", "foreign", "empty", "gone"])
def test_a_half_written_or_foreign_shard_is_refused(tmp_path, prepared, damage):
    reference = json.loads(prepared[0])
    shard = tmp_path / "00000.safetensors"
    shutil.copy(reference["prepared"], shard)
    content = shard.read_bytes()
    if damage == "cut":
        os.truncate(shard, len(content) - 2)
    elif damage == "head":
        shard.write_bytes(content[:200])
    elif damage == "foreign":
        shard.write_bytes(b"\x02" + b"\0" * 7 + b"{}")
    elif damage == "empty":
        shard.write_bytes(b"")
    else:
        shard.unlink()
    with pytest.raises(VolumeError, match=r"damaged|must be whole|must exist"):
        load_volume(json.dumps({**reference, "prepared": str(shard)}))


def test_a_prepared_volume_takes_no_geometry(prepared):
    with pytest.raises(VolumeError, match="on its grid already"):
        load_volume(prepared[0], spacing=(1, 1, 1))


def test_what_a_reference_corrects_is_stored_corrected(tmp_path, raw):
    text = volume_reference(raw[0], spacing=(6.4, 2.0, 2.0))
    processor = small_processor()
    (reference,) = prepare_here([{"images": [text]}], tmp_path, processor)
    assert len(load_volume(reference).array) == 24
    expected, got = (processor(source, return_tensors="np")["pixel_values"] for source in (text, reference))
    np.testing.assert_allclose(got, expected, atol=BOUND_HU / 2000 + ROUNDING)


def test_a_checkpoint_reads_prepared_volumes_without_our_package_and_without_nibabel(tmp_path, prepared):
    """What `trl --trust_remote_code` does on a machine that has the prepared folder and the checkpoint."""
    checkpoint = make_tiny_checkpoint(tmp_path / "checkpoint")
    code = textwrap.dedent(
        """
        import sys
        sys.modules["nibabel"] = sys.modules["hf_mu2"] = sys.modules["datasets"] = None
        from transformers import AutoProcessor
        processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
        fields = dict(spacing=(3.2, 3.0, 3.0), size={"height": 32, "width": 32}, num_slices=8, max_frames=4)
        images = type(processor.image_processor)(**fields)
        print(images([sys.argv[2]], return_tensors="pt")["pixel_values"].double().sum().item())
        """
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint), prepared[0]],
        capture_output=True, text=True, env=environment, cwd=Path(tmp_path),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    expected = small_processor()([prepared[0]], return_tensors="pt")["pixel_values"].double().sum().item()
    assert float(run.stdout) == pytest.approx(expected)


class _Batches(torch.utils.data.Dataset):
    """A batch per index, made in the worker."""

    def __init__(self, sources: list[str]):
        self.sources = sources

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, bool]:
        pixels = small_processor()(self.sources, return_tensors="pt")["pixel_values"]
        return pixels, pixels.is_shared()


def test_a_worker_writes_pixels_where_the_training_process_reads_them(prepared):
    """No copy between the two: at 40 MB a volume it would cost more than reading the store."""
    ((pixels, is_shared),) = torch.utils.data.DataLoader(_Batches(prepared), batch_size=None, num_workers=1)
    assert is_shared
    torch.testing.assert_close(pixels, small_processor()(prepared, return_tensors="pt")["pixel_values"])


def test_volumes_of_different_depth_share_a_batch(tmp_path, raw):
    """Shorter ones end in zeros, whatever was in the memory before."""
    deep = volume_reference(raw[1], spacing=(6.4, 2.0, 2.0))
    processor = small_processor()
    references = prepare_here([{"images": [raw[0], deep]}], tmp_path, processor)
    expected, got = (
        processor([*sources, sources[0]], return_tensors="pt") for sources in ([raw[0], deep], references)
    )
    assert expected["pixel_values"].shape[:2] == (3, 3)
    torch.testing.assert_close(
        got["pixel_values"], expected["pixel_values"], atol=BOUND_HU / 2000 + ROUNDING, rtol=0
    )
    torch.testing.assert_close(got["pixel_attention_mask"], expected["pixel_attention_mask"])
    assert not got["pixel_values"][0, 2].any() and not got["pixel_values"][0, 1, 3:].any()
