"""`python -m hf_mu2.training.trl`: TRL's scripts without trust in remote code, and a guard for misnamed volumes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hf_mu2.training.trl import main
from tests.tiny import make_tiny_checkpoint
from tests.training.rows import write_sft_folder


@pytest.mark.slow
def test_sft_trains_without_trust_in_remote_code(tmp_path):
    start, data = make_tiny_checkpoint(tmp_path / "start"), write_sft_folder(tmp_path / "data", 4)
    for path in start.glob("*.py"):
        path.unlink()  # the classes must come from the package
    command = [
        sys.executable, "-m", "hf_mu2.training.trl", "sft", "--model_name_or_path", str(start),
        "--dataset_name", str(data), "--output_dir", str(tmp_path / "out"), "--use_cpu", "--bf16", "false",
        "--max_steps", "2", "--learning_rate", "1e-3", "--per_device_train_batch_size", "2", "--report_to", "none",
        "--max_length", "256",
    ]  # fmt: skip
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-4000:]
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (start, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)


def test_a_misnamed_column_of_volumes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["trl"])
    data = write_sft_folder(tmp_path / "data", 2)
    metadata = data / "train" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("images_file_names", "ct_file_names"))
    with pytest.raises(ValueError, match=r'rename_column\("ct", "images"\)'):
        main(["sft", "--model_name_or_path", "nowhere", "--dataset_name", str(data), "--output_dir", str(tmp_path),
              "--use_cpu", "--bf16", "false"])  # fmt: skip


@pytest.mark.parametrize("arguments", [[], ["train"]])
def test_an_unknown_script_is_refused_by_name(arguments):
    with pytest.raises(ValueError, match="one of sft, dpo, kto, grpo, rloo"):
        main(arguments)
