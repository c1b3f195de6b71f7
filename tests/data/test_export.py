"""A corpus written as a folder opens in an environment without the package."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from datasets import load_dataset

from hf_mu2.data import export
from hf_mu2.data.build import read_corpus
from hf_mu2.data.corpus import CorpusError
from hf_mu2.data.export import export_corpus
from hf_mu2.model.volume_mu2 import load_volume
from tests.data.corpora import run_without_package, write_folder, write_table

OPEN = """
import json
import nibabel as nib
from datasets import List, Nifti, load_dataset
splits = load_dataset(sys.argv[1], cache_dir=sys.argv[2])
rows = next(iter(splits.values()))
images = rows[0].get("images") or []
print(json.dumps({
    "rows": {split: len(part) for split, part in splits.items()},
    "columns": rows.column_names,
    "nifti": rows.features.get("images") == List(Nifti()),
    "lazy": all(nib.is_proxy(image.dataobj) for image in images),
    "hu": [float(image.get_fdata().sum()) for image in images],
    "first": {name: value for name, value in rows[0].items() if name != "images"},
}))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "corpus")


@pytest.mark.parametrize("copy_volumes", [False, True])
def test_studies_reload_elsewhere_with_lazy_equal_images(root, tmp_path, copy_volumes):
    out = tmp_path / "out"
    export_corpus("folder", root, out, copy_volumes=copy_volumes)
    if copy_volumes:
        root.rename(tmp_path / "gone")
        out = out.rename(tmp_path / "moved")
    opened = run_without_package(OPEN, out, tmp_path / "cache")
    assert opened["rows"] == {"train": 4, "test": 2} and opened["nifti"] and opened["lazy"]
    source = tmp_path / ("gone" if copy_volumes else "corpus")
    assert opened["hu"] == [float(nib.load(source / "ct0.nii.gz").get_fdata().sum())]
    (row,) = [row for row in read_corpus("folder", source) if row["study_id"] == "s0"]
    assert opened["first"] == {name: value for name, value in row.items() if name != "images"}


def test_a_view_of_text_alone_is_json_lines(root, tmp_path):
    manifest = export_corpus("folder", root, tmp_path / "out", view="impression", split="test")
    assert manifest["rows"] == {"test": 2}
    lines = (tmp_path / "out" / "test.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["completion"] == [{"role": "assistant", "content": "Nodule 4."}]
    (rows,) = load_dataset(str(tmp_path / "out"), cache_dir=tmp_path / "cache").values()
    assert len(rows) == 2 and rows.split == "test" and rows[0]["prompt"][0]["role"] == "user"


def test_training_rows_are_what_trl_reads(root, tmp_path):
    export_corpus("folder", root, tmp_path / "out", view="sft", copy_volumes=True)
    rows = load_dataset(str(tmp_path / "out"), cache_dir=tmp_path / "cache")["train"]
    assert set(rows.features) == {"images", "prompt", "completion", "study_id", "patient_id", "egress"}
    assert (
        rows[0]["completion"][0]["content"] == "Findings: Nodule of 3 mm, no effusion.\nImpression: Nodule 0."
    )


def test_questions_of_one_study_share_its_volume(root, tmp_path):
    (root / "metadata.csv").unlink()
    questions = [
        {"question": f"{place}?", "answer": "yes", "options": ["yes", "no"]} for place in ("Left", "Right")
    ]
    write_table(root, [{"study_id": "a", "volume": "ct0.nii.gz", "split": "train", "questions": questions}])
    manifest = export_corpus("folder", root, tmp_path / "out", view="vqa", copy_volumes=True)
    assert manifest["rows"] == {"train": 2} and len(list((tmp_path / "out" / "train").glob("*.nii.gz"))) == 1


def test_what_is_no_plain_nifti_is_copied_as_nifti_in_hu(root, tmp_path):
    image = nib.load(root / "ct0.nii.gz")
    stacked = np.stack([np.asarray(image.dataobj)] * 2, axis=3)
    nib.save(nib.Nifti1Image(stacked, image.affine), root / "four.nii.gz")
    (root / "metadata.csv").unlink()
    write_table(
        root, [{"study_id": "a", "volume": "four.nii.gz", "channel": 1, "split": "test", "report": "A."}]
    )
    export_corpus("folder", root, tmp_path / "out", copy_volumes=True)
    written = load_volume(tmp_path / "out" / "test" / "a.0.nii.gz")
    expected = load_volume(root / "ct0.nii.gz")
    np.testing.assert_array_equal(written.array, expected.array)
    np.testing.assert_allclose(written.affine, expected.affine)


def test_a_killed_run_continues_and_copies_nothing_twice(root, tmp_path, monkeypatch):
    out, copied = tmp_path / "out", []
    copy = export.shutil.copyfile

    def copy_three(source, target):
        if len(copied) == 3:
            raise KeyboardInterrupt
        copied.append(source)
        return copy(source, target)

    monkeypatch.setattr(export.shutil, "copyfile", copy_three)
    with pytest.raises(KeyboardInterrupt):
        export_corpus("folder", root, out, copy_volumes=True)
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    assert not list(out.rglob(".partial*"))
    begun = list(copied)
    copied.clear()
    manifest = export_corpus("folder", root, out, copy_volumes=True)
    assert len(begun) == 3 == len(copied) and not set(begun) & set(copied)
    assert manifest["complete"] and manifest["rows"] == {"train": 4, "test": 2}


def test_another_corpus_or_setting_never_mixes_into_a_folder(root, tmp_path):
    export_corpus("folder", root, tmp_path / "out", view="sft")
    with pytest.raises(CorpusError, match="holds something else"):
        export_corpus("folder", root, tmp_path / "out", view="study")
    (root / "ct0.nii.gz").unlink()
    with pytest.raises(CorpusError, match="holds something else"):
        export_corpus("folder", root, tmp_path / "out", view="sft")


def test_an_unreadable_volume_is_told_and_its_study_left_out(root, tmp_path):
    (root / "four.nii").write_bytes(b"damaged")
    (root / "metadata.csv").unlink()
    rows = [
        {"study_id": "a", "volume": "ct0.nii.gz", "channel": 0, "split": "train", "report": "A."},
        {"study_id": "b", "volume": "four.nii", "channel": 0, "split": "train", "report": "B."},
    ]
    manifest = export_corpus("folder", write_table(root, rows), tmp_path / "out", copy_volumes=True)
    assert list(manifest["failed"]) == ["b"] and manifest["rows"] == {"train": 1}


def test_the_manifest_says_what_was_done(root, tmp_path):
    (root / "ct0.nii.gz").unlink()
    export_corpus("folder", root, tmp_path / "out", egress=True)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["options"] == {"egress": True} and manifest["licence"] == "other"
    assert manifest["drops"]["report without volume"]["count"] == 1
    assert {"hf-mu2", "datasets"} <= set(manifest["versions"]) and len(manifest["rows_digest"]) == 32


def test_a_split_without_studies_is_refused(root, tmp_path):
    with pytest.raises(CorpusError, match="`validation` of `folder` has none"):
        export_corpus("folder", root, tmp_path / "out", split="validation")
