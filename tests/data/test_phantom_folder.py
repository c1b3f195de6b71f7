"""The phantom folder: `load_dataset` and TRL open it, a killed run continues, masks stay out of the way."""

import json

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.data.phantom import make_phantom, write_phantoms
from hf_mu2.data.study import FINDING_LABELS

SPACING = (12.0, 12.0, 12.0)


def test_load_dataset_opens_a_folder_for_sft(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = write_phantoms(tmp_path / "phantoms", 3, seed=5, spacing=SPACING)
    dataset = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(dataset) == 3
    assert dataset.features["images"] == datasets.List(datasets.Nifti())
    row = dataset[1]
    phantom = make_phantom(6, spacing=SPACING)
    (image,) = row["images"]
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), phantom.volume)
    assert row["study_id"] == phantom.study_id
    assert [turn["role"] for turn in row["prompt"] + row["completion"]] == ["user", "assistant"]
    assert row["completion"][0]["content"] == phantom.report.text
    assert row["labels"] == phantom.labels and list(row["labels"]) == list(FINDING_LABELS)


def test_load_dataset_opens_a_folder_of_preferences(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = write_phantoms(tmp_path / "phantoms", 2, view="preference", spacing=SPACING)
    dataset = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    for row in dataset:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert chosen != rejected and chosen.startswith("Findings: ") and "\nImpression: " in rejected


def test_masks_lie_beside_the_folder_on_the_same_grid(tmp_path):
    folder = write_phantoms(tmp_path / "phantoms", 1, seed=9, spacing=SPACING)
    mask = nib.load(tmp_path / "phantoms_masks" / "train" / "phantom_000009.nii.gz")
    volume = nib.load(folder / "train" / "phantom_000009.nii.gz")
    np.testing.assert_allclose(mask.affine, volume.affine)
    phantom = make_phantom(9, spacing=SPACING)
    np.testing.assert_array_equal(np.asarray(mask.dataobj).transpose(2, 1, 0), phantom.masks)
    assert volume.get_data_dtype() == np.int16 and mask.get_data_dtype() == np.uint32


def test_a_killed_run_continues_where_it_stopped(tmp_path):
    whole = write_phantoms(tmp_path / "whole", 3, spacing=SPACING)
    folder = write_phantoms(tmp_path / "broken", 3, spacing=SPACING)
    kept = folder / "train" / "phantom_000000.nii.gz"
    before = kept.stat().st_mtime_ns
    (folder / "train" / "metadata.jsonl").unlink()
    (folder / "train" / "phantom_000002.nii.gz").unlink()
    (tmp_path / "broken_masks" / "train" / "phantom_000002.json").unlink()
    write_phantoms(folder, 3, spacing=SPACING)
    assert kept.stat().st_mtime_ns == before
    for name in ("train/metadata.jsonl", "README.md", "manifest_train.json"):
        assert (folder / name).read_text() == (whole / name).read_text()
    assert not list(tmp_path.rglob(".partial*"))


def test_a_folder_begun_with_other_settings_is_refused(tmp_path):
    write_phantoms(tmp_path / "phantoms", 1, spacing=SPACING)
    with pytest.raises(ValueError, match="settings it was begun with"):
        write_phantoms(tmp_path / "phantoms", 1, seed=4, spacing=SPACING)


def test_the_manifest_tells_seed_version_and_licence(tmp_path):
    folder = write_phantoms(tmp_path / "phantoms", 1, seed=3, spacing=SPACING, split="test")
    manifest = json.loads((folder / "manifest_test.json").read_text())
    assert (manifest["seed"], manifest["licence"], manifest["generator_version"]) == (3, "CC0-1.0", 1)
    assert "not a medical device" in (folder / "README.md").read_text()


def test_workers_write_what_one_process_writes(tmp_path):
    one = write_phantoms(tmp_path / "one", 2, spacing=SPACING)
    two = write_phantoms(tmp_path / "two", 2, spacing=SPACING, num_workers=2)
    assert (one / "train/metadata.jsonl").read_text() == (two / "train/metadata.jsonl").read_text()


@pytest.mark.parametrize("arguments", [{"view": "chat"}, {"n": 0}])
def test_a_wrong_argument_is_named(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        write_phantoms(tmp_path / "phantoms", **{"n": 1, **arguments})
