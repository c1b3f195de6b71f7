"""The processor reads cached features in the place of volumes, and refuses what would not be the same."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_mu2.files import replacing
from hf_mu2.model.features_mu2 import feature_key, feature_reference, read_features, shard_metadata
from hf_mu2.model.volume_mu2 import VolumeError
from tests.data.volume_rows import small_processor
from tests.tiny import make_tiny_checkpoint, tiny_processor

PATCHES, WIDTH = 3, 5  # per slab
SLABS = {"short": 1, "long": 3}  # of 2 per frame


def write_shard(path, pixels, dtype=torch.float32, seed=0):
    """Write features of a short and a long volume; return the references."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(slabs, PATCHES, WIDTH, generator=generator).to(dtype)
        for name, slabs in SLABS.items()
    }
    settings = {"tower": str(seed), "vision": {}, "pixels": pixels}
    with replacing(path) as partial:
        save_file(tensors, partial, shard_metadata(settings, dict.fromkeys(tensors, "")))
    return [feature_reference(path, name, feature_key(settings)) for name in tensors]


@pytest.fixture
def processor():
    return small_processor()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_come_as_they_are_stored_padded_like_volumes(processor, tmp_path, dtype):
    references = write_shard(tmp_path / "shard.safetensors", processor.pixel_settings, dtype)
    batch = processor(references, return_tensors="pt")
    assert set(batch) == {"vision_hidden_states", "pixel_attention_mask"}
    assert batch["pixel_attention_mask"].tolist() == [
        [[True, False], [False, False]],
        [[True, True], [True, False]],
    ]
    states = batch["vision_hidden_states"]
    assert states.shape == (2, 2, 2 * PATCHES, WIDTH) and states.dtype == dtype
    slabs = states.unflatten(2, (2, PATCHES))
    assert torch.equal(
        slabs[batch["pixel_attention_mask"]], torch.cat([read_features(r) for r in references])
    )
    assert not slabs[~batch["pixel_attention_mask"]].any()
    as_numpy = processor(references)["vision_hidden_states"]
    assert as_numpy.dtype == np.float32 and np.array_equal(as_numpy, states.float().numpy())


def test_a_dict_of_datasets_names_features_too(processor, tmp_path):
    references = write_shard(tmp_path / "shard.safetensors", processor.pixel_settings)
    batch = processor([{"bytes": None, "path": references[0]}], return_tensors="pt", return_provenance=True)
    assert batch["vision_hidden_states"].shape[:2] == (1, 1)
    assert batch["provenance"][0]["volume"] == "short"


def test_features_and_volumes_do_not_share_a_batch(processor, tmp_path):
    references = write_shard(tmp_path / "shard.safetensors", processor.pixel_settings)
    with pytest.raises(VolumeError, match="1 volumes among 2"):
        processor([references[0], np.zeros((4, 32, 32))])


def test_augmented_features_are_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="without augmentation"):
        processor(write_shard(tmp_path / "shard.safetensors", processor.pixel_settings), augment=True)


CHANGES = {
    "mode": "official", "spacing": (3.2, 3.0, 2.0), "size": {"height": 32, "width": 24}, "num_slices": 16,
    "patch_depth": 2, "max_frames": 3, "intensity": "minmax", "windows": ((-900, 1000),), "antialias": False,
}  # fmt: skip


def test_every_field_of_the_processor_counts(processor):
    """But the spacing of bare arrays, which cannot be cached."""
    assert set(CHANGES) == set(processor.valid_kwargs.__annotations__) - {"array_spacing"}
    settings = [
        processor.pixel_settings,
        *(small_processor(**{k: v}).pixel_settings for k, v in CHANGES.items()),
    ]
    assert len({feature_key(each) for each in settings}) == len(settings)
    assert all(json.loads(json.dumps(each)) == each for each in settings)


@pytest.mark.parametrize("name", ["windows", "max_frames"])
def test_features_of_a_processor_with_other_settings_are_refused(processor, tmp_path, name):
    references = write_shard(tmp_path / "shard.safetensors", processor.pixel_settings)
    with pytest.raises(VolumeError, match=f"{name} .*, not "):
        processor(references, **{name: CHANGES[name]})


def test_features_of_two_towers_do_not_share_a_batch(processor, tmp_path):
    one, other = (
        write_shard(tmp_path / f"{i}.safetensors", processor.pixel_settings, seed=i) for i in range(2)
    )
    with pytest.raises(VolumeError, match="one tower"):
        processor([one[0], other[1]])


def test_a_shard_that_was_replaced_cut_off_or_removed_is_refused(processor, tmp_path):
    path = tmp_path / "shard.safetensors"
    references = write_shard(path, processor.pixel_settings)
    processor(references)
    write_shard(path, processor.pixel_settings, seed=1)
    with pytest.raises(VolumeError, match="replaced by another"):
        processor(references)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(VolumeError, match="damaged"):
        processor(references)
    save_file({"short": torch.zeros(1)}, path)
    with pytest.raises(VolumeError, match="has none"):
        processor(references)
    path.unlink()
    with pytest.raises(VolumeError, match="nothing is at"):
        processor(references)


def test_a_report_is_generated_from_features(tmp_path):
    """Conversations name features as they name volumes; the model writes, and text stays what it was."""
    model = AutoModelForImageTextToText.from_pretrained(make_tiny_checkpoint(tmp_path / "checkpoint"))
    processor = tiny_processor()
    vision = model.config.vision_config
    slabs = torch.randn(3, vision.grid[1] * vision.grid[2], vision.hidden_size)
    settings = {"tower": "", "vision": {}, "pixels": processor.image_processor.pixel_settings}
    path = tmp_path / "shard.safetensors"
    save_file({"one": slabs}, path, shard_metadata(settings, {"one": ""}))
    inputs = processor.apply_chat_template(
        processor.build_messages(feature_reference(path, "one", feature_key(settings))),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt"},
    )
    assert "pixel_values" not in inputs
    assert (
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4).shape[1]
        == inputs["input_ids"].shape[1] + 4
    )


def test_a_saved_checkpoint_carries_the_code_that_reads_features(tmp_path):
    folder = make_tiny_checkpoint(tmp_path / "checkpoint")
    assert (folder / "features_mu2.py").is_file()
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "features_mu2.py").is_file()
