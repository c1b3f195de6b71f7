"""From studies to what trainers read."""

from pathlib import Path

import pytest
import torch
from datasets import DatasetDict, List, Nifti, Value
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from hf_mu2.data.build import load_corpus
from hf_mu2.data.study import make_study
from hf_mu2.data.views import (
    impression_rows,
    online_rows,
    preference_rows,
    report_text,
    sft_rows,
    view_dataset,
    view_features,
    vqa_rows,
)
from tests.data.corpora import write_folder, write_table
from tests.tiny import tiny_processor


@pytest.fixture
def studies(tmp_path: Path) -> DatasetDict:
    return load_corpus("folder", write_folder(tmp_path / "corpus"), cache_dir=tmp_path / "cache")


def study(**fields):
    return make_study(
        "s1",
        **{"corpus": "folder", "split": "train", "egress": True, "images": ["ct.nii"], "findings": "A mass."}
        | fields,
    )


def test_a_report_is_written_with_the_headings_it_has():
    assert report_text(study(impression="Cancer.")) == "Findings: A mass.\nImpression: Cancer."
    assert report_text(study()) == "Findings: A mass."
    assert report_text(study(impression="Cancer."), "impression") == "Cancer."
    assert report_text(study(findings=" ")) == ""


def test_a_study_without_volume_or_text_gives_no_row():
    assert sft_rows(study(images=[])) == [] == sft_rows(study(findings=""))
    assert sft_rows(study(), target="impression") == [] == impression_rows(study())
    assert (
        preference_rows(study(), rejected="") == [] == preference_rows(study(), rejected="Findings: A mass.")
    )


def test_an_online_row_asks_as_sft_does_and_keeps_the_report_beside_it(studies):
    (row,), (sft,) = online_rows(study()), sft_rows(study())
    assert row == {
        **{name: sft[name] for name in row if name != "reference"},
        "reference": "Findings: A mass.",
    }
    assert online_rows(study(images=[])) == [] == online_rows(study(), target="impression")
    rows = view_dataset(studies, "online", target="findings")["train"]
    assert rows.features == view_features("online", List(Nifti())) and "completion" not in rows.column_names
    assert rows["reference"][0] == "Nodule of 3 mm, no effusion."


def test_an_answer_names_the_letter_and_the_option():
    question = {"question": "Where?", "answer": "left", "options": ["right", "left"], "kind": "place"}
    (row,) = vqa_rows(study(questions=[question]))
    assert row["prompt"][0]["content"] == "Where?\nA. right\nB. left"
    assert row["completion"][0]["content"] == "B. left" and row["kind"] == "place"
    assert vqa_rows(study(questions=[question], images=[])) == []


def test_the_same_study_is_always_asked_the_same_question_and_others_differently():
    prompts = {
        sft_rows({**study(region="chest+abdomen"), "study_id": f"s{i}"})[0]["prompt"][0]["content"]
        for i in range(40)
    }
    assert len(prompts) == 6 and all("chest and abdomen" in prompt for prompt in prompts)
    assert sft_rows(study()) == sft_rows(study())


def test_views_keep_the_splits_the_ids_and_the_lazy_images(studies):
    rows = view_dataset(studies, "sft", target="findings")
    assert {split: part["study_id"] for split, part in rows.items()} == {
        split: part["study_id"] for split, part in studies.items()
    }
    assert rows["train"].features == view_features("sft", List(Nifti()))
    assert rows["train"]["patient_id"] == studies["train"]["patient_id"]
    first = rows["train"][0]
    assert first["completion"] == [{"role": "assistant", "content": "Nodule of 3 mm, no effusion."}]
    assert first["images"][0].get_filename() == studies["train"][0]["images"][0].get_filename()


def test_an_impression_is_text_alone(studies):
    rows = view_dataset(studies["train"], "impression")
    assert "images" not in rows.features and len(rows) == 4
    assert rows[0]["prompt"][0]["content"].endswith("\n\nFindings: Nodule of 3 mm, no effusion.")


def test_references_stay_text(tmp_path):
    root = write_folder(tmp_path / "corpus")
    table = (
        (root / "metadata.csv").read_text().replace("\ns", "\n0,s").replace("study_id", "channel,study_id")
    )
    (root / "metadata.csv").write_text(table)
    rows = view_dataset(load_corpus("folder", root, "train", cache_dir=tmp_path), "sft")
    assert rows.features["images"] == List(Value("string")) and '"channel":0' in rows[0]["images"][0]


def test_a_stream_gives_the_same_rows(tmp_path):
    root = write_folder(tmp_path / "corpus")
    stored = view_dataset(load_corpus("folder", root, "train", cache_dir=tmp_path), "sft")
    streamed = view_dataset(load_corpus("folder", root, "train", streaming=True), "sft")
    assert streamed.features == stored.features
    for row, other in zip(streamed, stored, strict=True):
        assert row.pop("images")[0].get_filename() == other.pop("images")[0].get_filename()
        assert row == other


def test_a_split_without_rows_is_told_and_a_view_without_any_refused(tmp_path, studies, caplog):
    question = {"question": "Where?", "answer": "left"}
    with pytest.raises(ValueError, match="The view `vqa` needs studies"):
        view_dataset(studies, "vqa")
    root = write_folder(tmp_path / "asked", num_studies=2)
    (root / "metadata.csv").unlink()
    rows = [
        {"study_id": "a", "volume": "ct0.nii.gz", "split": "train", "questions": [question]},
        {"study_id": "b", "volume": "ct1.nii.gz", "split": "test", "findings": "A mass."},
    ]
    asked = view_dataset(load_corpus("folder", write_table(root, rows), cache_dir=tmp_path), "vqa")
    assert list(asked) == ["train"] and "no rows of test" in caplog.text


@pytest.mark.parametrize(
    ("view", "options", "message"),
    [("dpo", {}, "A view is one of sft"), ("sft", {"tone": 1}, r"\['target'\], got \['tone'\]")],
)
def test_an_unknown_view_or_option_is_refused(studies, view, options, message):
    with pytest.raises(ValueError, match=message):
        view_dataset(studies, view, **options)


def test_a_dataset_that_holds_no_studies_is_refused(studies):
    with pytest.raises(ValueError, match="starts from studies"):
        view_dataset(studies["train"].select_columns(["findings"]), "impression")


def test_stock_collators_take_the_rows(studies):
    processor = tiny_processor()
    rows = view_dataset(studies["train"], "sft")
    batch = DataCollatorForVisionLanguageModeling(processor, max_length=512)([rows[0], rows[1]])
    assert len(batch["pixel_values"]) == 2 and bool((batch["labels"] != -100).any())
    pairs = [preference_rows(row, rejected="Findings: Nothing.") for row in studies["train"].select([0, 1])]
    batch = DataCollatorForVisionPreference(processor, max_length=512)([pair for (pair,) in pairs])
    assert len(batch["input_ids"]) == 4 and torch.isfinite(batch["pixel_values"]).all()
