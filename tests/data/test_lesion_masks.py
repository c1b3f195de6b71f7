"""Lesion masks: found where each corpus keeps them, read in the orientation of volumes, joined on one grid only."""

import json

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.data import radgenome
from hf_mu2.data.build import load_corpus
from hf_mu2.data.lesion_masks import (
    CLASSES,
    REGIONS,
    load_masks,
    mask_path,
    mask_reference,
    phantom_masks,
    study_masks,
)
from hf_mu2.data.phantom import write_phantoms
from hf_mu2.data.phantom.radgenome_tree import write_radgenome_tree
from hf_mu2.data.study import FINDING_LABELS
from hf_mu2.model.volume_mu2 import VolumeError, load_volume

SPACING = (7.0, 7.0, 7.0)


def write_mask(path, array, codes="RAS", origin=(0.0, 0.0, 0.0)):
    """Write an array (depth, height, width) in RAS order as a file with axes along `codes`."""
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = origin
    image = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
    ornt = nib.orientations
    image = image.as_reoriented(
        ornt.ornt_transform(nib.io_orientation(affine), ornt.axcodes2ornt(tuple(codes)))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return str(path)


@pytest.fixture
def marked():
    array = np.zeros((4, 6, 8), np.uint8)
    array[1, 2, 5:], array[3, 0, 0] = 1, 7
    return array


def test_phantoms_have_their_masks_beside_the_folder_and_in_the_corpus(tmp_path):
    folder = write_phantoms(tmp_path / "phantoms", 2, spacing=SPACING)
    volumes = sorted((folder / "train").glob("*.nii.gz"))
    beside = [phantom_masks(str(path)) for path in volumes]
    assert [mask_path(masks[0]).parent for masks in beside] == [tmp_path / "phantoms_masks" / "train"] * 2
    studies = load_corpus("phantom_ct", folder, "train", cache_dir=tmp_path / "cache")
    assert [study_masks(study, folder, ()) for study in studies] == beside
    assert phantom_masks(str(tmp_path / "elsewhere" / "ct.nii.gz")) == []


def test_every_finding_of_a_phantom_is_marked_and_nothing_else(tmp_path):
    folder = write_phantoms(tmp_path / "phantoms", 4, spacing=SPACING)
    for line in (folder / "train" / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        path = folder / "train" / row["images_file_names"][0]
        mask, affine = load_masks(phantom_masks(path))
        volume = load_volume(path)
        assert mask.shape == volume.array.shape
        np.testing.assert_allclose(affine, volume.affine)
        drawn = sum(finding["num_voxels"] for finding in json.loads(row["metadata"])["findings"])
        assert bool(drawn) == mask.any() and mask.sum() <= drawn


def test_regions_of_radgenome_follow_from_what_is_present(tmp_path):
    root = write_radgenome_tree(tmp_path / "tree", spacing=SPACING)
    study = load_corpus("radgenome", root, "test", cache_dir=tmp_path / "cache")[0]
    folder = root / json.loads(study["metadata"])["masks"]
    for name in ("heart", "lung", "pleura"):
        (folder / f"{name}.nii.gz").touch()
    names = [
        mask_path(mask).name
        for mask in study_masks(study, root, ["Lung nodule", "Cardiomegaly", "Emphysema"])
    ]
    assert names == ["heart.nii.gz", "lung.nii.gz"]
    assert study_masks(study, root, []) == study_masks(study, root, ["Medical material"]) == []


def test_regions_are_known_words():
    assert set(REGIONS) <= set(FINDING_LABELS)
    named = {region for regions in REGIONS.values() for region in regions}
    assert named <= set(radgenome.REGIONS) and set(CLASSES) <= named


def test_ct_rate_takes_the_classes_of_totalsegmentator(tmp_path, marked):
    place = "train_fixed/train_1/train_1_a/train_1_a_1.nii.gz"
    classes = np.where(marked > 0, 51, 13).astype(np.uint8)
    write_mask(tmp_path / "dataset/ts_seg/ts_total" / place, classes)
    study = {"corpus": "ct_rate", "images": [str(tmp_path / "dataset" / place)], "metadata": "{}"}
    heart = study_masks(study, tmp_path, ["Cardiomegaly"])
    np.testing.assert_array_equal(load_masks(heart)[0], marked > 0)
    assert load_masks(study_masks(study, tmp_path, ["Cardiomegaly", "Lung nodule"]))[0].all()
    assert study_masks(study, tmp_path, ["Pleural effusion"]) == []
    missing = {**study, "images": [str(tmp_path / "dataset" / place.replace("1_a_1", "1_a_2"))]}
    assert study_masks(missing, tmp_path, ["Cardiomegaly"]) == []


def test_a_corpus_without_known_masks_is_refused():
    with pytest.raises(ValueError, match="`lesion_masks` of your own"):
        study_masks({"corpus": "amos_mm", "metadata": "{}"}, ".", [])


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_masks_are_read_in_one_order_however_they_are_stored(tmp_path, marked, codes):
    mask, affine = load_masks([write_mask(tmp_path / "mask.nii.gz", marked, codes)])
    np.testing.assert_array_equal(mask, marked > 0)
    np.testing.assert_allclose(affine, np.diag([2.0, 2.0, 3.0, 1.0]))


def test_bits_of_large_masks_survive(tmp_path, marked):
    bits = np.where(marked > 0, 1 << 17, 0).astype(np.uint32)
    np.testing.assert_array_equal(load_masks([write_mask(tmp_path / "mask.nii.gz", bits)])[0], marked > 0)


def test_masks_are_joined_and_values_chosen(tmp_path, marked):
    path = write_mask(tmp_path / "mask.nii.gz", marked)
    ones = mask_reference(path, [1])
    assert mask_path(ones) == mask_path(path) and load_masks([ones])[0].sum() == 3
    assert load_masks([ones, mask_reference(path, [7])])[0].sum() == 4


def test_masks_on_two_grids_are_refused(tmp_path, marked):
    first = write_mask(tmp_path / "first.nii.gz", marked)
    moved = write_mask(tmp_path / "moved.nii.gz", marked, origin=(2.0, 0.0, 0.0))
    with pytest.raises(VolumeError, match=r"lie on one grid, `moved.nii.gz`"):
        load_masks([first, moved])
    with pytest.raises(VolumeError, match=r"lie on one grid, `small.nii.gz` has the shape \(3, 6, 8\)"):
        load_masks([first, write_mask(tmp_path / "small.nii.gz", marked[1:])])


def test_a_mask_that_is_not_there_is_named(tmp_path):
    with pytest.raises(VolumeError, match=r"nothing is at `.*gone.nii.gz`"):
        load_masks([str(tmp_path / "gone.nii.gz")])
