"""RadGenome-ChestCT: text and masks by region, the splits of CT-RATE, the folder without its underscore."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.data.build import load_corpus, read_corpus
from hf_mu2.data.corpus import CorpusError, Drops, cut_validation
from hf_mu2.data.phantom import make_phantom
from hf_mu2.data.phantom.ct_rate_tree import write_table
from hf_mu2.data.phantom.radgenome_tree import REGION_OF, write_radgenome_tree
from hf_mu2.data.radgenome import REGIONS
from hf_mu2.model.volume_mu2 import load_volume
from tests.corpus_step import take_training_step

SPACING = (6.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_radgenome_tree(tmp_path_factory.mktemp("radgenome"), spacing=SPACING)


def make_tree(root: Path, reports: list[tuple[str, str, str]], volumes: list[str] | None = None) -> Path:
    """Write a tree of empty volumes: a builder opens none."""
    for part, word in (("train", "train"), ("valid", "validation")):
        rows = [row for row in reports if row[0].startswith(part)]
        table = root / f"dataset/radgenome_files/{word}_region_report.csv"
        write_table(table, ("Volumename", "Anatomy", "Sentence"), rows)
    for name in dict.fromkeys(row[0] for row in reports) if volumes is None else volumes:
        part, patient, letter, _ = name.split("_")
        folder = root / f"dataset/{part}_preprocessed/{part}_{patient}/{part}_{patient}{letter}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return root


def read(root: Path, **options) -> tuple[list[dict], Drops]:
    drops = Drops()
    return list(read_corpus("radgenome", root, drops, **options)), drops


def test_an_archive_becomes_a_training_step(tree, tmp_path):
    dataset = load_corpus("radgenome", tree, "train", cache_dir=tmp_path, validation_share=0.0)
    assert dataset["study_id"] == ["train_1_a", "train_2_a", "train_3_a"]
    take_training_step(dataset)


def test_the_hu_are_those_that_were_drawn_and_masks_fit_them(tree):
    rows, drops = read(tree)
    assert [row["study_id"] for row in rows if row["split"] == "test"] == ["valid_1_a", "valid_2_a"]
    assert not drops.reasons and not drops.notes
    for seed, row in enumerate(rows):
        drawn = make_phantom(seed, spacing=SPACING)
        np.testing.assert_array_equal(load_volume(row["images"][0]).array, drawn.volume)
        assert row["findings"] == drawn.report.findings
        assert [section["name"] for section in row["sections"]] == [
            region
            for region in REGIONS
            if region in {REGION_OF.get(finding.label, "lung") for finding in drawn.findings}
        ]
        metadata = json.loads(row["metadata"])
        assert set(metadata["disorders"]) == {
            label.lower() for label, there in drawn.labels.items() if there
        } or metadata["disorders"] == ["no findings"]
        for section in row["sections"]:
            mask = nib.load(tree / metadata["masks"] / f"{section['name']}.nii.gz")
            assert mask.shape == nib.load(row["images"][0]).shape and np.asarray(mask.dataobj).any()


def test_questions_are_asked_from_the_tables(tree):
    rows, _ = read(tree, vqa=True)
    for row in rows:
        disorders = json.loads(row["metadata"])["disorders"]
        locations = [question for question in row["questions"] if question["kind"] == "location"]
        assert {question["question"] for question in locations} == {
            f"Where is the {disorder}?" for disorder in disorders if disorder != "no findings"
        }
    kinds = {question["kind"] for row in rows for question in row["questions"]}
    assert kinds == {"abnormality", "location", "presence", "size"}


def test_splits_are_those_of_ct_rate(tmp_path):
    rows, _ = read(
        make_tree(tmp_path, [(f"train_{n}_a_1.nii.gz", "", "Normal.") for n in range(1, 80)]),
        validation_share=0.3,
    )
    assert {row["split"] for row in rows} == {"train", "validation"}
    assert all(row["split"] == cut_validation(row["patient_id"], 0.3) for row in rows)


def test_the_whole_report_has_no_region_and_regions_come_in_a_fixed_order(tmp_path):
    name, other = "train_1_a_1.nii.gz", "train_2_a_1.nii.gz"
    reports = [
        (name, "lung", "A nodule."),
        (name, "nan", "The whole."),
        (name, "abdomen", "Normal liver."),
        (name, "lung", "No effusion."),
        (name, "spleen", "Normal."),
        (other, "heart", "Normal heart."),
        (other, "bone", "Normal bones."),
    ]
    rows, drops = read(make_tree(tmp_path, reports))
    texts = [{section["name"]: section["text"] for section in row["sections"]} for row in rows]
    assert list(texts[0].items()) == [
        ("abdomen", "Normal liver."),
        ("lung", "A nodule. No effusion."),
        ("spleen", "Normal."),
    ]
    assert [row["findings"] for row in rows] == ["The whole.", "Normal bones. Normal heart."]
    assert drops.notes == {
        "region 'spleen' is none of the ten": 1,
        "no whole report: findings are the regions joined": 1,
    }


def test_every_scan_is_yielded_or_dropped_once(tmp_path):
    reports = [
        ("train_1_a_1.nii.gz", "", "Normal."),
        ("train_2_a_1.nii.gz", "", "Normal."),
        ("train_3_a_1.nii.gz", "", "Not given."),
        ("train_5_a_1.nii.gz", "", "Normal."),
        ("train_5_a_2.nii.gz", "", "Normal."),
        ("train_1267_a_4.nii.gz", "", "Normal."),
        ("train_x_1.nii.gz", "", "Normal."),
    ]
    names = [row[0] for row in reports if row[0] not in ("train_2_a_1.nii.gz", "train_x_1.nii.gz")]
    root = make_tree(tmp_path, reports, [*names, "train_4_a_1.nii.gz"])
    odd = root / "dataset/train_preprocessed/train_1/train_1_a/train_1_a_9.nii.gz"  # CT-RATE's folder
    odd.parent.mkdir()
    odd.touch()
    rows, drops = read(root)
    assert [row["study_id"] for row in rows] == ["train_1_a", "train_5_a"]
    assert drops.reasons == {
        "the volume is missing": 1,
        "no report, or an empty one": 2,
        "damaged, as HLIP found": 1,
        "file whose name or folder is not RadGenome's": 1,
        "row of train_region_report.csv with a name that is none": 1,
    }
    assert drops.notes == {"another reconstruction is used: one is enough": 1}
    rows, drops = read(root, require_volumes=False)
    assert [row["study_id"] for row in rows] == ["train_1_a", "train_2_a", "train_5_a"]


def test_a_link_out_of_the_root_is_dropped(tmp_path):
    root = make_tree(tmp_path / "tree", [("train_1_a_1.nii.gz", "", "Normal.")])
    path = next(root.rglob("*.nii.gz"))
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    assert read(root)[1].reasons == {"a link that leaves the root": 1}


def test_missing_tables_and_columns_are_named(tmp_path):
    with pytest.raises(CorpusError, match=r"needs `radgenome_files/train_region_report.csv`"):
        read(tmp_path)
    root = make_tree(tmp_path, [("train_1_a_1.nii.gz", "", "Normal.")])
    with pytest.raises(CorpusError, match=r"`vqa=True` needs `radgenome_files/train_vqa_\*.csv`"):
        read(root, vqa=True)
    write_table(root / "dataset/radgenome_files/train_region_report.csv", ("Volumename", "Text"), [])
    with pytest.raises(CorpusError, match=r"\['Anatomy', 'Sentence'\] are missing"):
        read(root)
