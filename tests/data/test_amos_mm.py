import json
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.data.amos_mm import DROP_IDS, FUSED, QUESTIONS, REPORTS, read_studies
from hf_mu2.data.build import load_corpus, read_corpus
from hf_mu2.data.corpus import CorpusError, Drops
from hf_mu2.data.json_records import JsonRecords
from hf_mu2.data.phantom import make_phantom
from hf_mu2.data.phantom.amos_mm_tree import write_amos_mm_tree
from hf_mu2.data.views import vqa_rows
from hf_mu2.model.volume_mu2 import load_volume
from tests.corpus_step import take_training_step
from tests.paths import shared_data_or_skip

SPACING = (12, 8, 8)


@pytest.fixture(scope="module")
def phantoms():
    kinds = [("chest", "RAS"), ("abdomen", "LPS"), ("chest", "RAS"), ("abdomen", "RAS")]
    return [
        make_phantom(seed, spacing=SPACING, region=region, orientation=orientation)
        for seed, (region, orientation) in enumerate(kinds)
    ]


@pytest.fixture
def tree(phantoms, tmp_path: Path) -> Path:
    return write_amos_mm_tree(tmp_path / "amos", phantoms)


def edit(path: Path, change: Any) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def read(root: Path, **options: Any) -> tuple[list[dict[str, Any]], Drops]:
    drops = Drops()
    return list(read_corpus("amos_mm", root, drops, **options)), drops


def test_findings_are_the_filled_regions_in_order(tree, phantoms):
    edit(
        tree / REPORTS,
        lambda index: index["training"][0]["labels"]["report"].update(
            findings={"pelvis": "Normal bladder.", "abdomen": "", "chest": "Clear lungs."},
            impressions={"chest": ["Normal chest.", "No mass."], "pelvis": "Normal pelvis."},
        ),
    )
    rows, drops = read(tree)
    study = next(row for row in rows if row["study_id"] == "amos_5000")
    assert [(s["name"], s["text"]) for s in study["sections"]] == [
        ("chest", "Clear lungs."),
        ("pelvis", "Normal bladder."),
    ]
    assert study["findings"] == "Clear lungs.\nNormal bladder."
    assert study["impression"] == "Normal chest.\nNo mass.\nNormal pelvis."
    assert study["region"] == "chest+pelvis"
    assert not drops.reasons


def test_the_official_validation_part_is_the_test_split(tree):
    rows, _ = read(tree)
    assert {row["study_id"]: row["split"] for row in rows if row["split"] == "test"} == {"amos_5003": "test"}
    all_in_validation, _ = read(tree, validation_share=1.0)
    assert {row["split"] for row in all_in_validation} == {"test", "validation"}


def test_one_fused_file_and_two_files_say_the_same(tree, phantoms, tmp_path):
    fused = write_amos_mm_tree(tmp_path / "fused", phantoms, is_fused=True)
    assert (fused / FUSED).exists() and not (fused / REPORTS).exists()

    def content(root):
        return [row | {"images": [Path(image).name for image in row["images"]]} for row in read(root)[0]]

    assert content(fused) == content(tree)


def test_the_answer_is_the_text_of_its_option(tree):
    rows, _ = read(tree)
    asked = [(row, question) for row in rows for question in row["questions"]]
    index = {
        Path(item["image"]).name.removesuffix(".nii.gz"): item["labels"]["qa"]
        for part in ("training", "validation")
        for item in json.loads((tree / QUESTIONS).read_text())[part]
    }
    assert asked
    for row, question in asked:
        item = index[row["study_id"]][0]
        assert question["answer"] == item["options"][item["answer"]]
        assert question["options"] == list(item["options"].values())
        assert question["kind"] == item["type"]
        assert vqa_rows(row)[0]["completion"][0]["content"].startswith(f"{item['answer']}. ")


def test_a_question_whose_answer_is_no_option_is_left_out_and_counted(tree):
    edit(tree / QUESTIONS, lambda index: index["training"][0]["labels"]["qa"][0].update(answer="E"))
    rows, drops = read(tree)
    assert not next(row for row in rows if row["study_id"] == "amos_5000")["questions"]
    assert drops.notes["question left out: no text, or its answer is none of its options"] == 1


def test_left_stays_left_with_a_negative_x_axis(tree, phantoms):
    rows, _ = read(tree)
    path = next(row for row in rows if row["study_id"] == "amos_5001")["images"][0]
    assert nib.load(path).affine[0, 0] < 0
    volume = load_volume(path)
    np.testing.assert_array_equal(volume.array, np.maximum(phantoms[1].volume, -1024))
    np.testing.assert_allclose(volume.affine, phantoms[1].affine, atol=1e-3)


def test_a_4d_file_gives_the_volume_asked_for_and_is_counted(tree, phantoms):
    path = tree / "imagesTr" / "amos_5000.nii.gz"
    image = phantoms[0].nifti()
    other = np.full(image.shape, -1000, np.int16)
    nib.save(nib.Nifti1Image(np.stack([other, np.asarray(image.dataobj)], -1), image.affine), path)
    rows, drops = read(tree)
    study = next(row for row in rows if row["study_id"] == "amos_5000")
    assert drops.notes["4-D: volume 1 taken, counted from 0"] == 1
    np.testing.assert_array_equal(
        load_volume(study["images"][0]).array, np.maximum(phantoms[0].volume, -1024)
    )
    unseen, _ = read(tree, channel=None)
    assert {row["study_id"]: row["images"] for row in unseen}["amos_5000"] == [str(path)]
    _, dropped = read(tree, channel=2)
    assert dropped.reasons == {"4-D without the volume asked for": 1}


def test_a_damaged_header_is_left_to_loading(tree):
    (tree / "imagesTr" / "amos_5000.nii.gz").write_bytes(b"\x1f\x8b not gzip")
    (tree / "imagesTr" / "amos_5001.nii.gz").write_bytes(b"")
    rows, _ = read(tree)
    assert len(rows) == 4


def test_duplicates_of_both_archives_are_counted_and_those_of_validation_win(tree):
    validation = tree / "imagesVa" / "amos_5003.nii.gz"
    (tree / "imagesTr" / "amos_5003.nii.gz").write_bytes(validation.read_bytes())
    rows, drops = read(tree)
    assert next(row for row in rows if row["study_id"] == "amos_5003")["images"] == [str(validation)]
    assert drops.notes["volume in both archives, that of the validation part is used"] == 1
    edit(
        tree / REPORTS,
        lambda index: index["training"].append(
            index["validation"][0] | {"image": "./imagesTr/amos_5003.nii.gz"}
        ),
    )
    rows, drops = read(tree)
    assert [row["split"] for row in rows if row["study_id"] == "amos_5003"] == ["test"]
    assert drops.reasons == {"listed in both parts, kept in test": 1}


def test_equal_findings_never_straddle_splits(tree, phantoms, tmp_path):
    root = write_amos_mm_tree(tmp_path / "same", [phantoms[0]] * 12 + [phantoms[2]] * 12 + [phantoms[1]])
    rows, _ = read(root, validation_share=0.5)
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["findings"], set()).add(row["split"])
    assert len(rows) == 25 and all(len(where) == 1 for where in splits.values())


def test_a_training_study_with_the_findings_of_a_test_study_is_dropped(phantoms, tmp_path):
    root = write_amos_mm_tree(tmp_path / "leak", [phantoms[0], phantoms[2], phantoms[0]])
    rows, drops = read(root)
    assert {row["study_id"] for row in rows} == {"amos_5001", "amos_5002"}
    assert drops.reasons == {"training study with the findings of a test study": 1}


def test_drop_ids_and_the_hidden_test_part_are_counted(tree):
    edit(tree / REPORTS, lambda index: index.update(testing=[{"image": "./imagesTs/amos_0001.nii.gz"}]))
    rows, drops = read(tree, drop_ids=["amos_5000"])
    assert len(rows) == 3
    assert drops.reasons == {"in `drop_ids`": 1, "official test part: its report is hidden": 1}
    assert len(DROP_IDS) == 17


def test_report_without_volume_and_volume_without_report_are_counted(tree):
    (tree / "imagesTr" / "amos_5000.nii.gz").rename(tree / "imagesTr" / "amos_6999.nii.gz")
    rows, drops = read(tree)
    assert len(rows) == 3
    assert drops.reasons == {"report without volume": 1, "volume without report": 1}
    assert drops.examples["report without volume"] == ["amos_5000"]


def test_a_study_listed_twice_is_counted_once(tree):
    edit(tree / REPORTS, lambda index: index["training"].append(index["training"][0]))
    rows, drops = read(tree)
    assert len(rows) == 4 and drops.reasons == {"listed twice, the first is kept": 1}


def test_text_that_is_not_utf8_is_counted(tree):
    path = tree / REPORTS
    edit(path, lambda index: index["training"][0]["labels"]["report"]["findings"].update(chest="Caf@."))
    path.write_bytes(path.read_bytes().replace(b"Caf@", b"Caf\xe9"))
    rows, drops = read(tree)
    assert len(rows) == 3 and drops.reasons == {"text is not UTF-8": 1}


def test_a_study_without_findings_and_questions_is_counted(tree):
    edit(tree / REPORTS, lambda index: index["training"][0]["labels"]["report"]["findings"].update(chest=" "))
    edit(tree / QUESTIONS, lambda index: index["training"][0]["labels"].update(qa=[]))
    rows, drops = read(tree)
    assert len(rows) == 3 and drops.reasons == {"no findings and no questions": 1}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / REPORTS).unlink(), "report_generation_train_val.json` or `dataset.json"),
        (lambda root: (root / QUESTIONS).unlink(), "vqa_train_val.json"),
        (lambda root: (root / REPORTS).write_text(""), "is empty"),
        (lambda root: (root / REPORTS).write_text((root / REPORTS).read_text()[:-40]), "ends early"),
        (lambda root: (root / REPORTS).write_text('{"train": [{"image": "a"}]}'), "training.*validation"),
        (lambda root: edit(root / REPORTS, lambda i: i["training"][0].pop("image")), "names its `image`"),
        (lambda root: edit(root / REPORTS, lambda i: i["training"][0].pop("labels")), "`labels`.*amos_5000"),
        (
            lambda root: edit(root / REPORTS, lambda i: i["training"][0]["labels"]["report"].pop("findings")),
            "labels.report.findings.*amos_5000",
        ),
        (
            lambda root: edit(root / REPORTS, lambda i: i["training"][0].update(image="../x/amos_1.nii.gz")),
            "leaves",
        ),
    ],
)
def test_a_bad_tree_gives_one_clear_error(tree, spoil, message):
    spoil(tree)
    with pytest.raises(CorpusError, match=message):
        list(read_studies(tree, Drops()))


def test_a_link_that_leaves_the_root_is_refused(tree, tmp_path):
    path = tree / "imagesTr" / "amos_5000.nii.gz"
    path.rename(tmp_path / "elsewhere.nii.gz")
    path.symlink_to(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(CorpusError, match="leaves"):
        list(read_studies(tree, Drops()))


def test_metadata_holds_numbers_only(tree):
    edit(tree / REPORTS, lambda index: index["training"][0]["meta"].update(PatientName="Doe", age=60))
    rows, _ = read(tree)
    metadata = json.loads(next(row for row in rows if row["study_id"] == "amos_5000")["metadata"])
    assert set(metadata) == {"spacing", "age"}


def test_an_archive_opens_lazily_and_trains(tree, tmp_path):
    dataset = load_corpus("amos_mm", tree, "train", cache_dir=tmp_path / "cache", validation_share=0.0)
    assert nib.is_proxy(dataset[0]["images"][0].dataobj)
    take_training_step(dataset)


def test_ids_and_keys_are_those_of_the_real_index(tree):
    real = json.loads(shared_data_or_skip("corpora", "AMOS-MM", "AMOSMM_bowang_index.json").read_text())
    names = {Path(item["image"]).parent.name for item in real["train"]}
    with JsonRecords(tree / REPORTS) as records:
        items = [records.read(span) for _, span, _ in records.places()]
    assert all(len(name) == len("amos_5000") and name.startswith("amos_") for name in names)
    assert {Path(item["image"]).name.removesuffix(".nii.gz") for item in items} <= {
        f"amos_{number:04d}" for number in range(5000, 5004)
    }
    assert {"amos_5000", "amos_5001"} <= names | {
        Path(item["image"]).name.removesuffix(".nii.gz") for item in real["validation"]
    }
    assert DROP_IDS & names
    assert all(len(item["meta"]["spacing"]) == len(real["train"][0]["spacing"]) for item in items)


def test_only_an_index_is_held_in_memory(tmp_path):
    root = tmp_path / "large"
    (root / "imagesTr").mkdir(parents=True)
    findings = "unremarkable" * 4_000
    with (root / FUSED).open("w") as stream:
        stream.write('{"training": [')
        for index in range(300):
            labels = {"report": {"findings": {"abdomen": f"{index} {findings}"}}, "qa": []}
            item = {"image": f"./imagesTr/amos_{index}.nii.gz", "labels": labels}
            stream.write(("," if index else "") + json.dumps(item))
        stream.write("]}")
    drops = Drops()
    tracemalloc.start()
    assert not list(read_studies(root, drops, channel=None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drops.reasons == {"report without volume": 300}
    assert peak < (root / FUSED).stat().st_size / 10
