import json

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.reporting.embed import embed
from hf_mu2.reporting.inference import Reader
from hf_mu2.reporting.predict import predict
from hf_mu2.reporting.studies import open_studies, place_volumes
from tests.tiny import tiny_nifti, tiny_volume


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def dataset(tmp_path):
    """A folder that `load_dataset` opens: a prompt per study, and one study of two volumes."""
    folder = tmp_path / "dataset"
    (folder / "train").mkdir(parents=True)
    lines = []
    for index in range(4):
        names = [f"ct{index}.nii.gz"] + (["ct9.nii.gz"] if index == 2 else [])
        for name in names:
            nib.save(tiny_nifti(index), folder / "train" / name)
        prompt = [{"role": "user", "content": f"Question {index}?"}]
        lines.append({"images_file_names": names, "study_id": f"study-{index}", "prompt": prompt})
    (folder / "train" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_every_study_gets_a_row_in_the_datasets_order(dataset, reader, tmp_path):
    result = predict(open_studies(dataset), tmp_path / "out.jsonl", reader, batch_size=3, max_new_tokens=4)
    rows = rows_of(result.out)
    assert [row["study_id"] for row in rows] == [f"study-{index}" for index in range(4)]
    assert all(row["finish_reason"] in ("eos", "length") for row in rows)
    assert [len(row["volumes"]) for row in rows] == [1, 1, 2, 1]
    manifest = json.loads(result.manifest.read_text())
    assert next(iter(manifest)) == "notice" and manifest["num_studies"] == 4 and manifest["failed"] == {}


def test_the_batch_size_changes_no_report(dataset, reader, tmp_path):
    studies = open_studies(dataset)
    texts = [
        [
            row["candidate"]
            for row in rows_of(predict(studies, out, reader, batch_size=size, max_new_tokens=6).out)
        ]
        for size, out in ((1, tmp_path / "one.jsonl"), (4, tmp_path / "four.jsonl"))
    ]
    assert texts[0] == texts[1]


def test_a_killed_prediction_continues_at_the_next_batch(dataset, reader, tmp_path, monkeypatch):
    studies, whole = open_studies(dataset), tmp_path / "whole.jsonl"
    predict(studies, whole, reader, batch_size=1, max_new_tokens=4)
    answer, answered = Reader.answer, []

    def answer_twice(self, conversations, max_new_tokens):
        if len(answered) == 2:
            raise KeyboardInterrupt
        answered.append(len(conversations))
        return answer(self, conversations, max_new_tokens)

    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(Reader, "answer", answer_twice)
    with pytest.raises(KeyboardInterrupt):
        predict(studies, out, reader, batch_size=1, max_new_tokens=4)
    assert not out.exists()
    partial = tmp_path / ".out.jsonl.0.partial"
    partial.write_text(
        partial.read_text() + '{"study_id": "study-2", "candi'
    )  # cut off in the middle of a line
    answered.clear()
    predict(studies, out, reader, batch_size=1, max_new_tokens=4)
    assert len(answered) == 2
    assert rows_of(out) == rows_of(whole)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_a_prediction_is_not_resumed_with_other_settings(dataset, reader, tmp_path, monkeypatch):
    def killed(self, conversations, max_new_tokens):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Reader, "answer", killed)
        predict(open_studies(dataset), tmp_path / "out.jsonl", reader, max_new_tokens=4)
    with pytest.raises(ValueError, match="max_new_tokens"):
        predict(open_studies(dataset), tmp_path / "out.jsonl", reader, max_new_tokens=5)


def test_a_finished_prediction_is_not_overwritten(dataset, reader, tmp_path):
    (tmp_path / "out.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="exists and is complete"):
        predict(open_studies(dataset), tmp_path / "out.jsonl", reader)


def test_a_broken_volume_is_listed_and_never_replaced(volumes, reader, tmp_path):
    result = predict(open_studies(volumes), tmp_path / "out.jsonl", reader, batch_size=2, max_new_tokens=2)
    assert [row["study_id"] for row in rows_of(result.out)] == ["ct0", "ct1", "ct2", "ct4"]
    assert list(result.failed) == ["ct3"] and "ct3.nii.gz" in result.failed["ct3"]
    assert json.loads(result.manifest.read_text())["failed"] == result.failed


def test_a_question_replaces_the_prompts_of_the_dataset(dataset, reader):
    from hf_mu2.reporting.studies import load_study

    studies = open_studies(dataset)
    asked = load_study(studies, 0, reader, "Is there an effusion?").conversation
    own = load_study(studies, 0, reader).conversation
    assert asked[0]["content"][-1]["text"] == "Is there an effusion?"
    assert own[0]["content"][-1]["text"] == "Question 0?"


def test_several_splits_must_be_chosen_from(dataset):
    (dataset / "test").mkdir()
    for path in (dataset / "train").iterdir():
        (dataset / "test" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="--split"):
        open_studies(dataset)
    assert len(open_studies(dataset, "test").ids) == 4


def test_volumes_fill_the_image_blocks_of_a_prompt_in_order():
    first, second = tiny_volume(0), tiny_volume(1)
    blocks = [
        {"type": "image"},
        {"type": "text", "text": "before"},
        {"type": "image"},
        {"type": "text", "text": "after"},
    ]
    content = place_volumes([{"role": "user", "content": blocks}], [first, second])[0]["content"]
    assert content[0]["image"] is first and content[2]["image"] is second
    with pytest.raises(ValueError, match="one image block per volume"):
        place_volumes([{"role": "user", "content": blocks}], [first])


def test_volumes_go_before_the_first_question_of_a_prompt_without_blocks():
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    kinds = [[block["type"] for block in turn["content"]] for turn in place_volumes(turns, [tiny_volume()])]
    assert kinds == [["image", "text"], ["text"], ["text"]]


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_embeddings_are_one_finite_vector_per_study(dataset, reader, tmp_path, ending):
    out = tmp_path / f"studies.{ending}"
    assert embed(open_studies(dataset), out, reader, batch_size=3) == {}
    if ending == "npz":
        with np.load(out) as table:
            ids, vectors = table["study_id"].tolist(), table["embedding"]
    else:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(out)
        ids, vectors = table["study_id"].to_pylist(), np.array(table["embedding"].to_pylist())
    assert ids == [f"study-{index}" for index in range(4)]
    assert vectors.shape == (4, reader.model.config.text_config.hidden_size) and np.isfinite(vectors).all()
    assert np.abs(vectors[0] - vectors[1]).max() > 0


def test_embeddings_depend_on_the_question(volumes, reader, tmp_path):
    studies = open_studies(volumes)
    vectors = []
    for index, question in enumerate(("Is there a nodule?", "How large is the heart?")):
        failed = embed(studies, tmp_path / f"{index}.npz", reader, question=question)
        assert list(failed) == ["ct3"]
        vectors.append(np.load(tmp_path / f"{index}.npz")["embedding"])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-6


def test_embeddings_refuse_an_unknown_ending(volumes, reader, tmp_path):
    with pytest.raises(ValueError, match=r"\.npz or \.parquet"):
        embed(open_studies(volumes), tmp_path / "studies.csv", reader)
