import csv
import io
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.data.abdomen_atlas import KEY, REPORTS, TABLES, read_studies
from hf_mu2.data.build import load_corpus, read_corpus
from hf_mu2.data.corpus import CorpusError, Drops
from hf_mu2.data.phantom import make_phantom
from hf_mu2.data.phantom.abdomen_atlas_tree import COLUMNS, write_abdomen_atlas_tree
from hf_mu2.model.volume_mu2 import load_volume
from tests.corpus_step import take_training_step
from tests.paths import shared_data_or_skip

TABLE = TABLES[0]


@pytest.fixture(scope="module")
def phantoms():
    return [make_phantom(seed, spacing=(12, 8, 8), region="abdomen") for seed in range(4)]


@pytest.fixture
def tree(phantoms, tmp_path: Path) -> Path:
    return write_abdomen_atlas_tree(tmp_path / "atlas", phantoms)


def read(root: Path, **options: Any) -> tuple[dict[str, dict[str, Any]], Drops]:
    drops = Drops()
    return {row["study_id"]: row for row in read_corpus("abdomen_atlas", root, drops, **options)}, drops


def edit(root: Path, change: Any, name: str = TABLE) -> None:
    """Change the rows of a table in place."""
    path = root / name
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows = change(rows) or rows
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())


def test_the_79_columns_are_those_of_the_real_table(tree):
    real = json.loads(shared_data_or_skip("corpora", "AbdomenAtlas", "columns.json").read_text())
    with (tree / TABLE).open(newline="") as stream:
        assert next(csv.reader(stream)) == real == list(COLUMNS)
    assert len(real) == 79


@pytest.mark.parametrize("report", list(REPORTS))
def test_every_kind_of_report_is_read_and_its_absence_counted(tree, phantoms, report):
    rows, drops = read(tree, report=report)
    with_note = {"BDMAP_00000001", "BDMAP_00000003"}
    is_rare = "fusion" in report or "note" in report
    assert set(rows) == (with_note if is_rare else {f"BDMAP_{i:08d}" for i in range(1, 5)})
    assert drops.reasons == ({f"no {REPORTS[report]}": 2} if is_rare else {})
    row = rows["BDMAP_00000001"]
    assert json.loads(row["metadata"])["report"] == report
    if report == "radiologist note":
        assert (row["findings"], row["impression"]) == (phantoms[0].report.impression, "")
    else:
        assert phantoms[0].report.findings in row["findings"]
        assert row["impression"].startswith(phantoms[0].report.impression)
    assert "IMPRESSION" not in row["findings"] and not row["findings"].startswith("FINDINGS")


def test_nan_is_no_report_and_no_measurement(tree):
    def spoil(rows):
        rows[0][REPORTS["narrative"]] = "nan"
        rows[1]["liver volume (cm^3)"], rows[1]["age"] = "NaN", "61.0"

    edit(tree, spoil)
    rows, drops = read(tree)
    metadata = json.loads(rows["BDMAP_00000002"]["metadata"])
    assert drops.reasons == {"no narrative report": 1}
    assert metadata["age"] == 61.0 and "liver volume (cm^3)" not in metadata


def test_measurements_follow_what_was_drawn(tree, phantoms):
    rows, _ = read(tree)
    measured = 0
    for phantom, row in zip(phantoms, rows.values(), strict=True):
        metadata = json.loads(row["metadata"])
        for finding in phantom.findings:
            if finding.label == "Liver lesion":
                assert metadata["number of liver lesion instances"] == finding.count
                assert metadata["largest liver lesion diameter (cm)"] == round(finding.size_mm / 10, 1)
                measured += 1
    assert measured


def test_the_published_lists_decide_the_split(tree):
    iid, _ = read(tree, validation_share=0.0)
    ood, _ = read(tree, lists="OOD", validation_share=0.0)
    assert [row["split"] for row in iid.values()] == ["train"] * 3 + ["test"]
    assert [row["split"] for row in ood.values()] == ["test"] * 3 + ["train"]
    validation, _ = read(tree, validation_share=1.0)
    assert {row["split"] for row in validation.values()} == {"validation", "test"}


def test_a_study_in_both_lists_is_test_and_one_in_neither_is_counted(tree):
    train = tree / "TrainTestIDS" / "IID_train.csv"
    train.write_text(f"{KEY}\nBDMAP_00000001\nBDMAP_00000004\n")
    rows, drops = read(tree)
    assert rows["BDMAP_00000004"]["split"] == "test"
    assert drops.notes == {"in the train and the test list, kept in test": 1}
    assert drops.reasons == {"in neither IID list": 2}


@pytest.mark.parametrize("archive", ["tar", "tar.gz"])
def test_volumes_are_read_from_shards(phantoms, tmp_path, archive):
    root = write_abdomen_atlas_tree(tmp_path / "atlas", phantoms[:2], archive=archive)
    assert not list(root.rglob("ct.nii.gz"))
    rows, drops = read(root)
    note = "in a compressed shard, read from its start for every volume"
    assert drops.notes == ({note: 2} if archive == "tar.gz" else {})
    for phantom, row in zip(phantoms, rows.values(), strict=False):
        volume = load_volume(row["images"][0])
        np.testing.assert_array_equal(volume.array, np.maximum(phantom.volume, -1024))


def test_an_extracted_volume_comes_before_its_shard(phantoms, tmp_path):
    root = write_abdomen_atlas_tree(tmp_path / "atlas", phantoms[:2])
    shard = root / "image_only" / "AbdomenAtlas3_images_BDMAP_BDMAP_00000001_BDMAP_00000232.tar.gz"
    shard.write_bytes(b"")
    rows, _ = read(root)
    assert all(Path(row["images"][0]).is_file() for row in rows.values())


def test_left_stays_left_when_stored_as_lps(tmp_path):
    phantom = make_phantom(7, spacing=(12, 8, 8), region="abdomen", orientation="LPS")
    rows, _ = read(write_abdomen_atlas_tree(tmp_path / "atlas", [phantom], num_test=0))
    volume = load_volume(rows["BDMAP_00000001"]["images"][0])
    np.testing.assert_array_equal(volume.array, np.maximum(phantom.volume, -1024))


def test_volumes_and_reports_without_each_other_are_counted(tree):
    folder = tree / "image_only"
    (folder / "BDMAP_00000001").rename(folder / "BDMAP_00009262")
    rows, drops = read(tree)
    assert len(rows) == 3
    assert drops.reasons == {"report without volume": 1, "volume without report": 1}


def test_a_row_listed_twice_is_counted(tree):
    edit(tree, lambda rows: [*rows, rows[0]])
    rows, drops = read(tree)
    assert len(rows) == 4 and drops.reasons == {"listed twice, the first is kept": 1}


def test_ids_of_the_trauma_set_are_told_apart(tree):
    rows, _ = read(tree)
    assert json.loads(rows["BDMAP_00000001"]["metadata"])["lineage"] == "16 other public sets"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / TABLE).unlink(), "AbdomenAtlas3.0MiniWithMeta.csv` or `AbdomenAtlas3.0.csv"),
        (lambda root: (root / "TrainTestIDS" / "IID_test.csv").unlink(), "IID_test.csv"),
        (
            lambda root: (root / "TrainTestIDS" / "IID_test.csv").write_text("ID\nBDMAP_00000001\n"),
            "BDMAP ID",
        ),
        (lambda root: edit(root, lambda rows: [{KEY: row[KEY]} for row in rows]), "narrative report"),
        (
            lambda root: (root / TABLE).write_bytes(
                (root / TABLE).read_bytes().replace(b"the", b"\xe9\xe9\xe9")
            ),
            "UTF-8",
        ),
    ],
)
def test_a_bad_tree_gives_one_clear_error(tree, spoil, message):
    spoil(tree)
    with pytest.raises(CorpusError, match=message):
        list(read_studies(tree, Drops()))


def test_a_link_that_leaves_the_root_is_refused(tree, tmp_path):
    path = tree / "image_only" / "BDMAP_00000001" / "ct.nii.gz"
    path.rename(tmp_path / "elsewhere.nii.gz")
    path.symlink_to(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(CorpusError, match="leaves"):
        list(read_studies(tree, Drops()))


def test_unknown_options_are_named(tree):
    with pytest.raises(CorpusError, match="narrative, structured"):
        list(read_studies(tree, Drops(), report="Narrative"))


def test_an_archive_opens_lazily_and_trains(tree, tmp_path):
    dataset = load_corpus("abdomen_atlas", tree, "train", cache_dir=tmp_path / "cache", validation_share=0.0)
    assert nib.is_proxy(dataset[0]["images"][0].dataobj)
    take_training_step(dataset)


def test_a_shard_trains_as_well(phantoms, tmp_path):
    root = write_abdomen_atlas_tree(tmp_path / "atlas", phantoms[:3], archive="tar")
    dataset = load_corpus("abdomen_atlas", root, "train", cache_dir=tmp_path / "cache", validation_share=0.0)
    take_training_step(dataset)
