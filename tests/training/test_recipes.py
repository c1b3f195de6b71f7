"""Recipes: all parse, a tiny twin differs in size alone, published values stand, training runs from a shell."""

import json
from pathlib import Path

import pytest
import yaml

from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.training.recipe import RECIPES, find_recipe, parse_recipe
from hf_mu2.training.stages import STAGES

pytest.importorskip("trl")
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
FULL = [name for name in NAMES if not name.endswith("-tiny") and not name.startswith("demo-")]
# What may differ between a recipe and its twin: how large, how long, on what machine, from which files.
SIZE_FIELDS = {
    "model_name_or_path", "init.language_model", "init.vision_tower", "init.preset", "init.num_query_tokens",
    "init.model", "init.spacing",
    "text_model", "preset", "projection_size", "max_text_length", "corpus", "corpus_root", "corpus_options",
    "max_train_studies", "max_eval_studies", "monitor_studies", "num_train_epochs", "per_device_train_batch_size",
    "per_device_eval_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "max_length", "bf16",
    "use_cpu", "dataloader_num_workers", "logging_steps", "sample_steps", "output_dir",
    "dataset_name", "max_completion_length",
}  # fmt: skip


def read(name: str) -> dict:
    fields = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    init = fields.pop("init", {})
    for key, value in {**init.pop("tokenizer_config", {}), **init}.items():
        fields[f"init.{key}"] = value
    return fields


@pytest.mark.parametrize("name", FULL)
def test_a_recipe_and_its_tiny_twin_differ_in_size_alone(name):
    full, tiny = read(name), read(f"{name}-tiny")
    differing = {key for key in full | tiny if full.get(key) != tiny.get(key)}
    assert differing <= SIZE_FIELDS, differing - SIZE_FIELDS


@pytest.mark.parametrize("name", [name for name in NAMES if "init.preset" in read(name)])
def test_a_recipe_starts_from_a_configuration_that_holds(name):
    init = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))["init"]
    config = Mu2Config.from_preset(init["preset"], tokenizer_config=init.get("tokenizer_config", {}))
    assert config.tokenizer_config.num_query_tokens > 0


@pytest.mark.parametrize("name", [name for name in NAMES if read(name)["stage"] != "tower"])
def test_a_recipe_parses_without_an_unknown_field(name):
    arguments, training, model = parse_recipe(name, ["--bf16", "false", "--use_cpu"])
    assert arguments.stage in STAGES and training.output_dir.startswith(("runs/", "demo-train/", "demo-dpo/"))
    assert (arguments.init is None) != (model.model_name_or_path is None)


def test_the_command_line_wins_over_the_file():
    arguments, training, _ = parse_recipe(
        "sft-ct-rate-tiny", ["--learning_rate", "1e-3", "--corpus_root", "here"]
    )
    assert training.learning_rate == 1e-3 and arguments.corpus_root == "here"


def test_published_values_are_the_defaults():
    mu2, llama2 = read("sft-ct-rate"), read("impression-mimic-cxr")
    assert (mu2["learning_rate"], mu2["num_train_epochs"], mu2["warmup_steps"]) == (4e-6, 4, 0.1)
    lora = read("sft-ct-rate-lora")
    assert (lora["lora_r"], lora["lora_alpha"], lora["lora_dropout"]) == (16, 32, 0.05)
    assert (llama2["lora_r"], llama2["lora_alpha"], llama2["lora_dropout"]) == (8, 16, 0.05)
    assert llama2["lora_target_modules"] == ["q_proj", "v_proj"]
    assert (llama2["learning_rate"], llama2["weight_decay"]) == (3e-4, 0.01)
    assert llama2["per_device_train_batch_size"] * llama2["gradient_accumulation_steps"] == 128


def test_an_unknown_recipe_names_those_that_ship():
    with pytest.raises(ValueError, match="sft-ct-rate"):
        find_recipe("sft-nothing")


def test_a_recipe_without_data_or_a_start_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: here\nuse_cpu: true\nbf16: false\n")
    with pytest.raises(ValueError, match="exactly one of `corpus` and `dataset_name`"):
        parse_recipe(path)
    path.write_text("dataset_name: here\nuse_cpu: true\nbf16: false\n")
    with pytest.raises(ValueError, match="exactly one of `model_name_or_path` and `init`"):
        parse_recipe(path)


def write_recipe(path: Path, **fields) -> Path:
    common = {
        "dataset_name": str(path.parent / "data"), "train_split": "train", "eval_split": "train",
        "max_train_studies": 4, "max_eval_studies": 2, "monitor_studies": 2, "eval_strategy": "epoch",
        "max_steps": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "logging_steps": 1,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "bf16": False, "use_cpu": True, "report_to": "none",
        "gradient_checkpointing": False, "max_length": 512,
    }  # fmt: skip
    path.write_text(yaml.safe_dump({**common, **fields}))
    return path


@pytest.fixture
def data(tmp_path):
    from tests.training.rows import write_sft_folder

    return write_sft_folder(tmp_path / "data", 4)


def test_two_stages_train_from_the_command_line_and_the_merged_result_reports(cli, tmp_path, data):
    """Align, adapt with LoRA, merge: each starts from the last, and the last one reads a volume."""
    import torch
    from transformers import AutoModelForImageTextToText

    from tests.tiny import make_tiny_checkpoint

    start = make_tiny_checkpoint(tmp_path / "start")
    align = write_recipe(
        tmp_path / "align.yaml",
        model_name_or_path=str(start),
        stage="align",
        output_dir=str(tmp_path / "align"),
    )
    assert cli("train", align).code == 0
    before = AutoModelForImageTextToText.from_pretrained(start).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(tmp_path / "align").state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "vision_tower" in name or "mu2_tokenizer" in name}

    adapt = write_recipe(
        tmp_path / "adapt.yaml", model_name_or_path=str(tmp_path / "align"), stage="adapt", use_peft=True, lora_r=2,
        lora_target_modules=["q_proj", "v_proj"], output_dir=str(tmp_path / "adapt"),
    )  # fmt: skip
    assert cli("train", adapt).code == 0
    record = json.loads((tmp_path / "adapt" / "run.json").read_text())
    assert record["status"] == "done" and record["steps"] == 2
    assert {"eval_image_dependence", "eval_loss"} <= set(record["evaluation"])
    result = cli("merge", tmp_path / "adapt", tmp_path / "merged")
    assert result.code == 0, result.err
    result = cli(
        "report", data / "train" / "0.nii.gz", "--model", tmp_path / "merged", "--out", tmp_path / "report"
    )
    assert result.code == 0, result.err


def test_merging_gives_the_logits_of_base_and_adapter(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    from hf_mu2.hub.merge import merge
    from hf_mu2.training.stages import complete_lora, freeze
    from tests.tiny import make_tiny_checkpoint, tiny_processor, tiny_volume

    start = make_tiny_checkpoint(tmp_path / "start")
    model = AutoModelForImageTextToText.from_pretrained(start)
    stage = STAGES["adapt"]
    freeze(model, stage)
    adapted = get_peft_model(model, complete_lora(LoraConfig(r=2), model, stage))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter")
    tiny_processor().save_pretrained(tmp_path / "adapter")
    batch = tiny_processor().apply_chat_template(
        [tiny_processor().build_messages(tiny_volume())],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    with torch.inference_mode():
        torch.testing.assert_close(
            merged(**batch).logits, adapted.eval()(**batch).logits, atol=1e-5, rtol=1e-5
        )


def test_what_is_no_adapter_is_not_merged(tmp_path):
    from hf_mu2.hub.merge import merge

    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        merge(tmp_path / "empty", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_misnamed_column_of_volumes_stops_training(cli, tmp_path, data):
    from tests.tiny import make_tiny_checkpoint

    metadata = data / "train" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("images_file_names", "volume_file_names"))
    start = make_tiny_checkpoint(tmp_path / "start")
    recipe = write_recipe(
        tmp_path / "r.yaml", model_name_or_path=str(start), stage="full", output_dir=str(tmp_path / "out")
    )
    result = cli("train", recipe)
    assert result.code == 2 and 'rename_column("volume", "images")' in result.err


def test_what_is_named_on_the_command_line_takes_the_place_of_its_alternative():
    plain = ["--bf16", "false", "--use_cpu"]
    arguments, _, model = parse_recipe(
        "two-stage-1-align", ["--dataset_name", "prepared", "--model_name_or_path", "start", *plain]
    )
    assert (arguments.corpus, arguments.dataset_name) == (None, "prepared")
    assert (arguments.init, model.model_name_or_path) == (None, "start")
    arguments, _, _ = parse_recipe("two-stage-1-align", ["--corpus", "openi", *plain])
    assert (arguments.corpus, arguments.dataset_name) == ("openi", None)
