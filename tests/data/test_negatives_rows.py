"""Pairs of rows, and noise as large as a study's own volume."""

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.data.negatives_noise import gaussian_volume, write_gaussian_volumes
from hf_mu2.data.negatives_pool import study_candidates
from hf_mu2.data.negatives_rows import DrawnVolumes, GaussianVolumes, GivenVolumes, PairRows
from hf_mu2.data.study import FINDING_LABELS
from hf_mu2.model.volume_mu2 import load_volume
from tests.data.volume_rows import small_processor, write_rows
from tests.tiny import tiny_nifti

datasets = pytest.importorskip("datasets")


@pytest.fixture
def rows(tmp_path):
    return datasets.Dataset.from_list(write_rows(tmp_path / "ct", 4))


def candidates_of(rows):
    present = {"Emphysema": (0, 1, 0, 1), "Cardiomegaly": (0, 0, 1, 1)}
    return study_candidates(
        {
            "study_id": row["study_id"],
            "labels": dict.fromkeys(FINDING_LABELS, 0) | {name: of[i] for name, of in present.items()},
        }
        for i, row in enumerate(rows)
    )


def test_noise_has_the_size_and_the_place_of_the_volume(tmp_path):
    nib.save(tiny_nifti(0), tmp_path / "ct.nii.gz")
    own = load_volume(tmp_path / "ct.nii.gz")
    noise = gaussian_volume(str(tmp_path / "ct.nii.gz"), 5)
    assert noise.array.shape == own.array.shape and noise.spacing == own.spacing
    np.testing.assert_array_equal(noise.affine, own.affine)
    assert abs(noise.array.mean()) < 10 and 300 < noise.array.std() < 350
    assert noise.array.min() >= -1000 and noise.array.max() <= 1000


def test_noise_is_the_same_for_a_seed_and_other_for_another_epoch():
    source = tiny_nifti(0)
    first = gaussian_volume(source, 5).array
    np.testing.assert_array_equal(first, gaussian_volume(source, 5).array)
    assert (first != gaussian_volume(source, 6).array).mean() > 0.9
    assert (first != gaussian_volume(source, 5, epoch=1).array).mean() > 0.9


def test_written_noise_is_the_noise_that_rows_would_show(rows, tmp_path):
    paths = list(write_gaussian_volumes(rows, tmp_path / "noise", seed=3))
    volumes_of = GaussianVolumes(rows, seed=3)
    for number, written in enumerate(paths):
        (lazy,) = volumes_of(number, 0)
        stored = load_volume(written[0])
        np.testing.assert_array_equal(stored.array, lazy.array)
        np.testing.assert_allclose(stored.affine, lazy.affine, atol=1e-4)
    before = [path[0] for path in paths]
    assert [path[0] for path in write_gaussian_volumes(rows, tmp_path / "noise", seed=3)] == before


def test_a_processor_takes_noise_as_it_takes_a_volume(rows):
    processor = small_processor()
    own = processor(rows[0]["images"][0], return_tensors="np")
    noise = processor(GaussianVolumes(rows)(0, 0)[0], return_tensors="np")
    assert noise["pixel_values"].shape == own["pixel_values"].shape
    assert not np.allclose(noise["pixel_values"], own["pixel_values"])


def test_a_pair_keeps_question_and_report_and_takes_another_volume(rows):
    pairs = PairRows(rows, DrawnVolumes(rows, candidates_of(rows), policy="balanced"))
    assert len(pairs) == 4
    for number in range(4):
        positive, negative = pairs[number]
        assert positive == rows[number]
        assert negative["images"] != positive["images"]
        assert {**negative, "images": None} == {**positive, "images": None}
    assert PairRows(rows)[1] == [rows[1]]


def test_every_epoch_has_its_own_pairs(rows):
    pairs = PairRows(rows, DrawnVolumes(rows, candidates_of(rows), policy="balanced", min_distance=1))
    seen = set()
    for epoch in range(12):
        pairs.set_epoch(epoch)
        seen.add(tuple(pairs[number][1]["images"][0] for number in range(4)))
    assert len(seen) > 1
    pairs.set_epoch(0)
    first = [pairs[number][1]["images"] for number in range(4)]
    pairs.set_epoch(1)
    pairs.set_epoch(0)
    assert [pairs[number][1]["images"] for number in range(4)] == first


def test_given_volumes_are_those_of_every_epoch(rows):
    pairs = PairRows(rows, GivenVolumes([[f"noise-{i}"] for i in range(4)]))
    pairs.set_epoch(3)
    assert [pairs[i][1]["images"] for i in range(4)] == [[f"noise-{i}"] for i in range(4)]


def test_candidates_of_other_rows_are_refused(rows):
    with pytest.raises(ValueError, match="got 3 for 4 rows"):
        DrawnVolumes(rows, candidates_of(rows.select(range(3))), policy="balanced")
