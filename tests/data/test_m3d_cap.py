import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hf_mu2.data.build import load_corpus, read_corpus
from hf_mu2.data.corpus import CorpusError, Drops
from hf_mu2.data.m3d_cap import INDEX, convert_m3d_cap, read_studies
from hf_mu2.data.phantom import make_phantom
from hf_mu2.data.phantom.m3d_cap_tree import WINDOW, write_m3d_cap_tree
from hf_mu2.data.pictures import BLACK, stack_slices
from hf_mu2.model.volume_mu2 import load_volume
from tests.corpus_step import take_training_step

SPACING = (12.0, 8.0, 8.0)


@pytest.fixture(scope="module")
def phantoms():
    return [make_phantom(seed, spacing=SPACING) for seed in range(3)]


@pytest.fixture
def tree(phantoms, tmp_path: Path) -> Path:
    return write_m3d_cap_tree(tmp_path / "m3d", phantoms)


@pytest.fixture
def converted(tree) -> Path:
    assert convert_m3d_cap(tree, window=WINDOW, spacing=SPACING) == {}
    return tree


def read(root: Path, **options: Any) -> tuple[dict[str, dict[str, Any]], Drops]:
    drops = Drops()
    return {row["study_id"]: row for row in read_corpus("m3d_cap", root, drops, **options)}, drops


def test_pictures_must_be_converted_under_stated_assumptions(tree):
    with pytest.raises(CorpusError, match="convert_m3d_cap"):
        list(read_studies(tree, Drops()))


def test_every_case_gives_its_first_axial_series_without_a_named_window(converted):
    rows, drops = read(converted)
    assert {name: row["split"] for name, row in rows.items()} == {
        "ct_case_000007": "train",
        "ct_case_000008": "test",
        "ct_case_000009": "validation",
    }
    row = rows["ct_case_000007"]
    assert row["images"][0].endswith("ct_case/000007/Axial_non_contrast.nii.gz")
    assert drops.notes["values and spacing assumed from pictures: not HU"] == 3
    assert drops.notes["series left out: coronal"] == 3
    assumed = json.loads(row["metadata"])["assumed"]
    assert assumed["window"] == list(WINDOW) and assumed["spacing_mm"] == list(SPACING)
    assert assumed["values"].startswith("not HU")


def test_all_series_of_a_case_stay_with_their_patient(converted):
    rows, _ = read(converted, all_series=True)
    assert len(rows) == 6
    assert {row["patient_id"] for name, row in rows.items() if "000007" in name} == {"ct_case_000007"}


def test_the_caption_is_the_findings_and_the_discussion_where_there_are_none(converted, phantoms):
    rows, _ = read(converted)
    source = {name: json.loads(row["metadata"])["caption"] for name, row in rows.items()}
    assert source == {
        "ct_case_000007": "findings",
        "ct_case_000008": "findings",
        "ct_case_000009": "discussion",
    }
    for phantom, name in zip(phantoms, sorted(rows), strict=True):
        assert rows[name]["findings"] == " ".join(phantom.report.findings.split())


def test_text_of_the_prepared_tree_is_taken_whole(converted):
    (converted / "ct_case/000007/text.txt").write_text("Normal  chest,\nno nodule.")
    rows, _ = read(converted)
    assert rows["ct_case_000007"]["findings"] == "Normal chest, no nodule."
    assert json.loads(rows["ct_case_000007"]["metadata"])["caption"] == "text"


def test_stacked_slices_keep_left_front_and_top_and_the_window_where_it_shows(tree, phantoms):
    """Inside the window the values come back within a grey level, black becomes air, white the window's top."""
    level, width = WINDOW
    for series, spacing, plane in (
        ("Axial_non_contrast", SPACING, "axial"),
        ("Coronal_non_contrast", (SPACING[1], SPACING[0], SPACING[2]), "coronal"),
    ):
        image = stack_slices(tree / "ct_case/000007" / series, window=WINDOW, spacing=spacing, plane=plane)
        volume = load_volume(image)
        assert volume.spacing == SPACING
        truth = phantoms[0].volume.astype(np.float32)
        step = width / 255
        shown = (truth > level - width / 2 + (BLACK + 1) * step) & (truth < level + width / 2)
        assert shown.mean() > 0.1
        assert np.abs(volume.array - truth)[shown].max() <= step
        assert (volume.array[truth < level - width / 2] == -1000).all()
        assert (volume.array[truth > level + width / 2] == level + width / 2).all()


def test_the_header_says_that_the_values_are_not_hu(converted):
    header = nib.load(converted / "nifti/ct_case/000007/Axial_non_contrast.nii.gz").header
    assert b"not HU" in header["descrip"].tobytes()


def test_conversion_continues_and_never_mixes_assumptions(converted):
    path = converted / "nifti/ct_case/000007/Axial_non_contrast.nii.gz"
    before = path.stat().st_mtime_ns
    other = converted / "nifti/ct_case/000008/Axial_non_contrast.nii.gz"
    content = nib.load(other).get_fdata()
    other.unlink()
    assert convert_m3d_cap(converted, window=WINDOW, spacing=SPACING) == {}
    assert path.stat().st_mtime_ns == before
    np.testing.assert_array_equal(nib.load(other).get_fdata(), content)
    with pytest.raises(CorpusError, match="other"):
        convert_m3d_cap(converted, window=(-600, 1500), spacing=SPACING)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "2.png").unlink(), "without a gap"),
        (lambda folder: (folder / "2.png").write_bytes(b"no picture"), "readable"),
        (lambda folder: Image.new("L", (3, 3)).save(folder / "2.png"), "one size"),
        (lambda folder: (folder / "2.png").rename(folder / "scout.png"), "scout.png"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "has none"),
    ],
)
def test_a_series_that_cannot_be_stacked_is_named_and_dropped(tree, spoil, reason):
    spoil(tree / "ct_case/000007/Axial_non_contrast")
    failed = convert_m3d_cap(tree, window=WINDOW, spacing=SPACING)
    assert list(failed) == ["ct_case/000007/Axial_non_contrast"] and reason in next(iter(failed.values()))
    rows, drops = read(tree)
    assert len(rows) == 2 and drops.reasons == {"pictures not converted": 1}


@pytest.mark.parametrize(
    ("window", "spacing"), [((40, 0), (5, 1, 1)), ((40, 400), (5, 0, 1)), ((40, 400), (5, 1))]
)
def test_impossible_assumptions_are_refused(tree, window, spacing):
    with pytest.raises(CorpusError):
        stack_slices(tree / "ct_case/000007/Axial_non_contrast", window=window, spacing=spacing)


def test_folders_with_accents_are_found_under_the_name_without(tree):
    (tree / "ct_case/000007/Axial_non_contrast").rename(tree / "ct_case/000007/Axial_non_contrást")
    assert convert_m3d_cap(tree, window=WINDOW, spacing=SPACING) == {}
    rows, _ = read(tree)
    assert rows["ct_case_000007"]["images"][0].endswith("Axial_non_contrást.nii.gz")


def test_a_case_in_two_splits_goes_to_the_later_one(converted):
    index = json.loads((converted / INDEX).read_text())
    index["test"].append(index["train"][1])
    index["test1k"] = index["train"]
    (converted / INDEX).write_text(json.dumps(index))
    rows, drops = read(converted)
    assert rows["ct_case_000007"]["split"] == "test"
    assert drops.notes["listed in several splits, kept in the last"] == 1


def test_a_series_listed_twice_and_a_volume_that_is_not_listed_are_counted(converted):
    index = json.loads((converted / INDEX).read_text())
    index["train"].append(index["train"][0])
    del index["test"][:]
    (converted / INDEX).write_text(json.dumps(index))
    rows, drops = read(converted)
    assert len(rows) == 2 and drops.notes["series listed twice"] == 1
    assert drops.reasons == {"volume without report": 2}


def test_paths_with_the_prepared_folder_in_front_are_understood(converted):
    text = (converted / INDEX).read_text()
    (converted / INDEX).write_text(text.replace('"ct_case/', '"M3D_Cap_npy/ct_case/'))
    assert len(read(converted)[0]) == 3


def test_text_that_is_missing_empty_or_not_utf8_is_counted(converted):
    (converted / "ct_case/000007/text.txt").unlink()
    (converted / "ct_case/000008/text.txt").write_text("a b\n")
    (converted / "ct_case/000009/text.txt").write_bytes(b"study_findings: opacit\xe9")
    rows, drops = read(converted)
    assert not rows
    assert drops.reasons == {"volume without report": 1, "report without text": 1, "text is not UTF-8": 1}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / INDEX).unlink(), INDEX),
        (
            lambda root: (root / INDEX).write_text('{"train": [{"image": "ct_case/1/a.npy"}]}'),
            "`image` and `text`",
        ),
        (lambda root: (root / INDEX).write_text((root / INDEX).read_text()[:-9]), "ends early"),
        (
            lambda root: (root / INDEX).write_text((root / INDEX).read_text().replace("000007", "..")),
            "lie in ct_case or ct_quizze",
        ),
    ],
)
def test_a_bad_index_gives_one_clear_error(converted, spoil, message):
    spoil(converted)
    with pytest.raises(CorpusError, match=message):
        list(read_studies(converted, Drops()))


def test_a_link_that_leaves_the_root_is_refused(converted, tmp_path):
    path = converted / "ct_case/000007/text.txt"
    path.rename(tmp_path / "elsewhere.txt")
    path.symlink_to(tmp_path / "elsewhere.txt")
    with pytest.raises(CorpusError, match="leaves"):
        list(read_studies(converted, Drops()))


def test_an_archive_opens_lazily_and_trains(tree, tmp_path):
    convert_m3d_cap(tree, window=WINDOW, spacing=(5.0, 4.0, 4.0))
    dataset = load_corpus("m3d_cap", tree, cache_dir=tmp_path / "cache")
    assert nib.is_proxy(dataset["train"][0]["images"][0].dataobj)
    take_training_step([dataset["train"][0], dataset["test"][0]])
