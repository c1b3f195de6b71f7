"""The benchmark of PhantomCT on disk: fixed splits, the builder that reads it, and the trees it refuses."""

import json
from itertools import pairwise

import numpy as np
import pytest

from hf_mu2.data.build import load_corpus
from hf_mu2.data.corpus import CorpusError, Drops
from hf_mu2.data.phantom import FIRST_SEED, RESOLUTIONS, SIZES, make_phantom, write_benchmark
from hf_mu2.data.phantom_ct import INFO, read_studies

COUNTS = {"train": 3, "validation": 1, "test": 2}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("phantom_ct") / "chest", COUNTS, resolution="quick")


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom_ct") / "abdomen"
    return write_benchmark(folder, {"test": 2}, region="abdomen", resolution="quick", text_shortcut=0.5)


def test_every_split_has_its_own_seeds_far_from_the_demo_checkpoint():
    largest = max(count for size in SIZES.values() for count in size.values())
    starts = sorted([0, 10_000_000, *FIRST_SEED.values()])
    assert min(after - before for before, after in pairwise(starts)) > 100 * largest
    assert all(tuple(size) == ("train", "validation", "test") for size in SIZES.values())


def test_the_builder_reads_what_was_drawn(benchmark):
    rows = list(read_studies(benchmark, drops := Drops()))
    assert [row["split"] for row in rows] == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert not drops.reasons and not drops.notes
    phantom = make_phantom(FIRST_SEED["test"], spacing=RESOLUTIONS["quick"])
    row = rows[4]
    assert (row["study_id"], row["patient_id"]) == (phantom.study_id, f"phantom_{phantom.seed}")
    assert row["findings"] == phantom.report.findings and row["labels"] == phantom.labels
    assert (row["region"], row["egress"]) == ("chest", True)
    metadata = json.loads(row["metadata"])
    assert metadata["findings"] == json.loads(json.dumps(phantom.truth()))["findings"]
    assert metadata["mask"].endswith(f"{phantom.study_id}.nii.gz")


def test_load_corpus_opens_a_split_with_lazy_volumes(benchmark, tmp_path):
    dataset = load_corpus("phantom_ct", benchmark, "test", cache_dir=tmp_path)
    assert len(dataset) == COUNTS["test"]
    phantom = make_phantom(FIRST_SEED["test"], spacing=RESOLUTIONS["quick"])
    (image,) = dataset[0]["images"]
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), phantom.volume)


def test_load_dataset_opens_all_splits_without_the_builder(benchmark, tmp_path):
    datasets = pytest.importorskip("datasets")
    splits = datasets.load_dataset(str(benchmark), cache_dir=str(tmp_path))
    assert {name: len(rows) for name, rows in splits.items()} == COUNTS
    assert {row["patient_id"] for row in splits["train"]}.isdisjoint(
        row["patient_id"] for row in splits["test"]
    )


def test_a_smaller_size_is_the_start_of_a_larger_one(benchmark, tmp_path):
    smaller = write_benchmark(tmp_path / "smaller", {"train": 2}, resolution="quick")
    lines = (benchmark / "train" / "metadata.jsonl").read_text().splitlines()
    assert (smaller / "train" / "metadata.jsonl").read_text().splitlines() == lines[:2]


def test_labels_of_an_abdomen_are_kept_in_the_metadata(abdomen):
    for row in read_studies(abdomen, Drops()):
        assert row["region"] == "abdomen+pelvis" and set(row["labels"].values()) == {None}
        metadata = json.loads(row["metadata"])
        present = {label for label, value in metadata["labels"].items() if value}
        assert present == {finding["label"] for finding in metadata["findings"]}
        assert metadata["text_shortcut"] == 0.5


def test_the_card_tells_the_splits_and_the_licence(benchmark):
    card = (benchmark / "README.md").read_text()
    assert "cc0-1.0" in card and "not a medical device" in card
    assert all(f"| {split} | {count} | {FIRST_SEED[split]} |" in card for split, count in COUNTS.items())
    assert INFO.licence == "cc0-1.0" and INFO.redistributable and INFO.egress


def test_what_is_missing_is_dropped_and_counted(tmp_path):
    folder = write_benchmark(tmp_path / "broken", {"train": 3}, resolution="quick")
    volumes = sorted((folder / "train").glob("*.nii.gz"))
    volumes[0].unlink()
    (tmp_path / "broken_masks" / "train" / volumes[1].name).unlink()
    table = folder / "train" / "metadata.jsonl"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[2]]) + "\n")
    rows = list(read_studies(folder, drops := Drops()))
    assert len(rows) == 2
    assert drops.reasons == {"the volume is missing": 1, "the study id was there before": 1}
    assert drops.notes == {"no masks beside the folder": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.pop("metadata") and row, "lacks"),
        (lambda row: row | {"images_file_names": ["../../elsewhere.nii.gz"]}, "stay inside"),
        (lambda row: 7, "JSON object"),
    ],
)
def test_an_odd_row_is_refused(benchmark, tmp_path, change, words):
    row = json.loads((benchmark / "test" / "metadata.jsonl").read_text().splitlines()[0])
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "metadata.jsonl").write_text(json.dumps(change(row)) + "\n")
    with pytest.raises(CorpusError, match=words):
        list(read_studies(tmp_path, Drops()))


def test_a_patient_in_two_splits_is_refused(benchmark, tmp_path):
    row = (benchmark / "test" / "metadata.jsonl").read_text().splitlines()[0]
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "metadata.jsonl").write_text(row + "\n")
    with pytest.raises(CorpusError, match="one split"):
        list(read_studies(tmp_path, Drops()))


def test_a_folder_without_splits_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"metadata\.jsonl"):
        list(read_studies(tmp_path, Drops()))


@pytest.mark.parametrize("arguments", [{"size": "huge"}, {"size": {"dev": 3}}, {"resolution": "fine"}])
def test_a_wrong_argument_of_the_benchmark_is_named(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        write_benchmark(tmp_path / "benchmark", **arguments)
