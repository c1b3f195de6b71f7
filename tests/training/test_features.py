"""Cached features: each volume passes the frozen tower once, training is the same, and stale ones are refused."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_mu2.files import PARTIAL
from hf_mu2.model.features_mu2 import parse_features, read_features
from hf_mu2.training import features
from hf_mu2.training.features import cache_features, check_features, feature_settings, vision_tower
from hf_mu2.training.stages import STAGES, complete_lora, freeze
from tests.data.volume_rows import prepare_here
from tests.tiny import make_tiny_checkpoint
from tests.training.rows import write_sft_folder
from tests.training.test_every_trainer import make_trainer
from tests.training.test_recipes import write_recipe

FP32_LOSS = 1e-5
BF16_LOSS = 2e-3  # of a loss of 5.7 nats: features are rounded to 8 significant bits


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("features") / "checkpoint")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_sft_folder(tmp_path_factory.mktemp("features") / "data", 4)


@pytest.fixture
def rows(data) -> Dataset:
    return load_dataset(str(data), split="train")


@pytest.fixture
def model(checkpoint):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    freeze(model, STAGES["tokenizer"])
    return model


@pytest.fixture(scope="module")
def processor(checkpoint):
    return AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture
def encoded(model) -> list[int]:
    """Count the volumes that pass the tower."""
    seen: list[int] = []
    vision_tower(model).register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return seen


def test_each_volume_is_encoded_once_wherever_it_lies(model, processor, rows, data, tmp_path, encoded):
    """Not again for a second row, a second call, or a copy of the file."""
    twice = Dataset.from_dict(
        {name: [*rows[name], *rows[name]] for name in ("study_id", "prompt", "completion")}
    )
    paths = [str(data / "train" / f"{i}.nii.gz") for i in range(4)]
    moved = shutil.copy(paths[0], str(tmp_path / "moved.nii.gz"))
    twice = twice.add_column("images", [[path] for path in [*paths, moved, *paths[1:]]])
    first = cache_features(model, processor, twice, tmp_path / "store", batch_size=3)
    assert sum(encoded) == 4
    assert first["images"][0] == first["images"][4]
    assert first.remove_columns("images").to_list() == twice.remove_columns("images").to_list()
    again = cache_features(model, processor, rows, tmp_path / "store")
    assert sum(encoded) == 4 and list(again["images"]) == list(first["images"])[:4]


def test_volumes_that_come_later_are_added(model, processor, rows, tmp_path, encoded):
    cache_features(model, processor, rows.select([0, 1]), tmp_path)
    both = cache_features(model, processor, rows, tmp_path)
    assert sum(encoded) == 4
    assert len({parse_features(images[0])["features"] for images in both["images"]}) == 2
    check_features(both, model, processor)


def test_features_are_what_the_tower_makes_of_the_volume(model, processor, rows, tmp_path):
    cached = cache_features(model, processor, rows, tmp_path, dtype=torch.float32, batch_size=2)
    for row, reference in zip(rows, cached["images"]):
        batch = processor.image_processor(row["images"], return_tensors="pt")
        with torch.no_grad():
            expected = vision_tower(model)(**batch).last_hidden_state
        read = processor.image_processor(reference, return_tensors="pt")
        assert torch.equal(read["pixel_attention_mask"], batch["pixel_attention_mask"])
        torch.testing.assert_close(read["vision_hidden_states"], expected, atol=1e-5, rtol=0)
        assert len(read_features(reference[0])) == batch["pixel_attention_mask"].sum()  # no padding is stored


@pytest.mark.parametrize("kind", ["transformers", "sft", "dpo"])
def test_loss_and_gradients_are_those_of_training_on_volumes(kind, checkpoint, processor, rows, tmp_path):
    """Stock trainers and their collators, DPO's fused head too; bfloat16 within its rounding."""
    found = {}
    for name, dtype in (("volumes", None), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = AutoModelForImageTextToText.from_pretrained(checkpoint)
        freeze(model, STAGES["tokenizer"])
        with torch.no_grad():  # else the policy of DPO is its reference
            model.lm_head.weight.mul_(1.5)
        source = (
            rows if dtype is None else cache_features(model, processor, rows, tmp_path / "store", dtype=dtype)
        )
        trainer = make_trainer(kind, model, processor, source, tmp_path / name)
        torch.manual_seed(0)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        assert ("pixel_values" in batch) == (dtype is None)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
        assert set(parameters) == {key for key, _ in model.named_parameters() if "mu2_tokenizer" in key}
        found[name] = loss.item(), torch.cat([p.grad.flatten() for p in parameters.values()])
    expected, gradient = found["volumes"]
    assert found["fp32"][0] == pytest.approx(expected, abs=FP32_LOSS)
    torch.testing.assert_close(found["fp32"][1], gradient, atol=1e-5, rtol=1e-3)
    assert found["bf16"][0] == pytest.approx(expected, abs=BF16_LOSS)
    assert torch.cosine_similarity(found["bf16"][1], gradient, dim=0) > 0.999


def test_prepared_volumes_are_cached_by_their_name_alone(model, processor, data, tmp_path, encoded):
    raw = [{"study_id": str(i), "images": [str(data / "train" / f"{i}.nii.gz")]} for i in range(2)]
    images = prepare_here(raw, tmp_path / "prepared", processor.image_processor)
    rows = Dataset.from_list([{"images": [image]} for image in images])
    cached = cache_features(model, processor, rows, tmp_path / "store")
    again = cache_features(model, processor, rows, tmp_path / "store")
    assert sum(encoded) == 2 and list(again["images"]) == list(cached["images"])
    check_features(cached, model, processor)


def killed_while_writing(model, processor, rows, folder):
    """Cache until the second shard is half written, and die."""
    torch.set_num_threads(1)  # a forked process must not wait for the threads of its parent
    save, calls = features.save_file, []

    def save_half(tensors, path, metadata):
        save(tensors, path, metadata)
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(path.read_bytes()[:100])
            os.kill(os.getpid(), signal.SIGKILL)

    features.save_file = save_half
    cache_features(model, processor, rows, folder, volumes_per_shard=1)


def test_a_killed_run_continues_where_it_was(model, processor, rows, tmp_path, encoded):
    child = multiprocessing.get_context("fork").Process(
        target=killed_while_writing, args=(model, processor, rows, tmp_path / "store")
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(list((tmp_path / "store").glob(f"*/{PARTIAL}*"))) == 1
    cached = cache_features(model, processor, rows, tmp_path / "store", volumes_per_shard=1)
    assert sum(encoded) == 3
    assert not list((tmp_path / "store").glob(f"*/{PARTIAL}*"))
    undisturbed = cache_features(model, processor, rows, tmp_path / "undisturbed")
    for one, other in zip(cached["images"], undisturbed["images"]):
        assert torch.equal(read_features(one[0]), read_features(other[0]))


@pytest.fixture
def cached(model, processor, rows, tmp_path) -> Dataset:
    return cache_features(model, processor, rows, tmp_path / "store", volumes_per_shard=3)


def test_the_guard_passes_fresh_features_and_rows_without_any(model, processor, rows, cached):
    check_features(cached, model, processor)
    check_features(rows, model, processor)
    check_features(rows.remove_columns("images"), model, processor)


@pytest.mark.parametrize("name", ["align", "adapt", "full"])
def test_a_stage_that_trains_the_tower_is_refused(name, model, processor, cached):
    freeze(model, STAGES[name])
    with pytest.raises(ValueError, match="frozen vision tower"):
        check_features(cached, model, processor)


def test_features_of_other_weights_are_refused(model, processor, cached):
    """One weight of one tower that differs in its last bit is enough."""
    with torch.no_grad():
        weight = vision_tower(model).encoder.layers[0].fc1.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], weight.new_tensor(9.0))
    with pytest.raises(ValueError, match="other weights of the tower"):
        check_features(cached, model, processor)


def test_features_of_another_configuration_or_processor_are_refused(model, checkpoint, cached):
    processor = AutoProcessor.from_pretrained(checkpoint)
    vision_tower(model).config.frames_per_chunk = 1  # changes the memory, not the features
    check_features(cached, model, processor)
    processor.image_processor.windows = ((-160.0, 240.0),)
    with pytest.raises(ValueError, match=r"windows .*, not "):
        check_features(cached, model, processor)
    vision_tower(model).config.layer_norm_eps = 1e-3
    with pytest.raises(ValueError, match=r"layer_norm_eps 1e-05, not 0\.001"):
        check_features(cached, model, processor)


def test_missing_shards_and_rows_of_both_kinds_are_refused(model, processor, rows, cached, data):
    raw = [[str(data / "train" / "0.nii.gz")], *list(cached["images"])[1:]]
    mixed = cached.remove_columns("images").add_column("images", raw)
    with pytest.raises(ValueError, match="features in 3 of 4"):
        check_features(mixed, model, processor)
    Path(parse_features(cached["images"][3][0])["features"]).unlink()
    with pytest.raises(ValueError, match="nothing is at"):
        check_features(cached, model, processor)


def test_rows_with_features_pass_through_a_file(model, processor, cached, tmp_path):
    """As `trl` opens them."""
    cached.to_json(str(tmp_path / "rows" / "train.jsonl"))
    rows = load_dataset(str(tmp_path / "rows"), split="train")
    assert rows.to_list() == cached.to_list()
    check_features(rows, model, processor)
    freeze(model, STAGES["full"])
    with pytest.raises(ValueError, match="frozen vision tower"):
        check_features(rows, model, processor)


def test_features_of_features_are_refused(model, processor, cached, tmp_path):
    with pytest.raises(ValueError, match=r"study-0.*prepared already"):
        cache_features(model, processor, cached, tmp_path / "again")


def test_a_model_in_an_adapter_has_the_features_of_its_base(model, processor, cached):
    before = feature_settings(model, processor)
    config = complete_lora(LoraConfig(r=2, target_modules=["q_proj"]), model, STAGES["tokenizer"])
    wrapped = get_peft_model(model, config)
    assert feature_settings(wrapped, processor) == before
    check_features(cached, wrapped, processor)


def test_a_recipe_trains_from_features_as_from_volumes(cli, checkpoint, data, tmp_path):
    """Losses, the image dependence of the monitor and its sample reports, in fp32."""
    shutil.copytree(data, tmp_path / "data")
    found = {}
    for name, extra in (("volumes", {}), ("features", {"cache_features": str(tmp_path / "store")})):
        recipe = write_recipe(
            tmp_path / f"{name}.yaml", stage="tokenizer", model_name_or_path=str(checkpoint),
            output_dir=str(tmp_path / name), sample_steps=2, **extra,
        )  # fmt: skip
        result = cli("train", recipe)
        assert result.code == 0, result.err
        record = json.loads((tmp_path / name / "run.json").read_text())
        evaluation = [record["evaluation"][key] for key in ("eval_loss", "eval_image_dependence")]
        found[name] = [entry["loss"] for entry in record["losses"]] + evaluation
    assert found["features"] == pytest.approx(found["volumes"], abs=FP32_LOSS)
    assert (tmp_path / "features" / "samples.md").read_text() == (
        tmp_path / "volumes" / "samples.md"
    ).read_text()
    assert len(list((tmp_path / "store").glob("*-fp32/*.safetensors"))) == 1


@pytest.mark.parametrize("stage", ["full", "impression", "tower"])
def test_a_recipe_whose_stage_cannot_use_features_is_refused(cli, stage, checkpoint, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml", stage=stage, model_name_or_path=str(checkpoint), cache_features="store"
    )
    result = cli("train", recipe)
    assert result.code == 2 and "frozen tower" in result.err
