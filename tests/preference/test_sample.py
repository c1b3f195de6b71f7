import json
import shutil

import nibabel as nib
import pytest
import torch

from hf_mu2.model.features_mu2 import is_features
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.preference.sample import sample, seed_of_batch
from hf_mu2.reporting.inference import Reader, generate_greedily, load_reader, read_answers
from hf_mu2.reporting.sampling import sample_candidates, sampling_config
from hf_mu2.reporting.studies import open_studies, read_batches
from hf_mu2.tables import read_rows
from tests.tiny import tiny_nifti


@pytest.fixture(scope="module")
def reader(checkpoint) -> Reader:
    return load_reader(checkpoint, "cpu")


@pytest.fixture
def dataset(tmp_path):
    """Five studies of four patients, one with two volumes, with prompts of unequal length."""
    folder = tmp_path / "dataset"
    (folder / "train").mkdir(parents=True)
    lines = []
    for index in range(5):
        names = [f"ct{index}.nii.gz"] + (["ct9.nii.gz"] if index == 2 else [])
        for name in names:
            nib.save(tiny_nifti(index), folder / "train" / name)
        row = {
            "images_file_names": names,
            "study_id": f"study-{index}",
            "patient_id": f"patient-{index // 2}",
            "egress": index != 3,
            "prompt": [{"role": "user", "content": "Describe it." + " Please." * index}],
        }
        lines.append(json.dumps(row))
    (folder / "train" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


SHORT = {"num_candidates": 3, "max_new_tokens": 6}


def rows_of(path) -> list[dict]:
    return list(read_rows(path))


def first_batch(dataset, reader, size=3):
    return next(read_batches(open_studies(dataset), list(range(size)), reader, None, size)).inputs


def count_calls(module: torch.nn.Module) -> list[int]:
    """Note the number of volumes of every pass through a module."""
    passes: list[int] = []
    module.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    return passes


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_row_holds_what_scoring_and_pairing_need(dataset, reader, tmp_path, ending):
    result = sample(open_studies(dataset), tmp_path / f"out.{ending}", reader, batch_size=2, **SHORT)
    rows = rows_of(result.out)
    assert [row["study_id"] for row in rows] == [f"study-{index}" for index in range(5)]
    assert [row["patient_id"] for row in rows] == [f"patient-{index // 2}" for index in range(5)]
    assert [row["egress"] for row in rows] == [True, True, True, False, True]
    assert [row["prompt"][0]["content"].count("Please") for row in rows] == list(range(5))
    assert [len(row["images"]) for row in rows] == [len(row["volumes"]) for row in rows] == [1, 1, 2, 1, 1]
    assert rows[0]["images"] == [str(dataset / "train" / "ct0.nii.gz")]
    for row in rows:
        assert row["notice"] == reader.notice
        assert [candidate["index"] for candidate in row["candidates"]] == [0, 1, 2]
        for candidate in row["candidates"]:
            assert candidate["num_tokens"] == 6 or candidate["finish_reason"] == "eos"
    manifest = json.loads(result.manifest.read_text())
    assert manifest["model_digest"] == reader.digest and manifest["seed"] == 0 and manifest["failed"] == {}
    assert manifest["command"].startswith("hf-mu2 sample DATASET --out FILE --model tiny-mu2")
    assert str(tmp_path) not in result.manifest.read_text() and manifest["versions"]["torch"]


@pytest.mark.parametrize("num_candidates", [1, 5])
def test_each_volume_is_encoded_once_however_many_candidates(dataset, checkpoint, tmp_path, num_candidates):
    reader = load_reader(checkpoint, "cpu")
    encoded, merged = (
        count_calls(reader.model.model.vision_tower),
        count_calls(reader.model.model.mu2_tokenizer),
    )
    sample(
        open_studies(dataset),
        tmp_path / "out.jsonl",
        reader,
        num_candidates=num_candidates,
        batch_size=2,
        max_new_tokens=3,
    )
    assert sum(encoded) == sum(merged) == 6 and len(encoded) == len(merged) == 3


def test_candidates_are_those_of_generate_with_return_sequences(dataset, reader):
    """The prompt runs once instead of once per candidate; nothing else differs."""
    inputs = first_batch(dataset, reader)
    config = sampling_config(reader, temperature=0.7, max_new_tokens=12)
    torch.manual_seed(3)
    found = sample_candidates(reader, inputs, 4, config)
    torch.manual_seed(3)
    generated = reader.model.generate(**inputs, generation_config=config, num_return_sequences=4)
    new = generated[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in reader.processor.batch_decode(new, skip_special_tokens=True)]
    assert [answer.text for answers in found for answer in answers] == texts
    assert len(set(texts)) > 6


def test_a_cold_temperature_gives_the_greedy_report(dataset, reader):
    inputs = first_batch(dataset, reader)
    config = sampling_config(reader, temperature=1e-4, max_new_tokens=12)
    greedy = generate_greedily(reader.model, reader.processor, inputs, 12)
    assert sample_candidates(reader, inputs, 2, config) == [[answer, answer] for answer in greedy]


def test_the_settings_of_the_checkpoint_do_not_reach_the_sampling(dataset, reader, monkeypatch):
    inputs, config = first_batch(dataset, reader), sampling_config(reader, max_new_tokens=12)
    torch.manual_seed(0)
    plain = sample_candidates(reader, inputs, 3, config)
    own = reader.model.generation_config
    for name, value in {"repetition_penalty": 5.0, "top_k": 1, "min_new_tokens": 12}.items():
        monkeypatch.setattr(own, name, value)
    torch.manual_seed(0)
    assert sample_candidates(reader, inputs, 3, config) == plain
    assert reader.model.generation_config is own


def test_tokens_are_counted_with_the_one_that_ends_the_answer(reader):
    ids = [[70, 71, 4, 0, 0], [70, 71, 72, 73, 4], [70, 71, 72, 73, 74], [4, 0, 0, 0, 0]]
    answers = read_answers(reader.model, reader.processor, torch.tensor(ids))
    assert [answer.num_tokens for answer in answers] == [3, 5, 5, 1]
    assert [answer.finish_reason for answer in answers] == ["eos", "eos", "length", "eos"]


def test_one_seed_gives_one_set_of_candidates_and_leaves_the_generator_alone(dataset, reader, tmp_path):
    studies = open_studies(dataset)
    first = sample(studies, tmp_path / "first.jsonl", reader, **SHORT)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    again = sample(studies, tmp_path / "again.jsonl", reader, **SHORT)
    assert torch.equal(state, torch.random.get_rng_state())
    other = sample(studies, tmp_path / "other.jsonl", reader, seed=1, **SHORT)
    assert first.out.read_bytes() == again.out.read_bytes() != other.out.read_bytes()


def test_batches_of_one_run_have_seeds_of_their_own(dataset, reader, tmp_path):
    rows = rows_of(sample(open_studies(dataset), tmp_path / "out.jsonl", reader, batch_size=2, **SHORT).out)
    seeds = [candidate["seed"] for row in rows for candidate in row["candidates"]]
    expected = [seed_of_batch(0, f"study-{index}") for index in (0, 2, 4)]
    assert seeds == [expected[index // 6] for index in range(15)] and len(set(expected)) == 3


def test_a_killed_run_goes_on_at_the_next_batch_with_the_same_candidates(
    dataset, reader, tmp_path, monkeypatch
):
    studies, out = open_studies(dataset), tmp_path / "out.jsonl"
    whole = sample(studies, tmp_path / "whole.jsonl", reader, batch_size=2, **SHORT)
    prepare, prepared = Reader.prepare, []

    def prepare_two(self, conversations):
        if len(prepared) == 2:
            raise KeyboardInterrupt
        prepared.append(len(conversations))
        return prepare(self, conversations)

    monkeypatch.setattr(Reader, "prepare", prepare_two)
    with pytest.raises(KeyboardInterrupt):
        sample(studies, out, reader, batch_size=2, **SHORT)
    partial = tmp_path / ".out.jsonl.0.partial"
    lines = partial.read_text().splitlines(keepends=True)
    assert len(lines) == 4 and not out.exists()
    partial.write_text("".join(lines[:3]) + lines[3][:50])  # killed while it wrote the second batch
    prepared.clear()
    sample(studies, out, reader, batch_size=2, **SHORT)
    assert prepared == [2, 1]  # the whole of the second batch, and the third
    assert out.read_bytes() == whole.out.read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("batch_size", 3), ("top_p", 0.8)])
def test_a_run_is_not_resumed_with_other_settings(dataset, reader, tmp_path, monkeypatch, name, value):
    settings = {"batch_size": 2, **SHORT}

    def interrupt(self, conversations):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Reader, "prepare", interrupt)
        sample(open_studies(dataset), tmp_path / "out.jsonl", reader, **settings)
    with pytest.raises(ValueError, match=f"another {name} for"):
        sample(open_studies(dataset), tmp_path / "out.jsonl", reader, **settings | {name: value})


def test_a_study_whose_volume_is_gone_is_named_and_left_out(dataset, reader, tmp_path):
    studies = open_studies(dataset)
    (dataset / "train" / "ct1.nii.gz").unlink()
    result = sample(studies, tmp_path / "out.jsonl", reader, batch_size=2, **SHORT)
    assert list(result.failed) == ["study-1"] and "ct1" not in result.failed["study-1"]
    assert [row["study_id"] for row in rows_of(result.out)] == ["study-0", "study-2", "study-3", "study-4"]
    assert json.loads(result.manifest.read_text())["failed"] == result.failed


def test_a_question_of_the_caller_is_the_prompt_of_the_row(dataset, reader, tmp_path, volumes):
    asked = sample(open_studies(dataset), tmp_path / "a.jsonl", reader, question="Nodules?", **SHORT)
    assert {row["prompt"][0]["content"] for row in rows_of(asked.out)} == {"Nodules?"}
    bare = rows_of(sample(open_studies(volumes), tmp_path / "b.jsonl", reader, **SHORT).out)
    assert {row["prompt"][0]["content"] for row in bare} == {DEFAULT_QUESTION}
    assert {(row["patient_id"], row["egress"]) for row in bare} == {(None, None)}
    assert bare[0]["images"] == [str(volumes / "ct0.nii.gz")]


def test_voxels_inside_a_table_are_not_copied(dataset, reader, tmp_path):
    from datasets import load_dataset

    rows = load_dataset(str(dataset), split="train")
    table = tmp_path / "embedded"
    table.mkdir()
    embedded = [[{"path": None, "bytes": (dataset / "train" / f"ct{i}.nii.gz").read_bytes()}] for i in (0, 1)]
    kept = rows.select([0, 1]).remove_columns("images")
    kept.add_column("images", embedded, feature=rows.features["images"]).to_parquet(table / "train.parquet")
    result = sample(open_studies(table), tmp_path / "out.jsonl", reader, **SHORT)
    assert [row["images"] for row in rows_of(result.out)] == [None, None]


def test_cached_features_stand_in_for_volumes(dataset, checkpoint, tmp_path):
    from datasets import load_dataset

    from hf_mu2.training.features import cache_features

    reader = load_reader(checkpoint, "cpu")
    rows = load_dataset(str(dataset), split="train")
    cached = cache_features(reader.model, reader.processor, rows, tmp_path / "features", dtype=torch.float32)
    table = tmp_path / "table"
    table.mkdir()
    cached.to_parquet(table / "train.parquet")
    shutil.move(dataset, tmp_path / "gone")
    encoded = count_calls(reader.model.model.vision_tower)
    result = sample(open_studies(table), tmp_path / "out.jsonl", reader, batch_size=2, **SHORT)
    found = rows_of(result.out)
    assert not encoded and result.failed == {}
    assert all(is_features(image) for row in found for image in row["images"])
    plain = sample(open_studies(tmp_path / "gone"), tmp_path / "plain.jsonl", reader, batch_size=2, **SHORT)
    assert [row["candidates"] for row in found] == [row["candidates"] for row in rows_of(plain.out)]


@pytest.mark.parametrize(
    "setting",
    [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"num_candidates": 0}, {"max_new_tokens": 0}],
)
def test_settings_out_of_range_are_refused_before_any_work(dataset, reader, tmp_path, setting):
    with pytest.raises(ValueError, match=r"at least 1|above 0"):
        sample(open_studies(dataset), tmp_path / "out.jsonl", reader, **SHORT | setting)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_another_ending_is_refused(dataset, reader, tmp_path):
    with pytest.raises(ValueError, match=r"\.jsonl or \.parquet"):
        sample(open_studies(dataset), tmp_path / "out.csv", reader, **SHORT)


def test_the_command_says_where_the_candidates_are(volumes, checkpoint, tmp_path, cli):
    out = tmp_path / "out.jsonl"
    run = cli(
        "sample", volumes, "--out", out, "--model", checkpoint, "--num-candidates", 2, "--max-new-tokens", 3
    )
    assert run.code == 2 and "000003: " in run.err and "1 studies were refused" in run.err
    assert run.out.strip() == f"2 candidates for each of 4 studies: {out}"
    again = cli("sample", volumes, "--out", out, "--model", checkpoint)
    assert again.code == 2 and "exists and is complete" in again.err
