"""TRL's own commands train a checkpoint on a folder of volumes, and what they save is a checkpoint again."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import nibabel as nib
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_mu2.data.phantom import write_phantoms
from hf_mu2.model.processing_mu2 import Mu2Processor
from tests.tiny import make_tiny_checkpoint, tiny_nifti, tiny_volume

pytest.importorskip("trl")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("trl") / "checkpoint")


def write_folder(folder: Path, rows: list[dict]) -> Path:
    """Write the folder that `load_dataset` opens: volumes beside metadata.jsonl."""
    (folder / "train").mkdir(parents=True)
    lines = []
    for i, row in enumerate(rows):
        nib.save(tiny_nifti(i), folder / "train" / f"{i}.nii.gz")
        lines.append(json.dumps({"images_file_names": [f"{i}.nii.gz"], **row}))
    (folder / "train" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def turns(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def trl(command: str, checkpoint: Path, dataset: Path, output: Path, *options: str) -> None:
    """Run a command of TRL in a process that never imports the package: the code comes with the checkpoint."""
    arguments = [
        str(Path(sysconfig.get_path("scripts")) / "trl"), command,
        "--model_name_or_path", str(checkpoint), "--dataset_name", str(dataset), "--output_dir", str(output),
        "--trust_remote_code", "--use_cpu", "--bf16", "false", "--max_steps", "3", "--learning_rate", "1e-3",
        "--lr_scheduler_type", "constant", "--adam_epsilon", "1e-20",  # faint gradients move weights, too
        "--per_device_train_batch_size", "2", "--report_to", "none", "--logging_steps", "1", *options,
    ]  # fmt: skip
    caches = {
        name: str(output.parent / name)
        for name in ("HF_MODULES_CACHE", "HF_DATASETS_CACHE", "TRITON_CACHE_DIR")
    }
    environment = {**os.environ, **caches, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"}
    environment["PYTHONPATH"] = str(output.parent)  # rewards of a test
    run = subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd=output.parent)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-8000:]
    assert list(output.parent.glob("HF_MODULES_CACHE/**/modeling_mu2.py"))


def assert_trained(checkpoint: Path, output: Path) -> None:
    """Whatever can learn has moved, and the result loads and answers."""
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, output))
    assert before.keys() == after.keys()
    still = [name for name in before if torch.equal(before[name], after[name].to(before[name].dtype))]
    assert not still, still
    assert {path.name for path in output.glob("*.py")} == {path.name for path in checkpoint.glob("*.py")}
    assert_answers(output)


def assert_answers(output: Path) -> None:
    processor = AutoProcessor.from_pretrained(output)
    assert type(processor) is Mu2Processor
    model = AutoModelForImageTextToText.from_pretrained(output)
    batch = processor.apply_chat_template(
        [processor.build_messages(tiny_volume())],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert model.generate(**batch, max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2


def test_sft_on_prompts_and_completions(checkpoint, tmp_path):
    rows = [
        {"prompt": turns("user", f"Question {i}?"), "completion": turns("assistant", f"Findings: {i}.")}
        for i in range(4)
    ]
    trl("sft", checkpoint, write_folder(tmp_path / "data", rows), tmp_path / "out", "--max_length", "256")
    assert_trained(checkpoint, tmp_path / "out")


def test_sft_on_conversations_with_loss_on_answers_only(checkpoint, tmp_path):
    rows = [
        {"messages": turns("user", f"Question {i}?") + turns("assistant", f"Findings: {i}.")}
        for i in range(4)
    ]
    options = ("--max_length", "256", "--assistant_only_loss")
    trl("sft", checkpoint, write_folder(tmp_path / "data", rows), tmp_path / "out", *options)
    assert_trained(checkpoint, tmp_path / "out")


def test_dpo_on_a_phantom_folder(checkpoint, tmp_path):
    folder = write_phantoms(tmp_path / "data", 2, view="preference", spacing=(8.0, 4.0, 4.0))
    trl("dpo", checkpoint, folder, tmp_path / "out", "--max_length", "1024")
    assert_trained(checkpoint, tmp_path / "out")


ADAPTER = (
    "--use_peft", "--lora_r", "4", "--lora_modules_to_save", "mu2_tokenizer",
    "--lora_target_modules", r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
)  # fmt: skip


def assert_adapter_trained(output: Path) -> None:
    """The adapter and the tokenizer it carries have moved, and base and adapter answer together."""
    adapter = load_file(output / "adapter_model.safetensors")
    assert any("mu2_tokenizer" in name for name in adapter)
    assert all(value.abs().sum() > 0 for name, value in adapter.items() if "lora_B" in name)
    assert_answers(output)


def test_sft_of_an_adapter(checkpoint, tmp_path):
    rows = [
        {"prompt": turns("user", f"Question {i}?"), "completion": turns("assistant", f"Findings: {i}.")}
        for i in range(4)
    ]
    trl("sft", checkpoint, write_folder(tmp_path / "data", rows), tmp_path / "out", *ADAPTER)
    assert_adapter_trained(tmp_path / "out")


def test_dpo_of_an_adapter_on_volumes_by_reference(checkpoint, tmp_path):
    """As `hf-mu2 pairs` writes them: paths in a table, scores beside the texts."""
    nib.save(tiny_nifti(0), tmp_path / "0.nii.gz")
    row = {
        "study_id": "s", "patient_id": "p", "images": [str(tmp_path / "0.nii.gz")],
        "prompt": turns("user", "Question?"), "chosen": turns("assistant", "Findings: a mass."),
        "rejected": turns("assistant", "Findings: none."), "scores": {"chosen": 0.9, "rejected": 0.1},
    }  # fmt: skip
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(4 * (json.dumps(row) + "\n"))
    trl("dpo", checkpoint, tmp_path / "data", tmp_path / "out", *ADAPTER)
    assert_adapter_trained(tmp_path / "out")


def test_dpo_never_cuts_placeholders(checkpoint, tmp_path):
    folder = write_phantoms(tmp_path / "data", 2, view="preference", spacing=(8.0, 4.0, 4.0))
    with pytest.raises(AssertionError, match="increase `max_length`"):
        trl("dpo", checkpoint, folder, tmp_path / "out", "--max_length", "6")


def test_kto_on_a_folder(checkpoint, tmp_path):
    rows = [
        {
            "prompt": turns("user", f"Question {i}?"),
            "completion": turns("assistant", f"Findings: {i}."),
            "label": i % 2 == 0,
        }
        for i in range(4)
    ]
    trl("kto", checkpoint, write_folder(tmp_path / "data", rows), tmp_path / "out", "--max_length", "256")
    assert_trained(checkpoint, tmp_path / "out")


@pytest.mark.parametrize("command", ["grpo", "rloo"])
def test_online_training_with_a_reward_of_any_module(command, checkpoint, tmp_path):
    (tmp_path / "my_rewards.py").write_text(
        "def letters(completions, reference, **columns):\n"
        "    return [float(sum(map(str.isalpha, c[0]['content']))) for c in completions]\n"
    )
    rows = [{"prompt": turns("user", f"Question {i}?"), "reference": f"Findings: {i}."} for i in range(4)]
    options = (
        "--reward_funcs", "my_rewards.letters", "--num_generations", "2", "--max_completion_length", "8",
        "--beta", "0.04",
    )  # fmt: skip
    trl(command, checkpoint, write_folder(tmp_path / "data", rows), tmp_path / "out", *options)
    assert_trained(checkpoint, tmp_path / "out")
