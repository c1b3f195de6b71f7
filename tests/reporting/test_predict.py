import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.reporting.embed import embed, embed_batch
from hf_mu2.reporting.inference import Reader, load_reader, process_state
from hf_mu2.reporting.journal import SharedJournal
from hf_mu2.reporting.predict import predict
from hf_mu2.reporting.studies import load_study, open_studies, place_volumes
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
    assert all(next(iter(row.items())) == ("notice", reader.notice) for row in rows)
    manifest = json.loads(result.manifest.read_text())
    assert next(iter(manifest)) == "notice" and manifest["num_studies"] == 4 and manifest["failed"] == {}
    assert manifest["command"].startswith("hf-mu2 predict DATASET --out FILE --model tiny-mu2")
    assert manifest["versions"]["torch"] and manifest["warnings"] == []
    assert (manifest["model_digest"], len(manifest["dataset_digest"])) == (reader.digest, 16)


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

    def answer_twice(self, inputs, max_new_tokens):
        if len(answered) == 2:
            raise KeyboardInterrupt
        answered.append(len(inputs["input_ids"]))
        return answer(self, inputs, max_new_tokens)

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


@pytest.fixture
def killed(dataset, reader, tmp_path, monkeypatch):
    """An unfinished prediction of `dataset`."""

    def kill(self, inputs, max_new_tokens):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Reader, "answer", kill)
        predict(open_studies(dataset), tmp_path / "out.jsonl", reader, max_new_tokens=4)
    return tmp_path / "out.jsonl"


def test_a_prediction_is_not_resumed_with_other_settings(dataset, reader, killed):
    with pytest.raises(ValueError, match="another max_new_tokens for"):
        predict(open_studies(dataset), killed, reader, max_new_tokens=5)


def test_a_prediction_is_not_resumed_with_a_namesake_of_its_checkpoint(dataset, reader, killed, checkpoint):
    namesake = killed.parent / checkpoint.name
    shutil.copytree(checkpoint, namesake)
    weights = namesake / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # written again: perhaps another training
    other = load_reader(namesake, "cpu")
    assert other.name == reader.name
    with pytest.raises(ValueError, match="another model_digest for"):
        predict(open_studies(dataset), killed, other, max_new_tokens=4)


@pytest.mark.parametrize("change", ["question", "volume"])
def test_a_prediction_is_not_resumed_with_another_dataset_of_the_same_ids(dataset, reader, killed, change):
    if change == "question":
        table = dataset / "train" / "metadata.jsonl"
        table.write_text(table.read_text().replace("Question 1?", "Question 7?"))
    else:
        nib.save(tiny_nifti(1, (14, 40, 44)), dataset / "train" / "ct1.nii.gz")
    with pytest.raises(ValueError, match="another dataset_digest for"):
        predict(open_studies(dataset), killed, reader, max_new_tokens=4)


def test_settings_of_an_older_release_are_refused_and_not_a_crash(dataset, reader, killed):
    settings = killed.with_name(f".{killed.name}.settings.json")
    found = json.loads(settings.read_text())
    del found["model_digest"]
    settings.write_text(json.dumps(found | {"beams": 4}))
    with pytest.raises(ValueError, match="another model_digest, beams for"):
        predict(open_studies(dataset), killed, reader, max_new_tokens=4)


def test_rows_of_other_studies_stay_out(dataset, reader, killed):
    stray = {"study_id": "stranger", "candidate": "", "finish_reason": "eos", "volumes": []}
    killed.with_name(f".{killed.name}.1.partial").write_text(json.dumps(stray) + "\n")
    result = predict(open_studies(dataset), killed, reader, max_new_tokens=4)
    assert result.num_studies == 4 and "stranger" not in killed.read_text()
    assert json.loads(result.manifest.read_text())["num_resumed"] == 0


def test_an_unfinished_prediction_of_a_similar_name_is_left_alone(dataset, reader, killed):
    predict(open_studies(dataset), killed.with_name("out"), reader, max_new_tokens=4)
    assert killed.with_name(f".{killed.name}.settings.json").exists()


def test_a_half_line_is_cut_off_in_place(tmp_path):
    path = tmp_path / ".out.jsonl.0.partial"
    path.write_text('{"study_id": "a"}\n{"stu')
    inode = path.stat().st_ino
    journal = SharedJournal(tmp_path / "out.jsonl", {}, ["a", "b"], process_state())
    assert list(journal.finished) == ["a"]
    journal.add([{"study_id": "b"}])
    assert path.read_text() == '{"study_id": "a"}\n{"study_id": "b"}\n' and path.stat().st_ino == inode


def test_a_finished_prediction_is_not_overwritten(dataset, reader, tmp_path):
    (tmp_path / "out.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="exists and is complete"):
        predict(open_studies(dataset), tmp_path / "out.jsonl", reader)


def test_a_broken_volume_is_listed_and_never_replaced(volumes, reader, tmp_path):
    result = predict(open_studies(volumes), tmp_path / "out.jsonl", reader, batch_size=2, max_new_tokens=2)
    assert [row["study_id"] for row in rows_of(result.out)] == ["000000", "000001", "000002", "000004"]
    assert list(result.failed) == ["000003"]
    assert json.loads(result.manifest.read_text())["failed"] == result.failed


def test_no_file_name_of_a_folder_gets_out(volumes, reader, tmp_path):
    for path in list(volumes.iterdir()):
        path.rename(path.with_name(f"DOE_JANE_{path.name}"))
    result = predict(open_studies(volumes), tmp_path / "out.jsonl", reader, max_new_tokens=2)
    assert "`VOLUME`" in result.failed["000003"]
    failed = embed(open_studies(volumes), tmp_path / "out.npz", reader)
    written = result.out.read_text() + result.manifest.read_text() + json.dumps(failed)
    assert "DOE" not in written and str(tmp_path) not in written
    with np.load(tmp_path / "out.npz") as table:
        assert "DOE" not in str({name: table[name].tolist() for name in table.files})


@pytest.mark.parametrize("error", [PermissionError, ValueError])
def test_a_study_that_cannot_be_opened_does_not_stop_the_others(
    dataset, reader, tmp_path, monkeypatch, error
):
    load_volume = Reader.load_volume

    def deny(self, source):
        if source["path"].endswith("ct1.nii.gz"):
            raise error(f"denied: {source['path']}")
        return load_volume(self, source)

    monkeypatch.setattr(Reader, "load_volume", deny)
    result = predict(open_studies(dataset), tmp_path / "out.jsonl", reader, max_new_tokens=2)
    assert result.failed == {"study-1": "denied: VOLUME"} and result.num_studies == 3


def test_a_study_that_the_image_processor_refuses_does_not_stop_its_batch(
    dataset, reader, tmp_path, monkeypatch
):
    whole = predict(open_studies(dataset), tmp_path / "whole.jsonl", reader, max_new_tokens=2)
    prepare = Reader.prepare

    def refuse(self, conversations):
        if any(turns[0]["content"][-1]["text"] == "Question 1?" for turns in conversations):
            raise ValueError("constant volume")
        return prepare(self, conversations)

    monkeypatch.setattr(Reader, "prepare", refuse)
    result = predict(open_studies(dataset), tmp_path / "out.jsonl", reader, max_new_tokens=2)
    assert result.failed == {"study-1": "constant volume"}
    assert rows_of(result.out) == [row for row in rows_of(whole.out) if row["study_id"] != "study-1"]
    assert embed(open_studies(dataset), tmp_path / "out.npz", reader) == {}  # it asks one question of all


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Is there a nodule?"},
        {"messages": [{"role": "user", "content": "Is there a nodule?"}]},
        {
            "messages": [
                {"role": "user", "content": "Is there a nodule?"},
                {"role": "assistant", "content": "No."},
            ]
        },
    ],
    ids=["text", "question", "question and answer"],
)
def test_a_prompt_is_text_or_turns_with_or_without_the_answer(tmp_path, reader, row):
    folder = tmp_path / "asked"
    folder.mkdir()
    nib.save(tiny_nifti(), folder / "ct.nii.gz")
    (folder / "metadata.jsonl").write_text(json.dumps({"images_file_names": ["ct.nii.gz"], **row}) + "\n")
    studies = open_studies(folder)
    conversation = load_study(studies, 0, reader).conversation
    assert studies.ids == ["000000"] and len(conversation) == 1
    assert [block["type"] for block in conversation[0]["content"]] == ["image", "text"]
    assert conversation[0]["content"][1]["text"] == "Is there a nodule?"


def test_a_prompt_without_a_user_is_refused():
    with pytest.raises(ValueError, match="a turn of the user"):
        place_volumes([{"role": "system", "content": "Be brief."}], [tiny_volume()])


def test_a_question_replaces_the_prompts_of_the_dataset(dataset, reader):
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
            facts = {name: str(table[name]) for name in table.files}
    else:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(out)
        ids, vectors = table["study_id"].to_pylist(), np.array(table["embedding"].to_pylist())
        facts = {name.decode(): text.decode() for name, text in table.schema.metadata.items()}
    assert facts["notice"] == reader.notice and facts["question"] == DEFAULT_QUESTION
    assert facts["model_digest"] == reader.digest and facts["command"].startswith("hf-mu2 embed DATASET")
    assert ids == [f"study-{index}" for index in range(4)]
    assert vectors.shape == (4, reader.model.config.text_config.hidden_size) and np.isfinite(vectors).all()
    assert np.abs(vectors[0] - vectors[1]).max() > 0


def test_the_prompts_of_a_dataset_do_not_reach_its_embeddings(dataset, reader, tmp_path):
    shutil.copy(dataset / "train" / "ct0.nii.gz", dataset / "train" / "ct1.nii.gz")
    embed(open_studies(dataset), tmp_path / "out.npz", reader, batch_size=2)
    vectors = np.load(tmp_path / "out.npz")["embedding"]
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=0, atol=1e-6)


def test_embeddings_depend_on_the_question(volumes, reader, tmp_path):
    studies = open_studies(volumes)
    vectors = []
    for index, question in enumerate(("Is there a nodule?", "How large is the heart?")):
        failed = embed(studies, tmp_path / f"{index}.npz", reader, question=question)
        assert list(failed) == ["000003"]
        vectors.append(np.load(tmp_path / f"{index}.npz")["embedding"])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-6


def test_the_tower_gives_mean_and_maximum_of_its_patches(dataset, reader, tmp_path):
    studies = open_studies(dataset)
    for size in (1, 4):
        assert embed(studies, tmp_path / f"{size}.npz", reader, layer="tower", batch_size=size) == {}
    one, four = (np.load(tmp_path / f"{size}.npz") for size in (1, 4))
    assert one["embedding"].shape == (4, 2 * reader.model.config.vision_config.hidden_size)
    np.testing.assert_allclose(one["embedding"], four["embedding"], rtol=0, atol=1e-5)
    assert (str(one["layer"]), str(one["question"])) == ("tower", "")
    assert "--layer tower" in str(one["command"])


def test_volumes_of_a_study_are_averaged(dataset, reader, tmp_path):
    """The third study of the dataset has two volumes, here the first study's and the second's."""
    for source, copy in (("ct0", "ct2"), ("ct1", "ct9")):
        shutil.copy(dataset / "train" / f"{source}.nii.gz", dataset / "train" / f"{copy}.nii.gz")
    embed(open_studies(dataset), tmp_path / "out.npz", reader, layer="tower")
    vectors = np.load(tmp_path / "out.npz")["embedding"]
    np.testing.assert_allclose(vectors[2], (vectors[0] + vectors[1]) / 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", ["soft_prompts", "tower"])
def test_cached_features_embed_as_their_volumes_do(dataset, reader, tmp_path, layer):
    loaded = [load_study(open_studies(dataset), index, reader) for index in range(2)]
    inputs = reader.prepare([study.conversation for study in loaded])
    cached = inputs.copy()
    cached["vision_hidden_states"] = reader.model.model.vision_tower(
        cached.pop("pixel_values"), inputs["pixel_attention_mask"]
    ).last_hidden_state.detach()
    expected = embed_batch(loaded, inputs, reader, layer)
    np.testing.assert_allclose(embed_batch(loaded, cached, reader, layer), expected, rtol=0, atol=1e-5)


def test_a_question_to_the_tower_and_an_unknown_layer_are_refused(volumes, reader, tmp_path):
    studies = open_studies(volumes)
    with pytest.raises(ValueError, match="leave the question out"):
        embed(studies, tmp_path / "e.npz", reader, layer="tower", question="Is there a nodule?")
    with pytest.raises(ValueError, match="soft_prompts, tower"):
        embed(studies, tmp_path / "e.npz", reader, layer="last")


def test_embeddings_refuse_an_unknown_ending(volumes, reader, tmp_path):
    with pytest.raises(ValueError, match=r"\.npz or \.parquet"):
        embed(open_studies(volumes), tmp_path / "studies.csv", reader)
