"""Impressions from findings: batches change nothing, a killed run continues, adapters and mu2 checkpoints write too."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_mu2.reporting.impressions import load_writer, open_findings, write_impressions
from tests.tiny import make_tiny_checkpoint, tiny_tokenizer


def save_llama(folder):
    """Save a text model of random weights whose vocabulary are bytes."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(count=5):
    return [
        {
            "study_id": f"CXR{index}",
            "patient_id": f"patient-{index}",
            "prompt": [{"role": "user", "content": "Findings: " + "clear lungs. " * (count - index)}],
            "completion": [{"role": "assistant", "content": f"Impression {index}."}],
        }
        for index in range(count)
    ]


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return load_writer(save_llama(tmp_path_factory.mktemp("impressions") / "llama"), "cpu")


def test_every_row_gets_an_impression_in_its_place(writer, tmp_path):
    out = tmp_path / "out.jsonl"
    manifest = write_impressions(make_rows(), out, writer, batch_size=2, max_new_tokens=4)
    rows = rows_of(out)
    assert list(rows[0]) == ["study_id", "patient_id", "reference", "candidate", "finish_reason"]
    assert [row["study_id"] for row in rows] == [f"CXR{index}" for index in range(5)]
    assert [row["reference"] for row in rows] == [f"Impression {index}." for index in range(5)]
    assert manifest == json.loads((tmp_path / "out.manifest.json").read_text())
    assert (manifest["num_studies"], manifest["model"]) == (5, "llama")


def test_the_batch_size_changes_no_impression(writer, tmp_path):
    for size in (1, 4):
        write_impressions(make_rows(), tmp_path / f"{size}.jsonl", writer, batch_size=size, max_new_tokens=8)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "4.jsonl").read_bytes()


def test_a_killed_run_continues_and_ends_as_if_it_had_not_been_killed(writer, tmp_path, monkeypatch):
    rows, calls = make_rows(), []
    write_impressions(rows, tmp_path / "whole.jsonl", writer, batch_size=2, max_new_tokens=4)
    generate = writer.model.generate

    def kill(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr(writer.model, "generate", kill)
    with pytest.raises(KeyboardInterrupt):
        write_impressions(rows, tmp_path / "killed.jsonl", writer, batch_size=2, max_new_tokens=4)
    journal = tmp_path / ".killed.jsonl.journal"
    journal.write_text(journal.read_text() + '{"half')
    manifest = write_impressions(rows, tmp_path / "killed.jsonl", writer, batch_size=2, max_new_tokens=4)
    assert manifest["num_resumed"] == 2 and len(calls) == 4
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not journal.exists()


def test_another_setting_does_not_continue_an_unfinished_run_and_a_whole_one_is_kept(
    writer, tmp_path, monkeypatch
):
    monkeypatch.setattr(writer.model, "generate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_impressions(make_rows(), tmp_path / "out.jsonl", writer, max_new_tokens=4)
    with pytest.raises(ValueError, match="continued only with"):
        write_impressions(make_rows(), tmp_path / "out.jsonl", writer, max_new_tokens=5)
    (tmp_path / "done.jsonl").write_text("")
    with pytest.raises(ValueError, match="exists and is complete"):
        write_impressions(make_rows(), tmp_path / "done.jsonl", writer)


def test_an_adapter_writes_what_its_merged_form_writes(tmp_path):
    peft = pytest.importorskip("peft")
    from hf_mu2.hub.merge import merge

    base = save_llama(tmp_path / "base")
    model = peft.get_peft_model(
        LlamaForCausalLM.from_pretrained(base),
        peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged")
    texts = {}
    for name in ("base", "adapter", "merged"):
        out = tmp_path / f"{name}.jsonl"
        write_impressions(make_rows(), out, load_writer(tmp_path / name, "cpu"), max_new_tokens=12)
        texts[name] = [row["candidate"] for row in rows_of(out)]
    assert texts["adapter"] == texts["merged"] != texts["base"]


def test_the_language_model_of_a_mu2_checkpoint_writes_too(cli, tmp_path):
    reports = tmp_path / "reports.jsonl"
    lines = [
        {"study_id": "a", "candidate": "Findings: Lungs clear.\nImpression: Normal."},
        {"study_id": "b", "candidate": ""},
    ]
    reports.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = make_tiny_checkpoint(tmp_path / "mu2")
    out = tmp_path / "out.jsonl"
    result = cli("impressions", reports, "--model", model, "--out", out, "--max-new-tokens", 3)
    assert result.code == 0, result.err
    (row,) = rows_of(out)
    assert row["study_id"] == row["patient_id"] == "a" and "reference" not in row


def test_findings_of_a_report_are_asked_without_its_impression(tmp_path):
    reports = tmp_path / "reports.jsonl"
    reports.write_text(
        json.dumps({"study_id": "a", "candidate": "Findings: Lungs clear.\nImpression: Normal."}) + "\n"
    )
    (row,) = open_findings(str(reports))
    assert row["prompt"][0]["content"] == (
        "Derive the impression from findings in the radiology report\n\nFindings: Lungs clear."
    )


def test_a_corpus_and_the_folder_of_its_view_give_the_same_rows(cli, tmp_path):
    from tests.data.test_openi import write_xml

    write_xml(
        tmp_path / "openi" / "ecgen-radiology", [(i, f"Finding {i}.", f"Impression {i}.") for i in range(30)]
    )
    rows = tmp_path / "rows"
    assert (
        cli(
            "data", "build", "openi", "--root", tmp_path / "openi", "--out", rows, "--view", "impression"
        ).code
        == 0
    )
    for split in (None, "train"):
        corpus = list(open_findings("openi", tmp_path / "openi", split))
        assert corpus == list(open_findings(str(rows), split=split)) != []


def test_what_holds_no_findings_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Findings come from a corpus"):
        open_findings(str(tmp_path / "nothing"))
    (tmp_path / "empty.jsonl").write_text('{"study_id": "a", "candidate": ""}\n')
    with pytest.raises(ValueError, match="no report"):
        open_findings(str(tmp_path / "empty.jsonl"))
