"""Opening a corpus as a dataset: types, splits, cache, streaming, what is left out."""

import json
import logging
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, List, Nifti, Value

from hf_mu2.data import build
from hf_mu2.data.build import CORPORA, corpus_info, load_corpus, read_corpus, survey_corpus
from hf_mu2.data.corpus import CorpusError, Drops
from hf_mu2.data.study import make_study, study_features
from hf_mu2.tables import TableError
from tests.data.corpora import write_folder, write_table


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "corpus")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_every_split_comes_by_name_and_one_alone(root, cache):
    every = load_corpus("folder", root, cache_dir=cache)
    assert isinstance(every, DatasetDict) and list(every) == ["train", "test"]
    assert every["train"]["study_id"] == ["s0", "s1", "s2", "s3"]
    alone = load_corpus("folder", root, "test", cache_dir=cache)
    assert isinstance(alone, Dataset) and alone["study_id"] == ["s4", "s5"]
    assert alone.features == study_features()


def test_nifti_volumes_are_opened_lazily_and_equal_the_files(root, cache):
    image = load_corpus("folder", root, "train", cache_dir=cache)[1]["images"][0]
    assert nib.is_proxy(image.dataobj)
    np.testing.assert_array_equal(image.dataobj, nib.load(root / "ct1.nii.gz").dataobj)


def test_one_entry_that_is_no_plain_nifti_makes_the_column_text(root, cache):
    (root / "dicom").mkdir()
    with (root / "metadata.csv").open("a") as table:
        table.write("s9,p9,test,dicom,A mass.,Mass.,1\n")
    rows = load_corpus("folder", root, "train", cache_dir=cache)
    assert rows.features["images"] == List(Value("string"))
    assert rows[0]["images"] == [str(root / "ct0.nii.gz")]


@pytest.mark.parametrize("entry", ["ct0.nii.gz", "dicom"])
def test_streaming_gives_the_same_rows_and_types(root, cache, entry):
    (root / "dicom").mkdir()
    with (root / "metadata.csv").open("a") as table:
        table.write(f"s9,p9,test,{entry},A mass.,Mass.,1\n")
    stored, streamed = (
        load_corpus("folder", root, cache_dir=cache),
        load_corpus("folder", root, streaming=True),
    )
    assert isinstance(streamed, IterableDatasetDict) and list(streamed) == list(stored)
    for split, rows in streamed.items():
        assert isinstance(rows, IterableDataset) and rows.features == stored[split].features
        for row, other in zip(rows, stored[split], strict=True):
            images, others = row.pop("images"), other.pop("images")
            assert row == other
            for image, file in zip(images, others, strict=True):
                assert image == file or np.array_equal(image.dataobj, file.dataobj)


def test_an_unchanged_index_keeps_its_tables_and_a_changed_one_is_never_served(root, cache):
    first = load_corpus("folder", root, "train", cache_dir=cache)
    again = load_corpus("folder", root, "train", cache_dir=cache)
    assert first.cache_files == again.cache_files and first._fingerprint == again._fingerprint
    table = root / "metadata.csv"
    table.write_text(table.read_text().replace("Nodule 0.", "Nodule X."))
    changed = load_corpus("folder", root, "train", cache_dir=cache)
    assert changed[0]["impression"] == "Nodule X." and changed.cache_files != first.cache_files


def test_a_volume_that_appears_later_is_found(root, cache):
    (root / "ct0.nii.gz").rename(root / "later")
    assert "s0" not in load_corpus("folder", root, "train", cache_dir=cache)["study_id"]
    (root / "later").rename(root / "ct0.nii.gz")
    assert "s0" in load_corpus("folder", root, "train", cache_dir=cache)["study_id"]


def test_what_is_left_out_is_told_and_written_beside_the_tables(root, cache, caplog):
    (root / "ct0.nii.gz").unlink()
    with caplog.at_level(logging.WARNING, logger="hf_mu2"):
        rows = load_corpus("folder", root, "train", cache_dir=cache)
    assert "1 report without volume" in caplog.text and "hf-mu2 data inspect folder" in caplog.text
    account = json.loads((Path(rows.cache_files[0]["filename"]).parent / "drops.json").read_text())
    assert account["drops"] == {"report without volume": {"count": 1, "examples": ["s0"]}}


def test_no_half_written_table_stays(root, cache):
    (root / "metadata.csv").write_bytes((root / "metadata.csv").read_bytes() + b"\xff\n")
    with pytest.raises(TableError, match="UTF-8"):
        load_corpus("folder", root, cache_dir=cache)
    assert list((cache / "hf_mu2" / "folder").iterdir()) == []


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_without_studies_is_refused(root, cache, streaming):
    with pytest.raises(CorpusError, match=r"`validation` of `folder` has none.*'train': 4"):
        load_corpus("folder", root, "validation", cache_dir=cache, streaming=streaming)


def test_a_corpus_with_nothing_left_says_why(root, cache):
    for volume in root.glob("*.nii.gz"):
        volume.unlink()
    with pytest.raises(CorpusError, match=r"no studies at all\. Left out: 6 report without volume"):
        load_corpus("folder", root, cache_dir=cache)


def test_a_study_id_comes_once(tmp_path):
    write_table(tmp_path, [{"study_id": "a", "report": "Mass."}] * 2)
    with pytest.raises(CorpusError, match="`a` comes again in `folder`"):
        list(read_corpus("folder", tmp_path))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("openj", "."), {}, "A corpus is one of ct_rate"),
        (("folder", "nowhere"), {}, "does not exist"),
        (("folder", "."), {"eggress": True}, r"Options of `folder` are .*'egress'"),
    ],
)
def test_a_wrong_name_root_or_option_is_refused_with_what_there_is(arguments, options, message):
    with pytest.raises(CorpusError, match=message):
        list(read_corpus(*arguments, **options))


def test_every_corpus_states_its_facts():
    for name in CORPORA:
        info = corpus_info(name)
        assert info.name == name and info.licence and info.terms and info.split_policy


def test_fifty_thousand_rows_pass_in_bounded_memory(tmp_path, cache, monkeypatch):
    def read_studies(root: Path, drops: Drops, *, num: int = 0) -> Iterator[dict[str, Any]]:
        for i in range(num):
            yield make_study(f"s{i}", corpus="many", split="train", egress=False, findings=f"{i} " * 500)

    monkeypatch.setattr(build, "_module", lambda name: SimpleNamespace(read_studies=read_studies))
    load_corpus("many", tmp_path, cache_dir=cache, num=2_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = load_corpus("many", tmp_path, cache_dir=cache, num=50_000)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    table_mb = Path(rows["train"].cache_files[0]["filename"]).stat().st_size / 2**20
    assert len(rows["train"]) == 50_000 and table_mb > 120 and grown_mb < 60


def test_the_survey_counts_without_writing(root, tmp_path):
    survey = survey_corpus("folder", root)
    assert survey.studies == {"train": 4, "test": 2} and survey.is_lazy
    assert survey.digest == survey_corpus("folder", root).digest
    assert survey.digest != survey_corpus("folder", root, egress=True).digest


def test_nothing_is_decoded_to_open_a_corpus(root, cache):
    (root / "ct0.nii.gz").write_bytes(b"not a volume")
    rows = load_corpus("folder", root, "train", cache_dir=cache)
    assert rows.cast_column("images", List(Nifti(decode=False)))[0]["images"][0]["path"] == str(
        root / "ct0.nii.gz"
    )
