"""Recipes of the negative constraint: from CT-RATE's files to a report, on mu2 and on Qwen2.5-VL."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_mu2.data.negatives_noise import gaussian_volume, noise_seed
from hf_mu2.data.phantom.ct_rate_tree import write_ct_rate_tree
from hf_mu2.model.features_mu2 import read_features
from hf_mu2.training.features import cache_features
from hf_mu2.training.monitor import generate_text
from hf_mu2.training.negative import NegativeArguments, find_volumes, row_candidates
from hf_mu2.training.recipe import open_datasets, parse_recipe, train_recipe
from hf_mu2.training.stages import STAGES
from tests.tiny import make_tiny_checkpoint
from tests.training.rows import write_sft_folder

KINDS = ("gauss", "heter", "heter-balanced", "hard")
POLICIES = {"gauss": "gauss", "heter": "paper", "heter-balanced": "balanced", "hard": "hard"}
FAST = {("mu2", "heter-balanced"), ("qwen", "gauss")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_ct_rate_tree(
        tmp_path_factory.mktemp("ct-rate"), num_train=4, num_valid=2, versions=("fixed",), spacings=((8, 8, 8),)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        pytest.param(model, kind, marks=() if (model, kind) in FAST else pytest.mark.slow)
        for model in ("mu2", "qwen")
        for kind in KINDS
    ],
)
def test_each_negative_trains_from_ct_rates_files_to_a_report(model, kind, tree, tmp_path):
    recipe = f"negative-{'qwen-' if model == 'qwen' else ''}ct-rate-{kind}-tiny"
    overrides = [
        "--corpus", "ct_rate", "--corpus_root", str(tree), "--eval_split", "test",
        "--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--learning_rate", "1e-3",
        "--lr_scheduler_type", "constant", "--warmup_steps", "0", "--max_eval_studies", "2", "--monitor_studies", "2",
        "--length_studies", "1", "--sample_steps", "0", "--train_split", "train", "--min_label_distance", "4",
    ]  # fmt: skip
    out = train_recipe(recipe, overrides)
    log = json.loads((out / "run.json").read_text())
    assert log["status"] == "done" and log["steps"] == 1
    assert {"eval_loss", "eval_image_dependence", "eval_length_ratio"} <= set(log["evaluation"])
    assert (out / "negatives.json").exists() == (kind != "gauss")
    trained, processor = (auto.from_pretrained(out) for auto in (AutoModelForImageTextToText, AutoProcessor))
    _, test = open_datasets(*parse_recipe(recipe, overrides)[:2], STAGES["full"])
    assert isinstance(generate_text(trained, processor, test[0], max_new_tokens=8), str)


def test_recipes_hold_the_papers_values():
    from hf_mu2.training.recipe import RECIPES

    for kind in KINDS:
        for name in (f"negative-ct-rate-{kind}", f"negative-qwen-ct-rate-{kind}"):
            recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
            assert recipe["negatives"] == POLICIES[kind]
            assert (recipe["alpha"], recipe["beta"], recipe["learning_rate"]) == (1.0, 0.1, 2e-5)
            # One pair is the paper's batch of two rows.
            assert (recipe["per_device_train_batch_size"], recipe["gradient_accumulation_steps"]) == (1, 8)
            assert recipe["num_train_epochs"] == 1


def test_an_unknown_negative_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="gauss, paper, balanced, hard, pairs"):
        NegativeArguments(negatives="noise")


@pytest.fixture
def folder(tmp_path) -> Path:
    make_tiny_checkpoint(tmp_path / "start")
    write_sft_folder(tmp_path / "data", 8)
    return tmp_path


def recipe_of(folder: Path, **fields) -> Path:
    common = {
        "objective": "negative", "negatives": "paper", "model_name_or_path": str(folder / "start"),
        "dataset_name": str(folder / "data"), "stage": "full", "output_dir": str(folder / "out"),
        "eval_strategy": "no", "save_strategy": "no", "max_steps": 4, "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential", "learning_rate": 1e-3, "bf16": False, "use_cpu": True,
        "report_to": "none", "gradient_checkpointing": False, "logging_steps": 1, "max_length": 512,
        "beta": 0.3, "max_loss": 100.0,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**common, **fields}))
    return path


def test_rows_without_labels_are_labelled_by_what_their_reports_say(folder):
    arguments, training, _ = parse_recipe(recipe_of(folder))
    rows, _ = open_datasets(arguments, training, STAGES["full"])
    candidates = row_candidates(arguments, rows)
    names = list(candidates.label_names)
    present = [{names[i] for i in labels.nonzero()[0]} for labels in candidates.labels[:4]]
    assert present == [{"Emphysema"}, {"Pleural effusion"}, set(), {"Lung nodule"}]
    assert list(candidates.patient_ids[:2]) == ["patient-0", "patient-1"]


def test_noise_comes_from_a_cache_where_the_volumes_do(folder):
    recipe = recipe_of(
        folder, negatives="gauss", stage="frozen_tower", cache_features=str(folder / "features")
    )
    train_recipe(recipe)
    losses = json.loads((folder / "out" / "run.json").read_text())["losses"]
    assert len(losses) == 4
    arguments, training, _ = parse_recipe(recipe)
    rows, _ = open_datasets(arguments, training, STAGES["frozen_tower"])
    model, processor = (
        auto.from_pretrained(folder / "start") for auto in (AutoModelForImageTextToText, AutoProcessor)
    )
    cached = cache_features(model, processor, rows, folder / "features")
    volumes = find_volumes(arguments, cached, args=training, model=model, processing_class=processor)
    noise = gaussian_volume(rows[1]["images"][0], noise_seed(training.seed, rows[1]["study_id"], 0))
    batch = processor.image_processor(noise, return_tensors="pt")
    expected = model.model.vision_tower(**batch).last_hidden_state
    (reference,) = volumes(1, epoch=3)
    found = read_features(reference).float().flatten(0, 1)  # slabs of anatomy alone
    torch.testing.assert_close(found, expected[0].flatten(0, 1)[: len(found)].detach(), atol=0.05, rtol=0.02)
    assert reference != cached[1]["images"][0]


def run(recipe: Path, out: Path, num_processes: int, batch_size: int) -> list[float]:
    """Train a recipe in one process or several, and return the loss of each step."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command = [
        sys.executable, *(several if num_processes > 1 else []), "-m", "hf_mu2.cli", "train", str(recipe),
        "--output_dir", str(out), "--per_device_train_batch_size", str(batch_size),
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [entry["loss"] for entry in json.loads((out / "run.json").read_text())["losses"]]


@pytest.mark.slow
def test_two_processes_train_on_the_pairs_of_a_step_as_one_does(folder):
    from safetensors.torch import load_file

    recipe = recipe_of(folder)
    one, two = run(recipe, folder / "one", 1, 4), run(recipe, folder / "two", 2, 2)
    assert len(one) == len(two) == 4
    assert two == pytest.approx(one, abs=1e-4)
    first, second = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=1e-4, msg=name)
    assert one[0] == pytest.approx(two[0], abs=1e-6)
