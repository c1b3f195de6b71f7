"""A killed run continues: half-written checkpoints are passed over, what follows equals a run that was not killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_mu2.training.checkpoints import find_damage, last_whole_checkpoint
from tests.tiny import make_tiny_checkpoint
from tests.training.rows import write_sft_folder


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"x": torch.zeros(100)}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1, "log_history": [1, 2, 3]}))
    return folder


def test_a_whole_checkpoint_has_no_damage(tmp_path):
    assert find_damage(write_checkpoint(tmp_path / "checkpoint-1")) is None


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "training_args.bin",
        "trainer_state.json",
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_a_file_cut_off_anywhere_is_recognised(tmp_path, name, share):
    path = write_checkpoint(tmp_path / "checkpoint-1") / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert find_damage(path.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json", "training_args.bin"])
def test_a_missing_file_is_recognised(tmp_path, name):
    (write_checkpoint(tmp_path / "checkpoint-1") / name).unlink()
    assert find_damage(tmp_path / "checkpoint-1")


def test_the_newest_whole_checkpoint_is_taken_by_number_not_by_name(tmp_path, caplog):
    for step in (9, 10, 11):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-11" / "trainer_state.json").unlink()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-11" in caplog.text and (tmp_path / "checkpoint-11").is_dir()


def test_without_a_checkpoint_a_run_starts_anew(tmp_path):
    assert last_whole_checkpoint(tmp_path / "missing") is None


RECIPE = """
model_name_or_path: {start}
dataset_name: {data}
stage: full
output_dir: {out}
eval_strategy: "no"
max_steps: 10
save_steps: 1
save_total_limit: 3
per_device_train_batch_size: 2
learning_rate: 1.0e-3
bf16: false
use_cpu: true
report_to: none
gradient_checkpointing: false
logging_steps: 1
max_length: 512
"""


def start_training(recipe: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(recipe.parent / "cache"),
    }
    command = [sys.executable, "-m", "hf_mu2.cli", "train", str(recipe)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def losses_of(out: Path) -> dict[int, float]:
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "done"
    return {entry["step"]: entry["loss"] for entry in record["losses"]}


def write_recipe(folder: Path, name: str, start: Path, data: Path) -> Path:
    recipe = folder / f"{name}.yaml"
    recipe.write_text(RECIPE.format(start=start, data=data, out=folder / name))
    return recipe


@pytest.mark.slow
def test_a_run_killed_at_five_random_steps_equals_one_that_was_not(tmp_path):
    start, data = make_tiny_checkpoint(tmp_path / "start"), write_sft_folder(tmp_path / "data", 6)
    whole = start_training(write_recipe(tmp_path, "whole", start, data))
    assert whole.wait() == 0, whole.stderr.read().decode()[-3000:]
    recipe = write_recipe(tmp_path, "killed", start, data)
    for step in (2, 3, 5, 7, 8):
        run = start_training(recipe)
        deadline = time.time() + 300
        while not (tmp_path / "killed" / f"checkpoint-{step}").exists() and run.poll() is None:
            assert time.time() < deadline
            time.sleep(
                0.01
            )  # the folder appears before its files: the kill falls into the save or just after it
        assert run.poll() is None, run.stderr.read().decode()[-3000:]
        run.send_signal(signal.SIGKILL)
        run.wait()
    last = start_training(recipe)
    assert last.wait() == 0, last.stderr.read().decode()[-3000:]
    expected, found = losses_of(tmp_path / "whole"), losses_of(tmp_path / "killed")
    assert expected == found
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["num_starts"] == 6


def test_a_broken_volume_stops_with_its_path_and_loses_nothing(cli, tmp_path):
    start, data = make_tiny_checkpoint(tmp_path / "start"), write_sft_folder(tmp_path / "data", 6)
    broken = data / "train" / "5.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    result = cli("train", write_recipe(tmp_path, "out", start, data))
    assert result.code in (1, 2) and "5.nii.gz" in result.err and "Traceback" not in result.err
    assert last_whole_checkpoint(tmp_path / "out") or not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_full_disk_stops_with_a_message_and_keeps_the_last_whole_checkpoint(cli, tmp_path, monkeypatch):
    from transformers import Trainer

    start, data = make_tiny_checkpoint(tmp_path / "start"), write_sft_folder(tmp_path / "data", 4)
    save = Trainer._save_optimizer_and_scheduler

    def fill_up(self, output_dir):
        if self.state.global_step == 3:
            raise OSError(28, "No space left on device")
        return save(self, output_dir)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", fill_up)
    result = cli("train", write_recipe(tmp_path, "out", start, data))
    assert result.code == 1 and "No space left on device" in result.err
    assert last_whole_checkpoint(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-2")
