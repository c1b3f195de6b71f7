"""From volumes to `pixel_values` and their mask."""

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.volume_mu2 import Volume, VolumeError, load_volume
from tests.model.analytic_body import LANDMARKS, as_nifti, sample_body

SMALL = {
    "spacing": (5, 8, 8),
    "size": {"height": 32, "width": 40},
    "num_slices": 8,
    "patch_depth": 4,
    "max_frames": 8,
}


@pytest.fixture
def processor() -> Mu2ImageProcessor:
    return Mu2ImageProcessor(**SMALL)


@pytest.fixture(scope="module")
def body() -> Volume:
    return load_volume(as_nifti(*sample_body((8.0, 8.0, 5.0))))


def slices(count: int, spacing: float = 5.0) -> Volume:
    """Stack `count` slices of tissue in air."""
    array = np.full((count, 32, 40), -1000, np.int16)
    array[:, 4:28, 4:36] = 40
    return load_volume(array, spacing=(spacing, 8, 8))


def test_shapes_types_and_names_are_the_contract(processor, body):
    features = processor(body, return_tensors="pt")
    assert list(features) == processor.model_input_names
    assert (
        features["pixel_values"].shape == (1, 4, 8, 32, 40)
        and features["pixel_values"].dtype == torch.float32
    )
    assert (
        features["pixel_attention_mask"].shape == (1, 4, 2)
        and features["pixel_attention_mask"].dtype == torch.bool
    )
    assert isinstance(processor(body)["pixel_values"], np.ndarray)


@pytest.mark.parametrize(
    ("count", "frames", "slabs"), [(1, 1, 1), (8, 1, 2), (9, 2, 3), (40, 5, 10), (1000, 8, 16)]
)
def test_any_number_of_slices_fills_as_many_frames_as_it_needs(processor, count, frames, slabs):
    features = processor(slices(count), return_tensors="pt")
    assert features["pixel_values"].shape[1] == frames
    mask = features["pixel_attention_mask"].flatten()
    assert mask.sum() == slabs and mask[:slabs].all()  # what is padded comes last
    real = features["pixel_values"][0].flatten(0, 1)
    assert (real[: min(count, 64), 16, 20] > 0.5).all()
    assert (real[min(count, 64) :] == 0).all()


def test_a_long_volume_is_spread_over_the_frames_it_may_use(processor):
    array = np.full((200, 32, 40), 40, np.int16)
    array[100:] = -950
    pixels = processor(load_volume(array, spacing=(5, 8, 8)))["pixel_values"][0].reshape(64, 32, 40)
    assert (pixels[:31] > 0.5).all() and (pixels[33:] < 0.1).all()


def test_a_batch_of_unequal_volumes_is_padded_with_masked_zeros(processor):
    features = processor([slices(40), slices(10), slices(1)], return_tensors="pt")
    assert features["pixel_values"].shape[:2] == (3, 5)
    assert features["pixel_attention_mask"].sum((1, 2)).tolist() == [10, 3, 1]
    alone = processor(slices(10), return_tensors="pt")
    torch.testing.assert_close(features["pixel_values"][1, :2], alone["pixel_values"][0])
    assert (features["pixel_values"][1, 2:] == 0).all()


def test_lists_are_flattened_in_order_and_one_object_is_processed_once(processor, monkeypatch):
    calls = []
    process = Mu2ImageProcessor._process
    monkeypatch.setattr(Mu2ImageProcessor, "_process", lambda self, *a: calls.append(1) or process(self, *a))
    first, second = slices(8), slices(16)
    rows = [[first], [second, first]] * 2  # as a DPO collator sends them
    pixels = processor(rows, return_tensors="pt")["pixel_values"]
    assert len(pixels) == 6 and len(calls) == 2
    torch.testing.assert_close(pixels[0], pixels[2])
    torch.testing.assert_close(pixels[:3], pixels[3:])


def test_left_and_right_keep_their_columns(processor, body):
    hu, affine = processor.resample(body)
    for name in ("right", "left"):
        i, j, k = np.round(np.linalg.inv(affine) @ (*LANDMARKS[name], 1))[:3].astype(int)
        assert hu[k, j, i] > 400, name
        assert hu[k, j, hu.shape[2] - 1 - i] < 150, f"mirror of {name}"


def test_each_window_is_a_channel_of_consecutive_slices(processor, body):
    windows = [(-1000, 1000), (-160, 240), (-1000, 0)]
    hu, _ = processor.resample(body)
    pixels = processor(body, windows=windows)["pixel_values"][0]  # (T, C * K, H, W)
    frames = hu.reshape(4, 8, 32, 40)
    for channel, (low, high) in enumerate(windows):
        expected = np.clip((frames - low) / (high - low), 0, 1)
        np.testing.assert_allclose(pixels[:, 8 * channel : 8 * (channel + 1)], expected, atol=1e-6)


def test_percentile_and_minmax_follow_the_volume(processor, body):
    hu, _ = processor.resample(body)
    lowest, highest = np.percentile(hu, (0.5, 99.5))
    pixels = processor(body, intensity="percentile")["pixel_values"].reshape(hu.shape)
    np.testing.assert_allclose(pixels, np.clip((hu - lowest) / (highest - lowest), 0, 1), atol=1e-5)
    pixels = processor(body, intensity="minmax")["pixel_values"]
    assert pixels.min() == 0 and pixels.max() == pytest.approx(1)


def test_augmentation_depends_on_seed_epoch_and_study_alone(processor, body):
    def run(**draw):
        return processor(body, augment=True, **draw)["pixel_values"]

    base = run(seed=1, epoch=2, study_ids=["a"])
    np.testing.assert_array_equal(base, run(seed=1, epoch=2, study_ids=["a"]))
    for other in ({"seed": 2}, {"epoch": 3}, {"study_ids": ["b"]}):
        assert np.abs(base - run(**{"seed": 1, "epoch": 2, "study_ids": ["a"], **other})).max() > 0
    assert np.abs(base - processor(body)["pixel_values"]).max() > 0


def test_a_volume_is_augmented_anew_for_each_study_id(processor, body):
    pixels = processor([body] * 3, augment=True, study_ids=["a", "b", "a"])["pixel_values"]
    np.testing.assert_array_equal(pixels[0], pixels[2])
    assert np.abs(pixels[0] - pixels[1]).max() > 0


def test_air_that_turns_in_is_as_noisy_as_the_rest_and_never_below_air(processor):
    """Of no HU shift below zero nothing is seen: the window ends at the clamp."""
    air = load_volume(np.full((8, 32, 40), -1024, np.int16), spacing=(5, 8, 8), check_hu=False)
    pixels = processor(air, augment=True, seed=2, windows=[(-1100, -900)])["pixel_values"]
    assert pixels.min() == pytest.approx(76 / 200, abs=1e-5)
    assert pixels.std() > 0


def test_augmentation_is_small_and_never_a_flip(processor):
    array = np.full((16, 32, 40), -1000, np.int16)
    array[:8, 18:28, 22:36] = 40  # in one corner: no symmetry to hide behind
    corner = load_volume(array, spacing=(5, 8, 8))
    plain = processor(corner)["pixel_values"].reshape(array.shape)
    for seed in range(20):
        features = processor(corner, augment=True, seed=seed, return_provenance=True)
        pixels = features["pixel_values"].reshape(array.shape)
        assert np.corrcoef(pixels.ravel(), plain.ravel())[0, 1] > 0.8
        for axis in range(3):
            assert np.corrcoef(pixels.ravel(), np.flip(plain, axis).ravel())[0, 1] < 0.5
        assert abs(features["provenance"][0]["augmentation"]["rotation_degrees"]) <= 7


def test_augmentation_turns_in_millimetres_not_in_voxels():
    array = np.full((8, 64, 40), -1000, np.int16)
    array[:, 44:52, 27:31] = 40  # 32 x 32 mm, away from the centre
    volume = load_volume(array, spacing=(5, 4, 8))
    processor = Mu2ImageProcessor(**{**SMALL, "spacing": (5, 4, 8), "size": {"height": 64, "width": 40}})
    for seed in range(5):
        features = processor(volume, augment=True, seed=seed, return_provenance=True)
        weights = np.maximum(features["pixel_values"][0, 0].mean(0) - 0.1, 0)
        y, x = (
            (w * weights).sum() / weights.sum()
            for w in (np.mgrid[:64, :40] - np.array([31.5, 19.5])[:, None, None])
        )
        degrees = np.degrees(np.arctan2(y * 4, x * 8) - np.arctan2(16 * 4, 9 * 8))
        turned = features["provenance"][0]["augmentation"]["rotation_degrees"]
        assert degrees == pytest.approx(-turned, abs=0.5)
        assert np.hypot(y * 4, x * 8) == pytest.approx(np.hypot(16 * 4, 9 * 8), rel=0.02)


def test_augmentation_leaves_padding_untouched(processor):
    features = processor(slices(9), augment=True, seed=3)
    assert (features["pixel_values"][0, 1, 1:] == 0).all()


def test_the_caller_s_voxels_are_never_changed(processor):
    for volume in (slices(5), Volume(slices(5).array.astype(np.float32), np.eye(4), (5.0, 8.0, 8.0))):
        before = volume.array.copy()
        processor([volume, volume], augment=True, windows=[(-1000, 0), (0, 400)])
        np.testing.assert_array_equal(volume.array, before)


def test_a_call_may_override_fields_and_unknown_ones_are_named(processor, body):
    assert processor(body, max_frames=2)["pixel_values"].shape[1] == 2
    assert processor.max_frames == 8
    with pytest.raises(TypeError, match="Unknown option max_frame"):
        processor(body, max_frame=2)


def test_bare_arrays_need_a_spacing_and_take_the_processor_s(processor):
    array = np.ascontiguousarray(slices(8).array)
    with pytest.raises(VolumeError, match="spacing"):
        processor(array)
    given = processor([array, torch.from_numpy(array)], array_spacing=(5, 8, 8))["pixel_values"]
    np.testing.assert_array_equal(given[0], given[1])
    np.testing.assert_array_equal(given[0], processor(slices(8))["pixel_values"][0])


def test_probes_with_pictures_work(processor):
    features = processor([Image.new("RGB", (30, 20)), Image.new("L", (2000, 1500), 255)], return_tensors="pt")
    assert features["pixel_values"].shape == (2, 1, 8, 32, 40)


def test_an_empty_list_and_wrong_ids_are_refused(processor, body):
    with pytest.raises(ValueError, match="holds no volume"):
        processor([])
    with pytest.raises(ValueError, match="one study per volume"):
        processor(body, augment=True, study_ids=["a", "b"])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"num_slices": 30}, "multiple of `patch_depth`"),
        ({"windows": [(100, -100)]}, "low < high"),
        ({"windows": []}, "low < high"),
        ({"spacing": (1, 1, 0)}, "three positive numbers"),
        ({"intensity": "zscore"}, "`intensity`"),
        ({"mode": "mine"}, "`mode`"),
        ({"intensity": "minmax", "windows": [(0, 1), (1, 2)]}, "one channel"),
        ({"mode": "official", "size": {"height": 32, "width": 40}}, "square"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, message):
    with pytest.raises(ValueError, match=message):
        Mu2ImageProcessor(**field)


def test_save_load_save_is_identical(tmp_path, processor, body):
    processor.save_pretrained(tmp_path)
    again = Mu2ImageProcessor.from_pretrained(tmp_path)
    assert again.to_json_string() == processor.to_json_string()
    np.testing.assert_array_equal(again(body)["pixel_values"], processor(body)["pixel_values"])
    changed = Mu2ImageProcessor.from_pretrained(tmp_path, windows=[(-160, 240)], array_spacing=(2, 1, 1))
    changed.save_pretrained(tmp_path)
    assert Mu2ImageProcessor.from_pretrained(tmp_path).to_json_string() == changed.to_json_string()


def test_provenance_holds_the_grid_so_that_a_map_can_be_written_on_it(processor, body):
    provenance = processor(body, return_provenance=True)["provenance"][0]
    hu, affine = processor.resample(body)
    assert provenance["grid"]["shape"] == list(hu.shape)
    np.testing.assert_allclose(provenance["grid"]["affine"], affine)
    assert provenance["body_region"] == "chest"
    # Load -> process -> save -> load: what was computed on the grid lies where the anatomy lies.
    saved = load_volume(nib.Nifti1Image(hu.transpose(2, 1, 0), np.array(provenance["grid"]["affine"])))
    np.testing.assert_allclose(saved.affine, affine, atol=1e-4)
    again, _ = Mu2ImageProcessor(**SMALL).resample(saved)
    np.testing.assert_allclose(again, hu, atol=1e-3)


def test_official_frames_follow_the_published_steps_along_the_disk_axes():
    processor = Mu2ImageProcessor(
        mode="official", size={"height": 32, "width": 32}, num_slices=8, max_frames=2, patch_depth=4
    )
    voxels, affine = sample_body((8.0, 8.0, 5.0))
    for codes in ("RAS", "LPS", "SAR"):
        image = as_nifti(voxels, affine, codes=codes)
        stored = np.asarray(image.dataobj).astype(np.float64)
        low, high = np.percentile(stored, (0.5, 99.5))
        scaled = np.clip((stored - low) / (high - low), 0, 1)
        features = processor(image, return_tensors="pt", return_provenance=True)
        pixels = features["pixel_values"][0].reshape(16, 32, 32)
        assert features["pixel_attention_mask"].all()  # the published model knows no padding
        assert pixels.min() == 0 and pixels.max() <= 1
        box = [np.flatnonzero((scaled > 0).any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
        rows, columns, depth = (end - start + 1 for start, end in box)
        ratio = min(32 / rows, 32 / columns)
        filled = torch.nonzero(pixels)
        # Zero padding lies right, below and at the end; the height axis is the first axis on disk.
        assert filled[:, 1].max() < int(rows * ratio) and filled[:, 2].max() < int(columns * ratio)
        assert filled[:, 0].max() < min(16, depth)
        # The affine leads from the stacked frames to the stored voxels: the brightest spot is at the same place.
        z, y, x = np.unravel_index(int(pixels.argmax()), pixels.shape)
        world = np.array(features["provenance"][0]["grid"]["affine"]) @ (x, y, z, 1)
        i, j, k = np.round(np.linalg.inv(image.affine) @ world)[:3].astype(int)
        around = tuple(slice(max(0, n - 2), n + 3) for n in (i, j, k))
        assert scaled[around].max() > 0.9


def test_official_mode_sees_scanner_padding_as_the_published_code_does():
    voxels, affine = sample_body((8.0, 8.0, 5.0))
    voxels[:4] = -3024
    size = {"height": 32, "width": 32}
    official = Mu2ImageProcessor(mode="official", size=size, num_slices=8, max_frames=4)
    pixels = official(as_nifti(voxels, affine))["pixel_values"]
    tissue = pixels[pixels > 0.9]
    assert len(tissue) > 1000  # 40 HU next to -3024: soft tissue is squeezed against 1


def test_hu_is_not_defined_in_official_mode(body):
    with pytest.raises(ValueError, match="default mode"):
        Mu2ImageProcessor(mode="official").resample(body)
