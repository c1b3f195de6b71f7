"""The commands that make checkpoints and data: init, convert, phantom."""

import json

import torch
from transformers import AutoConfig, AutoProcessor

from tests.hub import official
from tests.hub.test_assemble import llama_folder


def official_folder(folder):
    layout = official.LAYOUTS["llama"]
    return official.write(official.store(official.build_state(layout), layout), layout, folder)


def test_init_ends_in_a_checkpoint_that_loads(cli, tmp_path):
    result = cli("init", llama_folder(tmp_path / "lm"), tmp_path / "out", "--preset", "tiny", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == {"checkpoint": str(tmp_path / "out")}
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.model_type == "mu2" and config.text_config.hidden_size == 48
    assert type(AutoProcessor.from_pretrained(tmp_path / "out")).__name__ == "Mu2Processor"


def test_init_refuses_a_preset_it_does_not_know(cli, tmp_path):
    result = cli("init", llama_folder(tmp_path / "lm"), tmp_path / "out", "--preset", "huge")
    assert result.code == 2 and "mu2-1b" in result.err and "Traceback" not in result.err


def test_convert_prints_what_it_detected(cli, tmp_path):
    source = official_folder(tmp_path / "source")
    result = cli("convert", source, tmp_path / "out")
    assert result.code == 0, result.err
    assert "attention: relative bias" in result.out
    assert result.out.splitlines()[-1] == f"Checkpoint: {tmp_path / 'out'}"


def test_convert_names_the_tensor_that_is_missing(cli, tmp_path):
    source = official_folder(tmp_path / "source")
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    removed = sorted(state)[-1]
    del state[removed]
    torch.save(state, source / "pytorch_model.bin")
    result = cli("convert", source, tmp_path / "out")
    assert result.code == 2 and removed in result.err and "Traceback" not in result.err
    assert not (tmp_path / "out" / "config.json").exists()


def test_phantom_writes_a_dataset_that_predict_reads(cli, checkpoint, tmp_path):
    made = cli("phantom", "--n", 2, "--out", tmp_path / "data", "--json")
    assert made.code == 0 and json.loads(made.out)["num_studies"] == 2
    result = cli(
        "predict",
        tmp_path / "data",
        "--out",
        tmp_path / "out.jsonl",
        "--model",
        checkpoint,
        "--max-new-tokens",
        2,
    )
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["study_id"] for row in rows] == sorted(row["study_id"] for row in rows) and len(rows) == 2


def test_phantom_takes_spacing_and_difficulty_and_puts_masks_beside(cli, tmp_path):
    options = ("--n", 1, "--spacing", 12, 10, 10, "--difficulty", "easy")
    assert cli("phantom", "--out", tmp_path / "data", *options).code == 0
    manifest = json.loads((tmp_path / "data" / "manifest_train.json").read_text())
    assert manifest["spacing"] == [12.0, 10.0, 10.0] and manifest["difficulty"] == "easy"
    assert list((tmp_path / "data_masks" / "train").glob("*.nii.gz"))
    assert "<out>_masks" in cli("phantom", "--help").out
    assert cli("phantom", "--out", tmp_path / "other", "--difficulty", "impossible").code == 2
