"""CT-RATE: both versions give the same HU, every scan is yielded or dropped once, odd trees are told apart."""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.data.build import load_corpus, read_corpus
from hf_mu2.data.corpus import CorpusError, Drops, cut_validation
from hf_mu2.data.ct_rate import DAMAGED, label_table
from hf_mu2.data.phantom import make_phantom
from hf_mu2.data.phantom.ct_rate_tree import (
    LABEL_COLUMNS,
    METADATA_COLUMNS,
    REPORT_COLUMNS,
    v1_image,
    write_ct_rate_tree,
    write_table,
)
from hf_mu2.data.study import FINDING_LABELS
from hf_mu2.model.volume_mu2 import VolumeError, load_volume, volume_reference
from tests.corpus_step import take_training_step
from tests.paths import shared_data_or_skip

SPACINGS = ((6.0, 5.0, 5.0), (5.0, 5.0, 5.0))
GEOMETRY = {
    "ConvolutionKernel": "B",
    "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
    "XYSpacing": "[0.7, 0.8]",
    "RescaleIntercept": -1024,
    "RescaleSlope": 1,
    "NumberofSlices": 300,
    "ZSpacing": 1.0,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_ct_rate_tree(tmp_path_factory.mktemp("ct_rate"), num_train=2, num_valid=1, spacings=SPACINGS)


def make_tree(
    root: Path,
    reports: dict[str, tuple[str, str]],
    *,
    volumes: list[str] | None = None,
    folder: str = "{}_fixed",
    metadata: dict[str, dict] | None = None,
    not_chest: str = "",
) -> Path:
    """Write a tree of empty volumes: a builder opens none."""
    for part, word in (("train", "train"), ("valid", "validation")):
        names = [name for name in reports if name.startswith(part)]
        base = root / "dataset"
        rows = [[name, "", "", *reports[name]] for name in names]
        write_table(base / f"radiology_text_reports/{word}_reports.csv", REPORT_COLUMNS, rows)
        labels = [[name, *[0] * 17, 1] for name in names]
        write_table(base / f"multi_abnormality_labels/{part}_predicted_labels.csv", LABEL_COLUMNS, labels)
        facts = [
            [
                (GEOMETRY | given).get(column, "") if column != "VolumeName" else name
                for column in METADATA_COLUMNS
            ]
            for name, given in (metadata or {name: {} for name in names}).items()
            if name.startswith(part)
        ]
        write_table(base / f"metadata/{word}_metadata.csv", METADATA_COLUMNS, facts)
        (base / f"metadata/no_chest_{part}.txt").write_text(not_chest if part == "train" else "")
    for name in reports if volumes is None else volumes:
        place_volume(root, folder.format(name.split("_")[0]), name)
    return root


def place_volume(root: Path, folder: str, name: str) -> Path:
    part, patient, letter, _ = name.removesuffix(".nii.gz").split("_")
    path = root / "dataset" / folder / f"{part}_{patient}" / f"{part}_{patient}_{letter}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def read(root: Path, **options) -> tuple[list[dict], Drops]:
    drops = Drops()
    return list(read_corpus("ct_rate", root, drops, **options)), drops


TWO_SCANS = {
    "train_1_a_1.nii.gz": ("Normal.", "None."),
    "train_1_a_2.nii.gz": ("Normal.", "None."),
    "valid_7_b_1.nii.gz": ("A nodule.", "Nodule."),
}


@pytest.mark.parametrize("version", ["fixed", "v1"])
def test_an_archive_becomes_a_training_step(tree, version, tmp_path):
    dataset = load_corpus("ct_rate", tree, "train", version=version, cache_dir=tmp_path, validation_share=0.0)
    assert dataset["study_id"] == ["train_1_a", "train_2_a", "train_2_b"]
    take_training_step(dataset)


def test_both_versions_give_the_hu_that_were_drawn_and_left_stays_left(tree):
    fixed, v1 = read(tree, version="fixed")[0], read(tree, version="v1")[0]
    assert [row["study_id"] for row in fixed] == [row["study_id"] for row in v1] and len(fixed) == 4
    intercepts = set()
    for seed, *rows in zip((0, 1, 2, 4), fixed, v1):
        drawn = make_phantom(seed, spacing=SPACINGS[1])
        for row in rows:
            volume = load_volume(row["images"][0])
            np.testing.assert_array_equal(volume.array, drawn.volume)
            assert volume.spacing == pytest.approx(SPACINGS[1])
            assert row["findings"] == drawn.report.findings and row["labels"] == drawn.labels
        intercepts.add(json.loads(rows[1]["images"][0])["rescale"][1])
    assert intercepts == {-1024, -8192}


def test_a_real_pair_reads_the_same_as_fixed_and_as_v1(tmp_path):
    make_tree(tmp_path, {})
    metadata, reports = {}, {}
    for number, intercept in ((1, -1024), (2, -8192)):
        name = f"valid_1_a_{number}.nii.gz"
        source = shared_data_or_skip("ct", f"chest_dxA0001_a_{number}.nii.gz")
        image = nib.load(source)
        shutil.copyfile(source, place_volume(tmp_path, "valid_fixed", name))
        nib.save(v1_image(image, intercept), place_volume(tmp_path, "valid", name))
        width, height, depth = (float(mm) for mm in image.header.get_zooms())
        reports[name] = ("A mass in the left upper lobe.", "Mass.")
        metadata[name] = {
            "XYSpacing": str([height, width]),
            "ZSpacing": depth,
            "RescaleIntercept": intercept,
            "NumberofSlices": image.shape[2],
        }
    make_tree(tmp_path, reports, volumes=[], metadata=metadata)
    fixed, v1 = (read(tmp_path, version=version, reconstructions="all")[0] for version in ("fixed", "v1"))
    for row, other, second in zip(fixed, v1, (-8192, -1024), strict=True):
        volume, same = load_volume(row["images"][0]), load_volume(other["images"][0])
        np.testing.assert_array_equal(volume.array, same.array)
        assert volume.spacing == pytest.approx(same.spacing)
        with pytest.raises(VolumeError, match="rescale was applied twice"):
            load_volume(volume_reference(row["images"][0], rescale=(1, second)))
    stored = json.loads(v1[0]["images"][0]) | {"rescale": [1.0, 0.0]}
    with pytest.raises(VolumeError, match=r"intercept .* was not applied"):
        load_volume(json.dumps(stored))


@pytest.mark.parametrize("second", [-1000, -1024, -8192])
@pytest.mark.parametrize("padding", [None, -2000, -3024])
def test_a_second_rescale_is_caught_with_and_without_padding(second, padding):
    hu = make_phantom(3, spacing=(7, 5, 5)).volume.copy()
    if padding is not None:
        hu[:, :6] = padding
        load_volume(hu, spacing=(7, 5, 5))  # padding alone is no reason
    with pytest.raises(VolumeError, match="rescale was applied twice"):
        load_volume(hu.astype(np.int32) + second, spacing=(7, 5, 5))
    with pytest.raises(VolumeError, match=r"applied twice|no air near -1000"):
        load_volume(np.maximum(hu.astype(np.int32) + second, -1024), spacing=(7, 5, 5))


def test_the_tables_have_the_columns_of_the_real_ones():
    base = shared_data_or_skip("corpora", "CT-RATE", "dataset")
    for path, columns in (
        ("metadata/validation_metadata.csv", METADATA_COLUMNS),
        ("multi_abnormality_labels/train_predicted_labels.csv", LABEL_COLUMNS),
        ("multi_abnormality_labels/valid_predicted_labels.csv", LABEL_COLUMNS),
    ):
        with (base / path).open() as stream:
            assert tuple(stream.readline().strip().split(",")) == columns


def test_the_real_tables_have_the_published_counts_and_prevalences():
    root = shared_data_or_skip("corpora", "CT-RATE")
    begin = time.process_time()
    rows, _ = read(
        root, require_volumes=False, require_reports=False, reconstructions="all", validation_share=0.0
    )
    table = label_table(root, validation_share=0.0)
    assert time.process_time() - begin < 30
    dropped_by_hlip = len(DAMAGED)
    parts = {split: [row for row in rows if row["split"] == split] for split in ("train", "test")}
    counts = {
        split: (
            len(part),
            table.splits.count(split),
            len({row["patient_id"] for row in part}),
        )
        for split, part in parts.items()
    }
    assert counts == {"train": (47_149 - dropped_by_hlip, 24_128, 20_000), "test": (3_039, 1_564, 1_304)}
    percent = [
        round(100 * np.mean([row["labels"][label] for row in parts["test"]]), 1) for label in FINDING_LABELS
    ]
    published = "10.3 28.5 10.7 7.4 25.2 13.7 26.0 19.7 23.5 44.8 39.0 27.3 12.4 8.3 11.7 19.1 10.9 8.2"
    assert percent == [float(number) for number in published.split()]
    assert np.mean((table.labels[np.array(table.splits) == "train"] == 0).all(1)) == pytest.approx(
        0.113, abs=0.02
    )


def test_every_scan_is_yielded_or_dropped_once(tree):
    rows, drops = read(tree)
    assert [row["study_id"] for row in rows] == ["train_1_a", "train_2_a", "train_2_b", "valid_1_a"]
    assert drops.reasons == {"on the no_chest list": 3}
    assert drops.examples["on the no_chest list"] == ["train_3_a", "valid_2_a", "valid_2_b"]
    volumes, drops = read(tree, reconstructions="all")
    assert len(volumes) == 2 * len(rows) and drops.reasons == {"on the no_chest list": 6}
    assert Counter(row["patient_id"] for row in volumes)["train_2"] == 4


def test_the_order_is_that_of_the_names_not_of_the_tables(tmp_path):
    names = [f"train_{n}_{letters}_1.nii.gz" for n, letters in ((10, "a"), (2, "b"), (2, "aa"), (2, "a"))]
    rows, _ = read(make_tree(tmp_path, dict.fromkeys(names, ("Normal.", ""))))
    assert [row["study_id"] for row in rows] == ["train_2_a", "train_2_b", "train_2_aa", "train_10_a"]


@pytest.mark.parametrize(
    ("facts", "chosen"),
    [
        ([{"ZSpacing": 1.5}, {"ZSpacing": 0.75}], 2),  # thin slices
        (
            [{"ZSpacing": 1.5, "ConvolutionKernel": "YA"}, {"ZSpacing": 1.499}],
            2,
        ),  # one protocol: the soft kernel
        ([{"ConvolutionKernel": "['Br60f', '3']"}, {"ConvolutionKernel": "['Br40f', '3']"}], 2),
        ([{"ConvolutionKernel": "L"}, {"ConvolutionKernel": "UB"}], 2),  # anything before a lung kernel
        ([{}, {}], 1),  # the lowest number
        (
            [{"ZSpacing": 0.75, "NumberofSlices": 1617}, {"ZSpacing": 5, "NumberofSlices": 60}],
            2,
        ),  # no stack of series
        ([{"ZSpacing": ""}, {"ZSpacing": 5, "NumberofSlices": 60}], 2),
    ],
)
def test_one_reconstruction_is_chosen_by_a_rule(tmp_path, facts, chosen):
    names = [f"train_1_a_{number}.nii.gz" for number in (1, 2)]
    root = make_tree(tmp_path, dict.fromkeys(names, ("Normal.", "")), metadata=dict(zip(names, facts)))
    (row,), _ = read(root)
    assert row["images"][0].endswith(f"train_1_a_{chosen}.nii.gz")
    assert json.loads(row["metadata"])["reconstructions"] == 2


def test_without_metadata_the_first_reconstruction_is_used(tmp_path):
    root = make_tree(tmp_path, TWO_SCANS)
    (root / "dataset/metadata/train_metadata.csv").unlink()
    rows, _ = read(root)
    assert rows[0]["images"][0].endswith("train_1_a_1.nii.gz")


def test_auto_takes_fixed_where_it_is_and_v1_elsewhere(tmp_path):
    root = make_tree(tmp_path, TWO_SCANS, volumes=["train_1_a_1.nii.gz"])
    place_volume(root, "train", "train_1_a_1.nii.gz")
    place_volume(root, "valid", "valid_7_b_1.nii.gz")
    rows, drops = read(root)
    assert [json.loads(row["metadata"])["version"] for row in rows] == ["fixed", "v1"]
    assert json.loads(rows[1]["images"][0])["spacing"] == [1.0, 0.7, 0.8]
    assert drops.notes["another reconstruction is used: the volume is missing"] == 1


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"ZSpacing": ""}, "no spacing, rescale or orientation"),
        ({"ZSpacing": "nan"}, "no spacing, rescale or orientation"),
        ({"XYSpacing": "0.7"}, "no spacing, rescale or orientation"),
        ({"RescaleIntercept": ""}, "no spacing, rescale or orientation"),
        ({"RescaleSlope": 0}, "not positive"),
        ({"ImageOrientationPatient": "[0.9, 0.43, 0, -0.43, 0.9, 0]"}, "oblique"),
    ],
)
def test_a_v1_volume_without_geometry_is_dropped_and_a_fixed_one_is_not(tmp_path, facts, reason):
    name = "train_1_a_1.nii.gz"
    root = make_tree(tmp_path, {name: ("Normal.", "")}, metadata={name: facts})
    assert len(read(root)[0]) == 1
    place_volume(root, "train", name)
    rows, drops = read(root, version="v1")
    assert not rows and reason in next(iter(drops.reasons))


@pytest.mark.parametrize(
    ("orientation", "codes"),
    [
        ("[1, 0, 0, 0, 1, 0]", "LPS"),
        ("[1.000000, 0.000000, 0.000000, 0.000000, 1.000000, -0.000000]", "LPS"),
        ("[-1, 0, 0, 0, -1, 0]", "RAS"),
        ("[-1, 0, 0, 0, 1, 0]", "RPI"),
    ],
)
def test_v1_axes_follow_the_orientation_of_the_table(tmp_path, orientation, codes):
    name = "train_1_a_1.nii.gz"
    facts = {name: {"ImageOrientationPatient": orientation}}
    root = make_tree(tmp_path, {name: ("Normal.", "")}, metadata=facts, folder="{}")
    (row,), _ = read(root)
    assert json.loads(row["images"][0])["orientation"] == codes


def test_v1_needs_the_metadata_table(tmp_path):
    root = make_tree(tmp_path, TWO_SCANS, folder="{}")
    (root / "dataset/metadata/train_metadata.csv").unlink()
    with pytest.raises(CorpusError, match=r"metadata/train_metadata.csv.*v1 headers are blank"):
        read(root)


def test_patients_never_straddle_splits_and_the_official_validation_is_the_test(tmp_path):
    names = [f"train_{n}_{letter}_{k}.nii.gz" for n in range(1, 60) for letter in "ab" for k in (1, 2)]
    root = make_tree(tmp_path, dict.fromkeys([*names, "valid_1_a_1.nii.gz"], ("Normal.", "")))
    rows, _ = read(root, reconstructions="all", validation_share=0.3)
    splits: dict[str, set] = {}
    for row in rows:
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert splits.pop("valid_1") == {"test"}
    assert {patient: {cut_validation(patient, 0.3)} for patient in splits} == splits
    assert 5 < sum(found == {"validation"} for found in splits.values()) < 30


@pytest.mark.parametrize("word", ["valid", "validation"])
def test_either_spelling_of_the_split_is_read(tmp_path, word):
    root = write_ct_rate_tree(
        tmp_path, num_train=1, num_valid=1, versions=("fixed",), spacings=SPACINGS[:1], valid_word=word
    )
    rows, drops = read(root / "dataset", vqa=True)
    assert [row["split"] for row in rows if row["patient_id"] == "valid_1"] == ["test"]
    assert rows[-1]["questions"] and set(drops.reasons) == {"on the no_chest list"}


def test_what_the_release_left_in_the_text_is_taken_out_and_counted(tmp_path):
    texts = {
        "train_1_a_1.nii.gz": ("Normal.", "Not given."),
        "train_2_a_1.nii.gz": ("Normal.", "not given"),
        "train_3_a_1.nii.gz": ("Normal.", ""),
        "train_4_a_1.nii.gz": ("NaN", "Normal."),
        "train_5_a_1.nii.gz": ('• Heart:\n  normal. " Lungs clear', "Normal."),
        "train_6_a_1.nii.gz": ("Not given.", ""),
    }
    rows, drops = read(make_tree(tmp_path, texts))
    assert [(row["findings"], row["impression"]) for row in rows] == [
        *[("Normal.", "")] * 3,
        ("", "Normal."),
        ("Heart: normal. Lungs clear", "Normal."),
    ]
    assert drops.notes == {
        "impression: not given": 2,
        "impression: empty": 2,
        "findings: empty": 1,
        "findings: not given": 1,
        "findings: stray quotation marks or bullets removed": 1,
    }
    assert drops.reasons == {"no report, or an empty one": 1}


def test_lists_and_volumes_known_to_be_bad_are_dropped(tmp_path):
    names = ["train_1_a_1.nii.gz", "train_1_a_2.nii.gz", *(f"{name}.nii.gz" for name in DAMAGED)]
    listed = "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz\n\nheads\n"
    root = make_tree(tmp_path, dict.fromkeys(names, ("Normal.", "")), not_chest=listed)
    rows, drops = read(root)
    assert [row["images"][0][-18:] for row in rows] == ["train_1_a_2.nii.gz"]
    assert drops.reasons == {"damaged, as HLIP found": 2}  # two scans, three volumes
    assert drops.notes["another reconstruction is used: on the no_chest list"] == 1
    assert drops.notes["line of a no_chest list that names no volume"] == 1


def test_a_missing_no_chest_list_is_noted(tmp_path):
    root = make_tree(tmp_path, TWO_SCANS)
    (root / "dataset/metadata/no_chest_train.txt").unlink()
    assert read(root)[1].notes["no_chest_train.txt is missing: heads and others are not left out"] == 1


def test_volumes_without_report_and_reports_without_volume_are_counted(tmp_path):
    root = make_tree(tmp_path, TWO_SCANS, volumes=["train_1_a_1.nii.gz", "train_9_a_1.nii.gz"])
    rows, drops = read(root)
    assert [row["study_id"] for row in rows] == ["train_1_a"]
    assert drops.reasons == {"the volume is missing": 1, "no report, or an empty one": 1}
    rows, drops = read(root, require_volumes=False, require_reports=False)
    assert [(row["study_id"], len(row["images"])) for row in rows] == [
        ("train_1_a", 1),
        ("train_9_a", 1),
        ("valid_7_b", 0),
    ]
    assert drops.notes["kept without its volume"] == 1 and drops.notes["without labels"] == 1


def test_rows_and_files_that_are_odd_are_counted(tmp_path):
    root = make_tree(tmp_path, TWO_SCANS)
    table = root / "dataset/radiology_text_reports/train_reports.csv"
    table.write_text(
        table.read_text()
        + "train_1_a_1.nii.gz,,,Repeated.,\ntrain_x_1.nii.gz,,,Odd.,\n../../train_3_a_1.nii.gz,,,Odd.,\nshort,row\n"
    )
    place_volume(root, "train_fixed", "train_5_a_1.nii.gz").rename(
        root / "dataset/train_fixed/train_1/train_1_a/train_5_a_1.nii.gz"
    )
    place_volume(root, "valid_fixed", "train_6_a_1.nii.gz")
    rows, drops = read(root)
    assert len(rows) == 2 and rows[0]["findings"] == "Normal."
    assert drops.reasons == {
        "row of train_reports.csv with a name that is none": 2,
        "row of train_reports.csv with the wrong number of fields": 1,
        "file whose name or folder is not CT-RATE's": 2,
    }
    assert drops.notes == {"repeated in train_reports.csv: its first row is used": 1}


def test_reconstructions_that_disagree_are_noted(tmp_path):
    root = make_tree(tmp_path, TWO_SCANS | {"train_1_a_2.nii.gz": ("Another text.", "")})
    table = root / "dataset/multi_abnormality_labels/train_predicted_labels.csv"
    table.write_text(table.read_text().replace("train_1_a_2.nii.gz,0", "train_1_a_2.nii.gz,1"))
    (row, _), drops = read(root)
    assert row["findings"] == "Normal." and row["labels"]["Medical material"] == 0
    assert drops.notes == {
        "reconstructions differ in train_reports.csv": 1,
        "reconstructions differ in train_predicted_labels.csv": 1,
    }


def test_an_empty_label_is_unknown_and_another_number_is_refused(tmp_path):
    root = make_tree(tmp_path, TWO_SCANS)
    table = root / "dataset/multi_abnormality_labels/train_predicted_labels.csv"
    text = table.read_text()
    table.write_text(text.replace("train_1_a_1.nii.gz,0", "train_1_a_1.nii.gz,"))
    (row, _), drops = read(root)
    assert row["labels"]["Medical material"] is None and drops.notes["a label is empty: unknown"] == 1
    assert label_table(root).labels[0].tolist() == [-1, *[0] * 16, 1]
    table.write_text(text.replace("train_1_a_1.nii.gz,0", "train_1_a_1.nii.gz,0.3"))
    with pytest.raises(CorpusError, match=r"0 or 1, `Medical material` of train_1_a_1.nii.gz is '0.3'"):
        read(root)


def test_a_link_out_of_the_root_is_dropped(tmp_path):
    root = make_tree(tmp_path / "tree", TWO_SCANS, volumes=["valid_7_b_1.nii.gz"])
    (tmp_path / "elsewhere.nii.gz").touch()
    path = place_volume(root, "train_fixed", "train_1_a_1.nii.gz")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.nii.gz")
    rows, drops = read(root)
    assert len(rows) == 1 and drops.reasons == {"a link that leaves the root": 1}


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda base: (base / "radiology_text_reports/train_reports.csv").unlink(), r"train_reports.csv"),
        (
            lambda base: (base / "radiology_text_reports/train_reports.csv").write_text("VolumeName,Text\n"),
            r"columns VolumeName, Findings_EN.*are missing",
        ),
        (lambda base: (base / "metadata/train_metadata.csv").write_text(""), r"are missing, there are none"),
        (
            lambda base: (base / "radiology_text_reports/train_reports.csv").write_bytes(
                b"VolumeName,Findings_EN,Impressions_EN\ntrain_1_a_1.nii.gz,\xe9,\n"
            ),
            r"train_reports.csv` is not UTF-8 near byte",
        ),
        (
            lambda base: (base / "radiology_text_reports/train_reports.csv").write_text(
                'VolumeName,Findings_EN,Impressions_EN\ntrain_1_a_1.nii.gz,"cut off'
            ),
            r"train_reports.csv` is not csv",
        ),
        (lambda base: (base / "train_fixed").rename(base / "other"), None),
    ],
)
def test_a_damaged_table_gives_one_clear_error(tmp_path, break_it, message):
    root = make_tree(tmp_path, TWO_SCANS)
    break_it(root / "dataset")
    if message is None:  # one part without volumes is a partial download, counted
        assert read(root)[1].reasons == {"the volume is missing": 1}
        (root / "dataset/valid_fixed").rename(root / "dataset/more")
        message = r"must hold volumes under train_fixed, valid_fixed"
    with pytest.raises(CorpusError, match=message):
        read(root)


def test_options_that_are_none_are_named(tmp_path):
    root = make_tree(tmp_path, TWO_SCANS)
    for option in ("version", "reconstructions"):
        with pytest.raises(CorpusError, match=f"`{option}` is one of"):
            read(root, **{option: "v3"})
    with pytest.raises(CorpusError, match=r"needs `vqa/train_vqa.json`.*vqa=False"):
        read(root, vqa=True)
    with pytest.raises(CorpusError, match=r"needs `radiology_text_reports/train_reports.csv` or"):
        read(root / "dataset/metadata", require_volumes=False)
    with pytest.raises(CorpusError, match="needs `multi_abnormality_labels"):
        label_table(root / "dataset/metadata")


@pytest.mark.slow
def test_fifty_thousand_reports_stream_in_bounded_memory(tmp_path):
    names = [f"train_{patient}_a_{number}.nii.gz" for patient in range(1, 25_001) for number in (1, 2)]
    text = "The heart is of normal size. " * 40
    base = tmp_path / "dataset"
    rows = ([name, "", "", text, "Normal."] for name in names)
    write_table(base / "radiology_text_reports/train_reports.csv", REPORT_COLUMNS, rows)
    assert (base / "radiology_text_reports/train_reports.csv").stat().st_size > 55e6
    script = (
        "import resource\n"
        "from hf_mu2.data.build import read_corpus\n"
        "from hf_mu2.data import ct_rate\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"count = sum(1 for _ in read_corpus('ct_rate', {str(tmp_path)!r}, require_volumes=False))\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, growth_kib = map(int, done.stdout.split())
    assert count == 25_000
    assert growth_kib < 60_000, f"{growth_kib / 1024:.0f} MiB for 57 MB of reports"
