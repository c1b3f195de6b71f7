"""DPO: losses, rewards and gradients are the stock trainer's, each volume is encoded once, references are kept."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer

from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.training.dpo import OBJECTIVE, PairCollator, StageDPOTrainer, what_is_shared
from hf_mu2.training.features import cache_features
from hf_mu2.training.recipe import with_paths
from hf_mu2.training.reference import LOG_PROB_COLUMNS, read_log_probs
from hf_mu2.training.stages import STAGES, Stage, complete_lora, freeze
from tests.tiny import make_tiny_checkpoint, tiny_nifti, tiny_processor
from tests.training.rows import turns, write_pairs_folder
from tests.training.test_engines import run

COMMON = {
    "max_length": 512,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
# The language model's adapter alone, on soft prompts that stay as they are.
LANGUAGE = Stage(None, None, 1.0, "")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("dpo") / "checkpoint")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Dataset:
    folder = write_pairs_folder(tmp_path_factory.mktemp("dpo") / "data", 4)
    return with_paths(load_dataset(str(folder), split="train"))


@pytest.fixture(scope="module")
def processor(checkpoint):
    return AutoProcessor.from_pretrained(checkpoint)


def load(checkpoint: Path, stage: Stage, lora: bool = False):
    """Load a policy that differs from its reference, which the trainer loads or finds under the adapter."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    freeze(model, stage)
    if lora:
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return get_peft_model(model, complete_lora(config, model, stage))
    with torch.no_grad():
        for parameter in model.model.language_model.layers.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        if stage.connector is not None:
            for parameter in model.model.mu2_tokenizer.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def make(ours: bool, model, rows, processor, out: Path, stage: Stage, **fields):
    arguments = DPOConfig(str(out), **{**COMMON, **fields})
    common = {"args": arguments, "train_dataset": rows, "processing_class": processor}
    trainer = StageDPOTrainer(model, stage=stage, **common) if ours else DPOTrainer(model, **common)
    if "ref" in getattr(model, "peft_config", {}):  # a copy of the policy, from which it would not differ
        model.delete_adapter("ref")
    trainer.model.train()
    if arguments.gradient_checkpointing:  # as `train` does
        trainer.model.gradient_checkpointing_enable()
    return trainer


def step(trainer, batch=None):
    """Return loss, gradients and logged numbers of a batch."""
    torch.manual_seed(0)
    batch = next(iter(trainer.get_train_dataloader())) if batch is None else batch
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def assert_equal_steps(found, expected) -> None:
    torch.testing.assert_close(found[0], expected[0], **CLOSE)
    assert found[1].keys() == expected[1].keys() and found[2].keys() == expected[2].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name, **CLOSE)
    assert {"rewards/chosen", "rewards/margins", "logps/rejected", "entropy"} <= expected[2].keys()
    for name, value in expected[2].items():
        assert found[2][name] == pytest.approx(value, abs=1e-5, rel=1e-5), name


def count_encodings(*models) -> tuple[list[int], list[int]]:
    """Count the volumes that pass the tower and the tokenizer of each model."""
    tower: list[int] = []
    tokenizer: list[int] = []
    for model in models:
        for module in model.modules():
            if type(module).__name__ == "Mu2VisionModel":
                module.register_forward_hook(lambda module, inputs, output: tower.append(len(output[0])))
            if type(module).__name__ == "Mu2Tokenizer":
                module.register_forward_hook(lambda module, inputs, output: tokenizer.append(len(output)))
    return tower, tokenizer


CASES = {
    # stage, LoRA, fields: volumes through the tower and through the tokenizer, batch of 2
    "full": (STAGES["full"], False, {}, [2, 2], [2, 2]),
    "frozen tower": (STAGES["tokenizer"], False, {}, [2], [2, 2]),
    "adapter on a trained vision side": (STAGES["adapt"], True, {}, [2, 2], [2, 2]),
    "adapter alone": (LANGUAGE, True, {}, [2], [2]),
    "mixture": (STAGES["full"], False, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, [2, 2], [2, 2]),
    "checkpointing": (STAGES["full"], False, {"gradient_checkpointing": True, "ld_alpha": 0.5}, [2, 2], [2, 2]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_loss_rewards_and_gradients_are_the_stock_trainers_and_each_volume_is_encoded_once(
    case, checkpoint, pairs, processor, tmp_path
):
    stage, lora, fields, in_tower, in_tokenizer = CASES[case]
    expected = step(make(False, load(checkpoint, stage, lora), pairs, processor, tmp_path, stage, **fields))
    trainer = make(True, load(checkpoint, stage, lora), pairs, processor, tmp_path, stage, **fields)
    tower, tokenizer = count_encodings(*filter(None, (trainer.model, trainer.ref_model)))
    found = step(trainer)
    assert_equal_steps(found, expected)
    assert abs(found[2]["rewards/chosen"]) > 1e-3  # policy and reference differ
    assert (tower, tokenizer) == (in_tower, in_tokenizer)


def test_of_a_precomputed_reference_no_volume_is_encoded_in_a_step(checkpoint, pairs, processor, tmp_path):
    stage = STAGES["full"]
    in_step = make(True, load(checkpoint, stage), pairs, processor, tmp_path, stage)
    batch = next(iter(in_step.get_train_dataloader()))
    expected = in_step.compute_ref_log_probs(in_step.ref_model, dict(batch))
    reference = AutoModelForImageTextToText.from_pretrained(checkpoint)
    trainer = make(True, reference, pairs, processor, tmp_path, stage, precompute_ref_log_probs=True)
    assert trainer.ref_model is None
    own = trainer.train_dataset.select_columns(list(LOG_PROB_COLUMNS))
    tower, tokenizer = count_encodings(trainer.model)
    with torch.no_grad():
        for value, moved in zip(trainer.model.parameters(), load(checkpoint, stage).parameters()):
            value.copy_(moved)
    trainer.data_collator.max_length = 512
    found, wanted = step(trainer), step(in_step)
    assert_equal_steps(found, wanted)
    assert (tower, tokenizer) == ([2], [2])
    sums = torch.tensor([[row[name] for name in LOG_PROB_COLUMNS] for row in own])
    for column, values in zip(sums.T, expected):
        assert all(torch.isclose(column, value, **CLOSE).any() for value in values)


def test_a_volume_is_read_and_processed_once_per_pair(pairs, monkeypatch):
    read = []
    whole = Mu2ImageProcessor.load
    monkeypatch.setattr(
        Mu2ImageProcessor, "load", lambda self, source: read.append(source) or whole(self, source)
    )
    rows = [pairs[i] for i in range(3)]
    batch = PairCollator(tiny_processor(), max_length=512)(rows)
    assert len(read) == 3 and len(batch["pixel_values"]) == len(batch["pixel_attention_mask"]) == 3
    assert len(batch["input_ids"]) == 6 and rows == [pairs[i] for i in range(3)]


def test_rows_with_no_and_with_several_volumes_train_as_in_the_stock_trainer(checkpoint, processor, tmp_path):
    rows = [
        {
            "images": [str(save(tmp_path, seed)) for seed in seeds],
            "prompt": turns("user", f"Question {len(seeds)}?"),
            "chosen": turns("assistant", "Findings: a mass."),
            "rejected": turns("assistant", "Findings: none."),
        }
        for seeds in ((0,), (), (1, 2))
    ]
    rows, fields = Dataset.from_list(rows), {"per_device_train_batch_size": 3}
    steps = [
        step(
            make(ours, load(checkpoint, STAGES["full"]), rows, processor, tmp_path, STAGES["full"], **fields)
        )
        for ours in (False, True)
    ]
    assert_equal_steps(steps[1], steps[0])


def save(folder: Path, seed: int) -> Path:
    import nibabel as nib

    nib.save(tiny_nifti(seed), folder / f"{seed}.nii.gz")
    return folder / f"{seed}.nii.gz"


def test_cached_features_give_the_step_of_volumes(checkpoint, pairs, processor, tmp_path):
    stage = STAGES["tokenizer"]
    model = load(checkpoint, stage)
    cached = cache_features(model, processor, pairs, tmp_path / "features", dtype=torch.float32)
    expected = step(make(False, load(checkpoint, stage), pairs, processor, tmp_path, stage))
    trainer = make(True, model, cached, processor, tmp_path, stage)
    tower, _ = count_encodings(trainer.model, trainer.ref_model)
    assert_equal_steps(step(trainer), expected)
    assert tower == []


def test_text_alone_trains_as_in_the_stock_trainer(checkpoint, pairs, processor, tmp_path):
    rows = pairs.remove_columns("images")
    steps = [
        step(make(ours, load(checkpoint, LANGUAGE), rows, processor, tmp_path, LANGUAGE))
        for ours in (False, True)
    ]
    assert_equal_steps(steps[1], steps[0])


def test_a_reference_with_another_tower_shares_nothing(checkpoint):
    policy, reference = load(checkpoint, LANGUAGE), load(checkpoint, LANGUAGE)
    assert what_is_shared(policy) == "patches"  # the text embeddings, which question tokens pass, are trained
    policy.get_input_embeddings().requires_grad_(False)
    assert what_is_shared(policy, reference) == "prompts"
    with torch.no_grad():
        next(reference.model.mu2_tokenizer.parameters()).add_(1e-3)
        assert what_is_shared(policy, reference) == "patches"
        next(reference.model.vision_tower.parameters()).add_(1e-3)
    assert what_is_shared(policy, reference) == "nothing"


def precomputed(checkpoint, rows, processor, out: Path, **fields) -> StageDPOTrainer:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    return make(True, model, rows, processor, out, STAGES["full"], precompute_ref_log_probs=True, **fields)


def test_a_killed_precomputation_goes_on_where_it_was(checkpoint, pairs, processor, tmp_path, monkeypatch):
    asked = []
    whole = StageDPOTrainer.compute_ref_log_probs

    def ask(self, model, inputs):
        asked.append(len(inputs["input_ids"]) // 2)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole(self, model, inputs)

    monkeypatch.setattr(StageDPOTrainer, "compute_ref_log_probs", ask)
    with pytest.raises(KeyboardInterrupt):
        precomputed(checkpoint, pairs, processor, tmp_path)
    (folder,) = (tmp_path / "reference").iterdir()
    assert len(read_log_probs(folder)) == 2
    (torn,) = folder.glob("log-probs-*.jsonl")
    torn.write_text(torn.read_text() + '{"pair": "half a li')
    first = precomputed(checkpoint, pairs, processor, tmp_path).train_dataset
    assert asked == [2, 2, 2]
    again = precomputed(
        checkpoint, pairs, processor, tmp_path, beta=0.5
    ).train_dataset  # another beta, same reference
    assert asked == [2, 2, 2]
    whole_run = precomputed(checkpoint, pairs, processor, tmp_path / "undisturbed").train_dataset
    for name in LOG_PROB_COLUMNS:
        assert first[name] == again[name] == whole_run[name]


def test_what_the_reference_depends_on_is_computed_anew(checkpoint, pairs, processor, tmp_path):
    """A pair that changed is asked about again, and another reference or length has numbers of its own."""
    first = precomputed(checkpoint, pairs, processor, tmp_path).train_dataset
    (folder,) = (tmp_path / "reference").iterdir()
    changed = pairs.map(
        lambda row: (
            {"rejected": turns("assistant", "Findings: gone.")} if row["study_id"] == "train-0" else {}
        )
    )
    second = precomputed(checkpoint, changed, processor, tmp_path).train_dataset
    assert len(read_log_probs(folder)) == 5
    same = [a == b for a, b in zip(first["ref_rejected_logps"], second["ref_rejected_logps"])]
    assert same == [False, True, True, True]
    precomputed(make_tiny_checkpoint(tmp_path / "other", seed=1), pairs, processor, tmp_path)
    precomputed(checkpoint, pairs, processor, tmp_path, max_length=400)
    assert len(list((tmp_path / "reference").iterdir())) == 3


def test_a_damaged_file_of_log_probabilities_is_refused(tmp_path):
    (tmp_path / "log-probs-a.jsonl").write_text('{"pair": "a", "chosen": -1.0}\n')
    with pytest.raises(ValueError, match="Delete it"):
        read_log_probs(tmp_path)


def test_placeholders_are_never_cut(checkpoint, pairs, processor, tmp_path):
    trainer = make(
        True, load(checkpoint, STAGES["full"]), pairs, processor, tmp_path, STAGES["full"], max_length=6
    )
    with pytest.raises(ValueError, match="increase `max_length`"):
        step(trainer)
    with pytest.raises(ValueError, match="keep_start"):
        refused(load(checkpoint, STAGES["full"]), pairs, processor, truncation_mode="keep_end")


def refused(model, rows, processor, **fields):
    """Make a trainer as far as the checks of its arguments."""
    arguments = SimpleNamespace(**{"truncation_mode": "keep_start", "output_dir": "out", **fields})
    options = {"train_dataset": rows, "processing_class": processor, "stage": STAGES["full"]}
    StageDPOTrainer(model, None, arguments, **options)


def test_another_model_is_sent_to_the_stock_trainer(pairs, processor):
    with pytest.raises(ValueError, match="trl dpo"):
        refused(torch.nn.Linear(2, 2), pairs, processor)


@pytest.mark.parametrize("precompute", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_recipe_trains_an_adapter_by_preference(precompute, cli, checkpoint, tmp_path):
    """It evaluates, watches the volume, speaks of studies and not of texts, and leaves an adapter that reports."""
    data = write_pairs_folder(tmp_path / "data", 4, 2)
    recipe = tmp_path / "recipe.json"
    fields = {
        "objective": "dpo", "model_name_or_path": str(checkpoint), "dataset_name": str(data), "stage": "adapt",
        "use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"], "output_dir": str(tmp_path / "out"),
        "precompute_ref_log_probs": precompute, "eval_strategy": "epoch", "monitor_studies": 2, "sample_steps": 1,
        "num_train_epochs": 1, "per_device_eval_batch_size": 2, "gradient_accumulation_steps": 2, **COMMON,
    }  # fmt: skip
    fields["per_device_train_batch_size"] = 1
    recipe.write_text(json.dumps(fields))  # JSON is YAML
    result = cli("train", recipe)
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["steps"] == 2
    assert {"eval_rewards/margins", "eval_loss", "eval_image_dependence"} <= set(record["evaluation"])
    assert (tmp_path / "out" / "reference").exists() == precompute
    assert not (tmp_path / "out" / "ref").exists()  # the reference is the model without the adapter
    result = cli("merge", tmp_path / "out", tmp_path / "merged")
    assert result.code == 0, result.err
    before = AutoModelForImageTextToText.from_pretrained(checkpoint).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in moved) and any("mu2_tokenizer" in name for name in moved)


def test_the_adapters_reference_is_the_model_without_it(checkpoint, pairs, processor, tmp_path):
    stage = STAGES["adapt"]
    model = load(checkpoint, stage)
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    model = get_peft_model(model, complete_lora(lora, model, stage))
    options = {
        "args": DPOConfig(str(tmp_path), **COMMON),
        "train_dataset": pairs,
        "processing_class": processor,
    }
    trainer = OBJECTIVE.make_trainer(SimpleNamespace(reference_cache=None), model, stage=stage, **options)
    trainer.model.train()
    loss, gradients, logged = step(trainer)
    assert loss.item() == pytest.approx(0.6931472, abs=1e-6) and logged["rewards/chosen"] == 0
    assert list(model.peft_config) == ["default"] and any("lora_B" in name for name in gradients)
    assert any("mu2_tokenizer" in name for name in gradients)


@pytest.mark.slow
@pytest.mark.parametrize("precompute", [False, True])
def test_two_processes_train_as_one_does(precompute, checkpoint, tmp_path):
    """Under gloo; of a reference that is computed ahead, each process computes its share."""
    data, losses = write_pairs_folder(tmp_path / "data", 8), []
    for num_processes in (1, 2):
        out = tmp_path / str(num_processes)
        fields = {
            "objective": "dpo", "model_name_or_path": str(checkpoint), "dataset_name": str(data), "stage": "full",
            "output_dir": str(out), "precompute_ref_log_probs": precompute, "eval_strategy": "no", "max_steps": 4,
            "train_sampling_strategy": "sequential", "lr_scheduler_type": "constant", **COMMON,
        }  # fmt: skip
        fields["per_device_train_batch_size"] = 4 // num_processes
        fields["learning_rate"] = 1e-3
        (tmp_path / "recipe.json").write_text(json.dumps(fields))
        run(tmp_path, num_processes, "hf_mu2.cli", "train", str(tmp_path / "recipe.json"))
        record = json.loads((out / "run.json").read_text())
        assert record["num_processes"] == num_processes
        losses.append([entry["loss"] for entry in record["losses"]])
        if precompute:
            (folder,) = (out / "reference").iterdir()
            assert len(list(folder.glob("log-probs-*"))) == num_processes and len(read_log_probs(folder)) == 8
    assert losses[0][0] == pytest.approx(0.6931, abs=1e-3) and losses[0][-1] < losses[0][0]
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_half_precision_trains_and_stays_close(checkpoint, pairs, processor, tmp_path):
    """bf16 autocast with checkpointing: the shared passes run under it as the stock trainer's do."""
    stage, fields = STAGES["full"], {"bf16": True, "gradient_checkpointing": True, "max_steps": 2}
    losses = []
    for ours in (False, True):
        trainer = make(ours, load(checkpoint, stage), pairs, processor, tmp_path / str(ours), stage, **fields)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=2e-2)
