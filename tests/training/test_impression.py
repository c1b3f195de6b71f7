"""Radiology-Llama2's recipe on a tiny Llama: LoRA with the published values trains, and merges into equal logits."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_mu2.reporting.impressions import open_findings
from tests.data.test_openi import write_xml
from tests.reporting.test_impressions import save_llama

pytest.importorskip("trl")
REPORTS = [(i, f"Finding {i} of the left lung.", f"Impression {i}.") for i in range(60)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train the shipped recipe for three steps; what is changed is its size, not its method."""
    from hf_mu2.training.recipe import train_recipe

    folder = tmp_path_factory.mktemp("impression")
    write_xml(folder / "openi" / "ecgen-radiology", REPORTS)
    size = {
        "model_name_or_path": save_llama(folder / "llama"), "corpus_root": folder / "openi",
        "output_dir": folder / "lora", "max_steps": 3, "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 2, "gradient_checkpointing": False, "use_cpu": True, "bf16": False,
        "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    train_recipe(
        "impression-openi", [text for name, value in size.items() for text in (f"--{name}", str(value))]
    )
    return folder


def test_the_adapter_is_the_published_one(trained):
    config = json.loads((trained / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 16, 0.05)
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == {"q_proj", "v_proj"}
    assert config["modules_to_save"] is None
    record = json.loads((trained / "lora" / "run.json").read_text())
    recipe = record["recipe"]
    assert (recipe["learning_rate"], recipe["weight_decay"]) == (3e-4, 0.01)
    layers, width, rank = 2, 32, 8
    assert (
        record["parameters"]["language_model"]["trained"] == layers * 2 * 2 * width * rank
    )  # A and B of q and v


def test_every_part_of_the_adapter_moved(trained):
    from safetensors.torch import load_file

    weights = load_file(trained / "lora" / "adapter_model.safetensors")
    assert len(weights) == 8
    for name, weight in weights.items():
        assert weight.abs().sum() > 0, name  # lora_B starts at zero


def test_the_loss_is_that_of_the_impression_alone(trained):
    record = json.loads((trained / "lora" / "run.json").read_text())
    assert record["status"] == "done" and record["steps"] == 3
    tokenizer = AutoTokenizer.from_pretrained(trained / "llama")
    model = AutoModelForCausalLM.from_pretrained(trained / "lora").eval()
    losses = []
    for row in open_findings("openi", trained / "openi", "validation"):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"]
        assert ids[: len(prompt)] == prompt
        with torch.inference_mode():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-log_probs[at - 1, ids[at]].item() for at in range(len(prompt), len(ids))]
    assert record["evaluation"]["eval_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-2)


def test_merging_gives_the_logits_of_base_and_adapter(trained):
    from hf_mu2.hub.merge import merge

    facts = merge(trained / "lora", trained / "merged")
    assert facts["base"] == str(trained / "llama")
    ids = torch.arange(10, 60)[None]
    models = {
        name: AutoModelForCausalLM.from_pretrained(trained / name).eval()
        for name in ("llama", "lora", "merged")
    }
    with torch.inference_mode():
        logits = {name: model(ids).logits for name, model in models.items()}
    torch.testing.assert_close(logits["merged"], logits["lora"], atol=1e-5, rtol=1e-5)
    assert (logits["merged"] - logits["llama"]).abs().max() > 1e-5, "training changed the model"
    assert not (trained / "merged" / "adapter_config.json").exists()


def test_the_trained_adapter_writes_impressions_from_the_shell(trained, cli):
    out = trained / "out.jsonl"
    result = cli(
        "impressions", "openi", "--root", trained / "openi", "--model", trained / "lora", "--out", out,
        "--max-new-tokens", 4,
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows and all(row["reference"].startswith("Impression") for row in rows)
