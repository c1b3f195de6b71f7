"""CT as slices for Qwen2.5-VL and Qwen3-VL: voxels land where the model looks, time follows z, and it trains."""

import json
import math
import os
import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from hf_mu2.data.phantom.ct_rate_tree import write_ct_rate_tree
from hf_mu2.data.prepare import prepare
from hf_mu2.model.volume_mu2 import VolumeError, load_volume
from hf_mu2.training.slices_budget import check_budget, describe_budget, measure_budget
from hf_mu2.training.slices_groups import (
    choose_groups,
    frame_size,
    patchify,
    resize_frames,
    seconds_per_step,
)
from hf_mu2.training.slices_image import SliceImageProcessor, slices_around
from hf_mu2.training.slices_start import add_slices, open_slices
from hf_mu2.training.slices_video import SliceVideoProcessor, slice_processor
from tests.tiny import tiny_nifti, tiny_volume
from tests.tiny_qwen import load_tiny_qwen, make_tiny_qwen
from tests.training.rows import turns, write_sft_folder

pytest.importorskip("trl")
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
# Frames as small as a patch of 28 pixels allows, every voxel of 2 mm one pixel.
PLAIN = {"spacing": (2.0, 2.0, 2.0), "min_pixels": 28**2, "max_pixels": 10**6}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("qwen")
    return {family: make_tiny_qwen(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def qwen(checkpoints):
    return load_tiny_qwen(checkpoints["qwen2_5_vl"])


def ask(processor, *volumes_of_rows):
    """Ask for the report of each row's volumes, as inference does."""
    return processor.apply_chat_template(
        [processor.build_messages(list(volumes)) for volumes in volumes_of_rows],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def frames_of(processor: SliceImageProcessor, volume) -> np.ndarray:
    """Undo patches and normalisation by hand: frames (n, 3, height, width) in [0, 1], repeated last slice included."""
    [video] = processor.videos(volume)
    t, h, w = video.layout.grid
    size, merge = processor.patch_size, processor.merge_size
    frames = np.empty((2 * t, 3, h * size, w * size), np.float32)
    rows = iter(video.patches.numpy())
    for step in range(t):
        for top in range(0, h, merge):
            for left in range(0, w, merge):
                for y in range(top, top + merge):
                    for x in range(left, left + merge):
                        patch = next(rows).reshape(3, 2, size, size)  # channels, then the two slices
                        place = np.s_[:, y * size : (y + 1) * size, x * size : (x + 1) * size]
                        for k in range(2):
                            frames[2 * step + k][place] = patch[:, k]
    mean, std = (np.array(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return frames * std + mean


# Which slices


def test_even_coverage_takes_the_middle_of_equal_slabs():
    [group] = choose_groups(200, 10, "even")
    assert group.slices == tuple(range(10, 200, 20)) and group.distance == 20
    [group] = choose_groups(37, 10, "even")
    slabs = [index * 10 // 37 for index in group.slices]
    assert slabs == list(range(10)) and np.ptp(np.diff(group.slices)) <= 1
    assert choose_groups(4, 10, "even")[0].slices == (0, 1, 2, 3)


def test_stride_shows_the_whole_volume_in_groups():
    groups = choose_groups(47, 10, "stride", 2)
    assert [index for group in groups for index in group.slices] == list(range(0, 47, 2))
    assert [len(group.slices) for group in groups] == [10, 10, 4]


def test_groups_around_slices_hold_them_in_their_middle_and_stay_inside():
    first, middle, last = choose_groups(100, 9, "even", 3, around=[98, 50, 1])
    assert middle.slices == tuple(range(38, 63, 3))
    assert first.slices[0] == 0 and last.slices[-1] == 99 and len(last.slices) == 9
    assert choose_groups(5, 9, "even", 2, around=[2])[0].slices == (0, 2, 4)


@pytest.mark.parametrize("height", [28, 40, 467, 2000])
@pytest.mark.parametrize("width", [30, 467, 5600])
def test_frames_get_the_size_of_the_stock_processors(height, width):
    bounds = {"min_pixels": 56 * 56, "max_pixels": 768 * 28 * 28}
    assert frame_size(height, width, 28, **bounds) == smart_resize(height, width, 28, **bounds)


# Time


@pytest.mark.parametrize("count", [1, 2, 7, 10, 23])
@pytest.mark.parametrize("distance_mm", [0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0])
def test_the_models_own_positions_are_proportional_to_mm(qwen, distance_mm, count):
    """By `get_rope_index`: whatever rounds the seconds on the way, as older releases and bfloat16 do."""
    model, processor = qwen
    steps = -(-count // 2)
    token = processor.video_token_id
    ids = torch.tensor([[1, *[token] * (steps * 4), 2]])
    seconds = torch.tensor([seconds_per_step(distance_mm, SliceImageProcessor.seconds_per_mm)])
    expected = model.config.vision_config.tokens_per_second * 2.0 * (2 * distance_mm) * np.arange(steps)
    for rounded in (seconds, seconds.to(torch.bfloat16), seconds.int()):
        positions, _ = model.model.get_rope_index(
            ids,
            (ids == token).int() * 2,
            video_grid_thw=torch.tensor([[steps, 4, 4]]),
            second_per_grid_ts=rounded,
        )
        z = positions[0, 0, 1:-1].reshape(steps, 4)[:, 0].numpy()
        np.testing.assert_array_equal(z - z[0], expected)
        assert (np.diff(z) > 0).all()


def test_slices_far_closer_than_a_second_still_differ_in_time():
    assert seconds_per_step(0.01, 2.0) == 1.0
    assert seconds_per_step(0.7, 2.0) == 3.0 and seconds_per_step(31.0, 2.0) == 124.0


def test_time_follows_the_spacing_of_the_volume_that_is_shown():
    image_processor = SliceImageProcessor(coverage="stride", num_slices=100, **PLAIN)
    [thin] = image_processor.changed(spacing=(1.5, 2.0, 2.0)).plan(tiny_volume())
    [thick] = image_processor.changed(spacing=(3.0, 2.0, 2.0)).plan(tiny_volume())
    assert (thin.seconds, thick.seconds) == (6.0, 12.0)
    assert thin.grid[0] == 2 * thick.grid[0]
    [even] = SliceImageProcessor(num_slices=4, **PLAIN).plan(
        tiny_volume()
    )  # 36 mm in four slabs, two per step
    assert even.seconds == 2.0 * 18


def test_qwen3_reads_the_time_its_own_processor_would_write(checkpoints):
    _, processor = load_tiny_qwen(checkpoints["qwen3_vl"])
    image_processor = processor.image_processor.changed(num_slices=5, **PLAIN | {"patch_size": 16})
    layouts = image_processor.plan(tiny_volume())
    stock = SimpleNamespace(
        video_processor=image_processor,
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_token="<|video_pad|>",
        _calculate_timestamps=lambda *args: Qwen3VLProcessor._calculate_timestamps(None, *args),
    )
    metadata = SimpleNamespace(
        fps=1 / (2.0 * image_processor.seconds_per_mm), frames_indices=list(layouts[0].group.slices)
    )
    video = {"video_grid_thw": torch.tensor([layouts[0].grid]), "video_metadata": [metadata]}
    assert processor.placeholders(layouts) == Qwen3VLProcessor.replace_video_token(stock, video, 0)
    batch = ask(processor, [tiny_volume()])
    assert "second_per_grid_ts" not in batch
    steps = int(batch["video_grid_thw"][0, 0])
    assert processor.decode(batch["input_ids"][0]).count(" seconds><|vision_start|>") == steps


# Where voxels go


def volume_with_block(z: int, y: int, x: int):
    """36 x 80 x 84 mm of water in voxels of 2 mm, with a block of 2 x 4 x 4 voxels of 1000 HU from (z, y, x) on."""
    array = np.zeros((18, 40, 42), np.int16)
    array[z : z + 2, y : y + 4, x : x + 4] = 1000
    return load_volume(array, spacing=(2.0, 2.0, 2.0), check_hu=False)


def test_left_stays_left_and_front_is_up_whatever_the_stored_order():
    image_processor = SliceImageProcessor(num_slices=18, **PLAIN)
    volume = volume_with_block(4, 30, 6)  # RAS: in front, on the patient's left
    frames = frames_of(image_processor, volume)
    slices, _, rows, columns = np.nonzero(frames > 0.9)
    assert set(slices) == {4, 5}
    height, width = frames.shape[-2:]
    assert rows.max() < height / 2 and columns.min() > width / 2  # as on a viewer

    stored = nib.Nifti1Image(volume.array.transpose(2, 1, 0)[::-1, ::-1], np.diag([-2.0, -2.0, 2.0, 1.0]))
    again = load_volume(stored, check_hu=False)
    np.testing.assert_allclose(frames_of(image_processor, again), frames, atol=1e-5)


def test_the_models_patch_embedding_sees_each_voxel_in_its_place(qwen):
    model, processor = qwen
    image_processor = processor.image_processor.changed(num_slices=18, **PLAIN)
    volume = volume_with_block(2, 20, 20)
    [video] = image_processor.videos(volume)
    embed = model.model.visual.patch_embed
    weight = torch.zeros_like(embed.proj.weight)
    # The mean green of the first and of the second slice of a step.
    weight[0, 1, 0] = weight[1, 1, 1] = 1.0 / image_processor.patch_size**2
    before = embed.proj.weight.data.clone()
    try:
        embed.proj.weight.data.copy_(weight)
        with torch.no_grad():
            seen = embed(video.patches)[:, :2]
    finally:
        embed.proj.weight.data.copy_(before)
    t, h, w = video.layout.grid
    seen = seen.reshape(t, h // 2, w // 2, 2, 2, 2).permute(0, 5, 1, 3, 2, 4).reshape(2 * t, h, w)
    frames = frames_of(image_processor, volume)
    size = image_processor.patch_size
    means = frames[:, 1].reshape(2 * t, h, size, w, size).mean((2, 4))
    expected = (means - image_processor.image_mean[1]) / image_processor.image_std[1]
    np.testing.assert_allclose(seen.numpy(), expected, atol=1e-4)
    assert np.ptp(expected[2]) > 0.1 and np.ptp(expected[0]) < 1e-4


def waves(count: int, height: int, width: int) -> np.ndarray:
    """Smooth pictures (count, height, width, 3) in 8 bits, away from 0 and 255, which 8-bit resizing clips."""
    t, y, x, colour = np.meshgrid(*map(np.arange, (count, height, width, 3)), indexing="ij")
    return (100 * np.sin(y / 4 + colour + t) * np.cos(x / 5) + 128).astype(np.uint8)


# Resizing rounds 8-bit pictures after each of its two passes: two grey values, over a standard deviation of .26.
ROUNDING = 0.035


@pytest.mark.parametrize("size", [(84, 56), (100, 70)])
def test_a_slice_shown_twice_is_what_the_stock_image_processor_makes_of_it(size):
    y, x, colour = np.meshgrid(*map(np.arange, (*size, 3)), indexing="ij")
    waves = (
        100 * np.sin(y / 4 + colour) * np.cos(x / 5) + 128
    )  # away from 0 and 255, where Pillow clips on the way
    picture = waves.astype(np.uint8)
    stock = Qwen2VLImageProcessorPil(size={"shortest_edge": 28**2, "longest_edge": 10**6})
    expected = stock(picture, return_tensors="pt")
    frames = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    frames = resize_frames(frames, frame_size(*size, 28, 28**2, 10**6))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (stock.image_mean, stock.image_std))
    patches, grid = patchify((frames - mean) / std, 14, 2, 2)
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    difference = (patches - expected["pixel_values"]).abs()
    assert difference.max() < (1e-5 if size[0] % 28 == 0 else ROUNDING)


@pytest.mark.skipif(find_spec("torchvision") is None, reason="the stock video processors need torchvision")
@pytest.mark.parametrize("family", FAMILIES)
def test_videos_are_those_of_the_stock_video_processor(family, checkpoints):
    from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    _, processor = load_tiny_qwen(checkpoints[family])
    size = 2 * processor.image_processor.patch_size
    stock_class = Qwen2VLVideoProcessor if family == "qwen2_5_vl" else Qwen3VLVideoProcessor
    bounds = {"shortest_edge": size**2, "longest_edge": 10**8}
    stock = stock_class(size=bounds, do_sample_frames=False, cap_pixels_per_frame=False)
    for count, height, width in ((5, 3 * size, 2 * size), (4, 100, 70)):
        video = torch.from_numpy(waves(count, height, width)).permute(0, 3, 1, 2)
        expected = stock([video], return_tensors="pt")
        frames = resize_frames(video.float() / 255, frame_size(height, width, size, size**2, 10**8))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (stock.image_mean, stock.image_std))
        assert stock.image_mean == processor.image_processor.image_mean
        patches, grid = patchify((frames - mean) / std, size // 2, 2, 2)
        assert [list(grid)] == expected["video_grid_thw"].tolist()
        difference = (patches - expected["pixel_values_videos"]).abs()
        assert difference.max() < (1e-5 if height % size == 0 else ROUNDING)


def test_anisotropic_voxels_are_shown_in_their_true_proportions():
    """A ball of 15 mm radius in voxels of 3 x 1 x 2 mm is a disc, as wide as high."""
    shape, spacing = (20, 80, 40), (3.0, 1.0, 2.0)
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    ball = (z * 3) ** 2 + y**2 + (x * 2) ** 2 < 15**2
    volume = load_volume(np.where(ball, 1000, -1000).astype(np.int16), spacing=spacing, check_hu=False)
    image_processor = SliceImageProcessor(num_slices=60, **PLAIN | {"spacing": (1.0, 1.0, 1.0)})
    frames = frames_of(image_processor, volume)[:, 0] > 0.5
    [depth], rows, columns = [frames.any((1, 2)).sum()], frames.any((0, 2)).sum(), frames.any((0, 1)).sum()
    scale = frames.shape[1] / 80  # 80 mm became 84 pixels
    assert abs(rows - columns) <= 3 and abs(rows / scale - 30) <= 2.5 and abs(depth - 30) <= 2.5


def test_an_odd_number_of_slices_shows_the_last_one_twice():
    image_processor = SliceImageProcessor(num_slices=5, **PLAIN)
    [video] = image_processor.videos(tiny_volume())
    assert video.layout.grid[0] == 3 and len(video.layout.times) == 3
    frames = frames_of(image_processor, tiny_volume())
    np.testing.assert_array_equal(frames[5], frames[4])
    assert np.abs(frames[4] - frames[3]).max() > 0.05


def test_slices_are_those_of_the_whole_resampled_volume():
    from hf_mu2.model.resample_mu2 import resample

    volume = tiny_volume(shape=(30, 40, 44), spacing=(0.7, 2.0, 2.0))
    image_processor = SliceImageProcessor(num_slices=7, **PLAIN)
    whole = resample(volume.array, image_processor._grid(volume), antialias=True)
    [layout] = image_processor.plan(volume)
    windowed = torch.from_numpy((whole[list(layout.group.slices)] + 1000) / 2000).clamp(0, 1).flip(1, 2)
    expected = resize_frames(windowed[:, None], (layout.grid[1] * 14, layout.grid[2] * 14))
    np.testing.assert_allclose(frames_of(image_processor, volume)[:7, :1], expected, atol=1e-5)


def test_one_window_is_grey_and_three_are_colours():
    grey = frames_of(SliceImageProcessor(num_slices=2, **PLAIN), tiny_volume())
    assert np.abs(grey - grey[:, :1]).max() < 1e-6
    windows = [(-1000, 1000), (-160, 240), (-1400, 200)]
    colours = frames_of(SliceImageProcessor(num_slices=2, windows=windows, **PLAIN), tiny_volume())
    np.testing.assert_allclose(colours[:, :1], grey[:, :1], atol=1e-6)
    for channel, (low, high) in enumerate(windows):
        alone = frames_of(SliceImageProcessor(num_slices=2, windows=[(low, high)], **PLAIN), tiny_volume())
        np.testing.assert_allclose(colours[:, channel], alone[:, channel], atol=1e-6)


def test_both_storage_forms_show_what_the_volume_shows(tmp_path):
    nib.save(tiny_nifti(), tmp_path / "ct.nii.gz")
    rows = [{"study_id": "a", "images": [str(tmp_path / "ct.nii.gz")]}]
    image_processor = SliceImageProcessor(min_pixels=28**2, max_pixels=10**6)
    expected = image_processor(str(tmp_path / "ct.nii.gz"))
    for form in ("preprocessed", "preprocessed_numpy"):
        out = tmp_path / form
        prepare(rows, out, form=form)
        [stored] = json.loads((out / "train.jsonl").read_text())["images"]
        for source in (stored, {"bytes": None, "path": stored}):
            batch = image_processor(source)
            assert batch["video_grid_thw"].tolist() == expected["video_grid_thw"].tolist()
            # half a HU of 2000, over a standard deviation of .26
            torch.testing.assert_close(
                batch["pixel_values_videos"], expected["pixel_values_videos"], atol=2e-3, rtol=0
            )
    assert stored.endswith(".npy")


def test_a_damaged_stored_volume_is_refused(tmp_path):
    (tmp_path / "half.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(VolumeError, match="data prepare"):
        SliceImageProcessor().videos(tmp_path / "half.npy")
    np.save(tmp_path / "flat.npy", np.zeros((3, 4), np.int16))
    with pytest.raises(VolumeError, match="preprocessed_numpy"):
        SliceImageProcessor().videos(tmp_path / "flat.npy")


def test_a_reference_shows_the_slices_it_names(tmp_path):
    nib.save(tiny_nifti(), tmp_path / "ct.nii.gz")
    image_processor = SliceImageProcessor(num_slices=3, **PLAIN | {"spacing": (3.0, 2.0, 2.0)})
    low, high = image_processor.plan(slices_around(tmp_path / "ct.nii.gz", [9, 2]))
    assert low.group.slices == (1, 2, 3) and high.group.slices == (8, 9, 10)
    with pytest.raises(VolumeError, match="from 0 to 11"):
        image_processor.plan(slices_around(tmp_path / "ct.nii.gz", [12]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"windows": [(0, 1), (0, 1)]},
        {"windows": [(5, 5)]},
        {"coverage": "all"},
        {"num_slices": 0},
        {"spacing": (1.0, 0.0, 1.0)},
        {"max_pixels": 10},
        {"frames": 3},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SliceImageProcessor(**wrong)


# The processor


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_processor_comes_back_as_it_was(family, checkpoints, tmp_path):
    processor = AutoProcessor.from_pretrained(checkpoints[family])
    assert type(processor) is SliceVideoProcessor
    processor.image_processor.num_slices = 7
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    volume = tiny_volume()
    for name, tensor in ask(again, [volume]).items():
        torch.testing.assert_close(tensor, ask(processor, [volume])[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_unequal_rows_gives_what_each_row_gives_alone(family, checkpoints):
    """One volume, two volumes in groups, and a smaller volume: logits after the prompt are equal."""
    model, processor = load_tiny_qwen(checkpoints[family])
    processor.image_processor = processor.image_processor.changed(
        coverage="stride", num_slices=3, min_pixels=1024
    )
    small = tiny_volume(3, shape=(7, 20, 30))
    rows = [[tiny_volume(0)], [tiny_volume(1), small], [small]]
    batch = ask(processor, *rows)
    token = processor.video_token_id
    merged = batch["video_grid_thw"].prod(1).sum() // 4
    assert (batch["input_ids"] == token).sum() == merged
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
        alone = torch.cat([model(**ask(processor, row)).logits[:, -1] for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_step_by_step_agrees_with_one_forward_pass(family, checkpoints):
    """Also where positions along z run past those of the text that follows."""
    model, processor = load_tiny_qwen(checkpoints[family])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # random weights of .02 would not tell positions apart
    batch = ask(processor, [tiny_volume(0)], [tiny_volume(1, shape=(12, 20, 30))])
    out = model.generate(
        **batch, do_sample=False, max_new_tokens=4, output_logits=True, return_dict_in_generate=True
    )
    added = out.sequences.shape[1] - batch["input_ids"].shape[1]
    full = dict(batch) | {"input_ids": out.sequences}
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        full[name] = torch.cat([batch[name], batch[name].new_full((2, added), value)], 1)
    with torch.no_grad():
        logits = model(**full).logits[:, -added - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, 1), logits, atol=2e-4, rtol=1e-3)


def test_placeholders_and_volumes_must_agree(qwen):
    _, processor = qwen
    with pytest.raises(ValueError, match="got 0 for 1 volumes"):
        processor(images=[tiny_volume()], text=["no placeholder"])
    with pytest.raises(ValueError, match="got 1 for 0 volumes"):
        processor(text=["<|vision_start|><|image_pad|><|vision_end|>"])
    with pytest.raises(ValueError, match="`images`"):
        processor(videos=[tiny_volume()], text=["<|video_pad|>"])


def test_a_volume_that_comes_twice_is_processed_once(qwen):
    volume = tiny_volume()
    first, second = qwen[1].image_processor.videos_of([[volume], [volume]])
    assert first is second


def test_a_model_of_another_family_is_refused():
    from hf_mu2 import embedded_checkpoint

    with pytest.raises(ValueError, match="qwen2_5_vl, qwen3_vl"):
        slice_processor(embedded_checkpoint())


def test_a_stock_checkpoint_gets_the_processor_and_keeps_its_weights(checkpoints, tmp_path):
    stock = tmp_path / "stock"
    model, processor = load_tiny_qwen(checkpoints["qwen2_5_vl"])
    model.save_pretrained(stock)
    processor.tokenizer.save_pretrained(stock)
    (stock / "preprocessor_config.json").write_text('{"processor_class": "Qwen2_5_VLProcessor"}')
    assert open_slices(stock, num_slices=4).image_processor.num_slices == 4
    folder = add_slices(stock, tmp_path / "ours", num_slices=12)
    again, processor = load_tiny_qwen(folder)
    assert processor.image_processor.num_slices == 12 and again.config.body_region is None
    assert open_slices(folder, stride=2).image_processor.num_slices == 12
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


# The budget


@pytest.fixture
def collated(qwen, tmp_path):
    """What TRL's collator makes of one row, and the row."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    nib.save(tiny_nifti(), tmp_path / "ct.nii.gz")
    row = {
        "images": [str(tmp_path / "ct.nii.gz")],
        "prompt": turns("user", "Write the findings."),
        "completion": turns("assistant", "Findings: Emphysema."),
    }
    collator = DataCollatorForVisionLanguageModeling(qwen[1], completion_only_loss=True)
    return collator([dict(row)]), row


def test_the_budget_is_the_length_that_is_trained(qwen, collated):
    batch, row = collated
    model, processor = qwen
    budget = measure_budget(processor, [row], model.config)
    assert budget.longest == batch["input_ids"].shape[1] and budget.fits
    assert budget.visual == (int((batch["input_ids"] == processor.video_token_id).sum()),)


def test_a_study_that_is_too_long_is_refused_with_settings_that_fit(qwen, collated):
    model, processor = qwen
    _, row = collated
    large = SliceVideoProcessor(
        processor.image_processor.changed(spacing=(0.75, 0.5, 0.5), num_slices=40, max_pixels=10**6),
        processor.tokenizer,
        processor.chat_template,
    )
    budget = measure_budget(large, [row], model.config, max_length=300)
    assert not budget.fits and budget.limited_by == "`max_length`"
    with pytest.raises(ValueError, match="max_length"):
        check_budget(large, [row], model.config, 300)
    suggestions = dict(
        line[3:].rstrip("`").split(": ")
        for line in describe_budget(budget, large.image_processor).split("\n")
        if line.startswith("- `") and line.endswith("`")
    )
    assert set(suggestions) == {"max_pixels", "num_slices"}
    for name, value in suggestions.items():
        changed = SliceVideoProcessor(
            large.image_processor.changed(**{name: int(value)}), large.tokenizer, large.chat_template
        )
        fitted = measure_budget(changed, [row], model.config, 300)
        assert fitted.fits and fitted.longest > 150


# Training


def test_the_loss_depends_on_the_volume_and_its_gradient_reaches_the_tower(checkpoints, collated):
    model, _ = load_tiny_qwen(checkpoints["qwen2_5_vl"])
    batch, _ = collated
    model(**batch).loss.backward()
    vision = {name: p.grad for name, p in model.named_parameters() if "visual" in name}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in vision.values())
    other = {**batch, "pixel_values_videos": batch["pixel_values_videos"].flip(0)}
    with torch.no_grad():
        assert abs(model(**batch).loss - model(**other).loss) > 1e-6


def test_it_trains_on_a_tree_of_ct_rate_and_reports_a_nifti(cli, tmp_path):
    """From NIfTI to generated report, on CPU; the recipe counts tokens first, evaluation swaps volumes."""
    tree = write_ct_rate_tree(
        tmp_path / "tree", num_train=2, num_valid=1, versions=("fixed",), spacings=((10.0, 8.0, 8.0),)
    )
    out = tmp_path / "out"
    result = cli(
        "train", "sft-qwen-ct-rate-tiny", "--corpus", "ct_rate", "--corpus_root", str(tree), "--eval_split", "train",
        "--max_steps", "2", "--learning_rate", "1e-2", "--output_dir", str(out), "--save_strategy", "no",
        "--eval_strategy", "steps", "--eval_steps", "2", "--warmup_steps", "0",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "visual tokens" in result.out + result.err
    record = json.loads((out / "run.json").read_text())
    assert math.isfinite(record["evaluation"]["eval_image_dependence"])
    before = AutoModelForImageTextToText.from_pretrained(out / "start").state_dict()
    after = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    assert not [name for name in before if torch.equal(before[name], after[name])]

    [volume, *_] = sorted(tree.rglob("valid_*.nii.gz"))
    result = cli("report", volume, "--model", out, "--out", tmp_path / "report", "--max-new-tokens", 3)
    assert result.code == 0, result.err
    assert (tmp_path / "report" / "report.txt").read_text().startswith("Research use only")


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_dpo_learns_from_volumes_of_unequal_size(family, checkpoints, tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = []
    for i in range(2):
        nib.save(tiny_nifti(i, shape=(12 + 4 * i, 40, 44)), tmp_path / f"{i}.nii.gz")
        pair = {
            "chosen": turns("assistant", "Emphysema."),
            "rejected": turns("assistant", "No emphysema here."),
        }
        rows.append(
            {
                "images": [str(tmp_path / f"{i}.nii.gz")],
                "prompt": turns("user", "Write the findings."),
                **pair,
            }
        )
    arguments = DPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-3, use_cpu=True,
        bf16=False, report_to="none", logging_steps=1, max_length=None, save_strategy="no",
    )  # fmt: skip
    (model, processor), (reference, _) = (
        load_tiny_qwen(checkpoints[family]),
        load_tiny_qwen(checkpoints[family]),
    )
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
    )
    trainer.train()
    first, second = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert abs(first - math.log(2)) < 1e-5 and second < first


def test_the_command_line_counts_tokens_before_training(cli, checkpoints, tmp_path):
    data = write_sft_folder(tmp_path / "data", 2)
    result = cli("slices", "plan", checkpoints["qwen2_5_vl"], data, "--num-slices", 8, "--json")
    facts = json.loads(result.out)
    assert facts["fits"] and facts["grid"][0] == 4 and facts["studies"] == 2
    result = cli("slices", "plan", checkpoints["qwen2_5_vl"], data, "--max-length", 20)
    assert result.code == 2 and "raise `max_length`" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_trl_trains_it_with_the_code_of_the_checkpoint(family, checkpoints, tmp_path):
    data = write_sft_folder(tmp_path / "data", 4)
    command = [
        str(Path(sysconfig.get_path("scripts")) / "trl"), "sft", "--model_name_or_path", str(checkpoints[family]),
        "--dataset_name", str(data), "--output_dir", str(tmp_path / "out"), "--trust_remote_code", "--use_cpu",
        "--bf16", "false", "--max_steps", "2", "--learning_rate", "1e-3", "--per_device_train_batch_size", "2",
        "--report_to", "none",
    ]  # fmt: skip
    caches = {name: str(tmp_path / name) for name in ("HF_MODULES_CACHE", "HF_DATASETS_CACHE")}
    environment = {**os.environ, **caches, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-4000:]
    before = AutoModelForImageTextToText.from_pretrained(checkpoints[family]).state_dict()
    after, processor = load_tiny_qwen(tmp_path / "out")
    assert type(processor) is SliceVideoProcessor
    assert not [name for name, weight in after.state_dict().items() if torch.equal(before[name], weight)]
