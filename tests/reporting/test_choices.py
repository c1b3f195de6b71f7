"""Multiple choice: scores are likelihoods, the volume counts, one vision pass per study, a killed run continues."""

import json

import pytest
import torch

from hf_mu2.reporting.choices import answer_choices, option_scores
from hf_mu2.reporting.inference import load_reader
from tests.tiny import make_tiny_checkpoint, tiny_nifti


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return load_reader(make_tiny_checkpoint(tmp_path_factory.mktemp("choices") / "checkpoint"))


def make_rows(num_studies=2, num_questions=3):
    options = ["right kidney", "left kidney", "none"]
    return [
        {
            "study_id": f"study-{study}",
            "patient_id": f"patient-{study}",
            "images": [tiny_nifti(study)],
            "prompt": [{"role": "user", "content": f"Question {question}?"}],
            "completion": [
                {"role": "assistant", "content": f"{'ABC'[question % 3]}. {options[question % 3]}"}
            ],
            "options": options,
            "kind": "side",
        }
        for study in range(num_studies)
        for question in range(num_questions)
    ]


def test_scores_are_the_likelihoods_of_the_options_token_by_token(reader):
    messages = [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}]
    prompt = reader.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    scores = option_scores(reader, "Which?", ["A. right", "B. left of it"], None)
    for option, score in zip(["A. right", "B. left of it"], scores):
        ids = reader.processor.tokenizer(prompt + option, add_special_tokens=False, return_tensors="pt")[
            "input_ids"
        ]
        start = len(reader.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        with torch.inference_mode():
            log_probs = reader.model(input_ids=ids).logits.log_softmax(-1)
        expected = log_probs[0, start - 1 : -1].gather(1, ids[0, start:, None]).sum()
        assert score == pytest.approx(expected.item(), abs=1e-4)


def test_the_volume_changes_the_scores_and_the_tower_runs_once_per_study(reader, tmp_path):
    calls = []
    handle = reader.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    summary = answer_choices(make_rows(), tmp_path / "out.jsonl", reader)
    handle.remove()
    assert len(calls) == 2 and summary["questions"] == 6 and summary["studies"] == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0]["scores"] != rows[3]["scores"], "same question, another volume"
    assert summary["chance"]["accuracy"] == pytest.approx(1 / 3)
    assert summary["difference"]["accuracy"] == pytest.approx(
        summary["with_volume"]["accuracy"] - summary["text_only"]["accuracy"]
    )


def test_a_killed_run_continues_and_ends_as_if_it_had_not_been_killed(reader, tmp_path):
    rows = make_rows()
    whole = answer_choices(rows, tmp_path / "whole.jsonl", reader)

    answered = []

    def kill(*_):
        answered.append(1)
        if len(answered) == 2:  # while the second study is read
            raise KeyboardInterrupt

    handle = reader.model.model.vision_tower.register_forward_hook(kill)
    with pytest.raises(KeyboardInterrupt):
        answer_choices(rows, tmp_path / "killed.jsonl", reader)
    handle.remove()
    journal = tmp_path / ".killed.jsonl.journal"
    journal.write_text(journal.read_text() + '{"half')
    again = answer_choices(rows, tmp_path / "killed.jsonl", reader)
    assert again == whole
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not journal.exists()


def test_questions_without_options_are_refused(reader, tmp_path):
    rows = [row | {"options": []} for row in make_rows()]
    with pytest.raises(ValueError, match="needs options"):
        answer_choices(rows, tmp_path / "out.jsonl", reader)


@pytest.mark.filterwarnings("ignore:.*slices 10 mm apart")
def test_questions_about_phantoms_are_answered_from_the_shell(cli, checkpoint, tmp_path):
    from hf_mu2.data.phantom import write_benchmark

    phantoms = write_benchmark(tmp_path / "phantoms", {"test": 2}, resolution="quick")
    result = cli(
        "data", "build", "phantom_ct", "--root", phantoms, "--out", tmp_path / "vqa", "--view", "vqa"
    )
    assert result.code == 0, result.err
    result = cli("choose", tmp_path / "vqa", "--model", checkpoint, "--out", tmp_path / "out.jsonl", "--json")
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert json.loads(result.out)["questions"] == len(rows) > 0
    assert {row["kind"] for row in rows} <= {"presence", "side", "size"} and "key" not in rows[0]
