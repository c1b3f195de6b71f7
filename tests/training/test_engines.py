"""Engines: several processes train as one does, and the configurations fit the installed libraries.

Two processes run on gloo through torchrun, not `accelerate launch --cpu --num_processes 2`, which starts one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from transformers import AutoModelForImageTextToText

from hf_mu2.training.recipe import RECIPES
from hf_mu2.training.sharding import see_empty_volumes
from tests.tiny import make_tiny_checkpoint, tiny_config, tiny_model, tiny_nifti
from tests.training.rows import FINDINGS, turns

ENGINES = ("one_gpu", "ddp", "fsdp2", "zero2", "zero3")
NUM_STEPS = 20
SHARDED = '{"distributed_config": {"fsdp_size": 2}}'
RECIPE = """
model_name_or_path: {base}/start
dataset_name: {base}/data
stage: full
output_dir: {base}/out
eval_strategy: "no"
save_strategy: "no"
max_steps: {num_steps}
per_device_train_batch_size: 4
train_sampling_strategy: sequential
learning_rate: 1.0e-3
bf16: false
use_cpu: true
report_to: none
gradient_checkpointing: false
logging_steps: 1
max_length: 512
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny checkpoint, a recipe, and eight rows: 2 frames, 2 frames, text, text, 4 frames, 4 frames, text, text.

    Two processes with two rows each: one sees volumes and the other text, of other lengths.
    """
    base = tmp_path_factory.mktemp("engines")
    make_tiny_checkpoint(base / "start")
    (base / "data" / "train").mkdir(parents=True)
    lines = []
    for i in range(8):
        names = [] if i % 4 > 1 else [f"{i}.nii.gz"]
        for name in names:
            nib.save(tiny_nifti(i, (12 if i < 4 else 40, 40, 44)), base / "data" / "train" / name)
        row = {
            "images_file_names": names,
            "study_id": f"study-{i}",
            "prompt": turns("user", "Write the findings."),
            "completion": turns("assistant", "Findings: " + FINDINGS[i % 4] * (1 + i % 3)),
        }
        lines.append(json.dumps(row))
    (base / "data" / "train" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    (base / "recipe.yaml").write_text(RECIPE.format(base=base, num_steps=NUM_STEPS))
    return base


def run(base: Path, num_processes: int, module: str, *arguments: str) -> None:
    """Run a module on the recipe in one process or several."""
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(base / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command = [sys.executable, *(several if num_processes > 1 else []), "-m", module, *arguments]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]


def train(base: Path, num_processes: int, name: str, *overrides: str) -> list[dict]:
    """Train with the worker and return what each process wrote down."""
    size = str(4 // num_processes)
    arguments = ["--output_dir", str(base / name), "--per_device_train_batch_size", size, *overrides]
    run(base, num_processes, "tests.training.engine_worker", str(base / "recipe.yaml"), *arguments)
    return [json.loads((base / name / f"rank-{i}.json").read_text()) for i in range(num_processes)]


@pytest.fixture(scope="module")
def single(base) -> dict:
    facts = train(base, 1, "single")[0]
    assert facts["world_size"] == 1 and len(facts["losses"]) == NUM_STEPS
    assert facts["losses"][-1] < facts["losses"][0] - 0.5  # it learns, so equal losses say something
    return facts


def assert_losses_are_equal(facts: dict, single: dict) -> None:
    torch.testing.assert_close(facts["losses"], single["losses"], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_two_processes_under_ddp_train_as_one_does(base, single):
    for facts in train(base, 2, "ddp"):
        assert (facts["world_size"], facts["backend"]) == (2, "gloo")
        assert facts["wrapped"] == "DistributedDataParallel"
        assert_losses_are_equal(facts, single)


@pytest.fixture(scope="module")
def sharded(base) -> list[dict]:
    return train(base, 2, "sharded", "--model_init_kwargs", SHARDED)


@pytest.mark.slow
def test_two_processes_with_sharded_weights_train_as_one_does(single, sharded):
    for facts in sharded:
        assert (facts["world_size"], facts["backend"]) == (2, "gloo")
        assert facts["whole"] == 0 and facts["sharded"] == single["whole"]
        assert facts["held"] < 0.55 * single["held"]
        assert_losses_are_equal(facts, single)


@pytest.mark.slow
def test_sharded_weights_train_where_one_process_has_volumes_and_the_other_text(sharded):
    with_volumes, with_text = sharded[0]["seen"], sharded[1]["seen"]
    assert {tuple(shape) for shape in with_volumes} == {(2, 2), (2, 4)}
    assert {tuple(shape) for shape in with_text} == {(0, 0)}


@pytest.mark.slow
@pytest.mark.usefixtures("single")  # writes one of the folders
def test_a_sharded_checkpoint_loads_in_one_process(base, sharded):
    """Both the shards of two processes and the whole file that the trainer gathers."""
    import hf_mu2  # noqa: F401  registers the classes

    names = sorted(path.name for path in (base / "sharded" / "shards").glob("*.safetensors"))
    assert len(names) == 2
    whole, shards, alone = (
        AutoModelForImageTextToText.from_pretrained(base / folder).eval()
        for folder in ("sharded", "sharded/shards", "single")
    )
    ids = torch.arange(10, 40)[None]
    expected = whole(input_ids=ids).logits
    assert torch.equal(shards(input_ids=ids).logits, expected)
    torch.testing.assert_close(alone(input_ids=ids).logits, expected, rtol=0, atol=1e-3)
    for (name, a), b in zip(whole.state_dict().items(), shards.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.slow
def test_the_train_command_runs_under_torchrun(base, single):
    out = base / "command"
    overrides = ["--output_dir", str(out), "--per_device_train_batch_size", "2"]
    run(base, 2, "hf_mu2.cli", "train", str(base / "recipe.yaml"), *overrides)
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["num_processes"]) == ("done", 2)
    assert_losses_are_equal({"losses": [entry["loss"] for entry in record["losses"]]}, single)


def test_a_batch_of_text_runs_the_tower_and_is_not_changed_by_it():
    model = tiny_model().train()
    ids = torch.arange(10, 30)[None]
    expected = model(input_ids=ids, labels=ids).loss
    handles = see_empty_volumes(model)
    loss = model(input_ids=ids, labels=ids).loss
    assert torch.equal(loss, expected)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert all(not grad.any() for name, grad in gradients.items() if "vision_tower" in name)
    assert len(handles) == 1


def test_placeholders_without_a_volume_are_still_refused_beside_an_empty_one():
    model = tiny_model().train()
    see_empty_volumes(model)
    ids = torch.tensor([[1, *[model.config.image_token_id] * 8, 20, 21]])
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        model(input_ids=ids)


def test_there_is_a_configuration_for_every_engine():
    assert {path.stem for path in (RECIPES / "accelerate").glob("*.yaml")} == set(ENGINES)


def launch_arguments(engine: str):
    """Parse a configuration as `accelerate launch --config_file` does."""
    path = str(RECIPES / "accelerate" / f"{engine}.yaml")
    arguments = launch_command_parser().parse_args(["--config_file", path, "-m", "hf_mu2.cli", "train", "x"])
    arguments, _, _ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(
        load_config_from_file(path).deepspeed_config or {}
    )
    return arguments


@pytest.mark.parametrize("engine", ENGINES)
def test_accelerate_reads_a_configuration_and_knows_every_field(engine):
    kinds = {"one_gpu": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    config = load_config_from_file(str(RECIPES / "accelerate" / f"{engine}.yaml"))
    assert config.distributed_type.value == kinds[engine]
    arguments = launch_arguments(engine)
    assert arguments.mixed_precision == "bf16" and arguments.num_processes == (
        1 if engine == "one_gpu" else 8
    )
    known = vars(arguments)
    assert not [name for name in {**config.fsdp_config, **config.deepspeed_config} if name not in known]


def test_fsdp2_wraps_the_tower_as_a_whole_and_every_layer_of_tokenizer_and_language_model(monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin

    for name, value in prepare_multi_gpu_env(launch_arguments("fsdp2")).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    model = tiny_model()
    plugin.set_auto_wrap_policy(model)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    wrapped = [name for name, module in model.named_modules() if policy(module)]
    assert sorted(wrapped) == [
        "model.language_model.layers.0",
        "model.language_model.layers.1",
        "model.mu2_tokenizer.aggregator.layers.0",
        "model.mu2_tokenizer.refiner.layers.0",
        "model.vision_tower",
    ]


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_accepts_the_configuration(stage, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed", reason="pip install deepspeed")
    from accelerate.utils import DeepSpeedPlugin
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.utils import get_z3_leaf_modules

    _, environment = prepare_deepspeed_cmd_env(launch_arguments(f"zero{stage}"))
    for name, value in environment.items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == stage and plugin.zero3_init_flag == (stage == 3)
    fields = {  # what the trainer fills in from its arguments
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 8,
        "gradient_clipping": 1.0,
    }
    plugin.deepspeed_config_process(must_match=False, **fields)
    plugin.set_mixed_precision("bf16")
    config = DeepSpeedConfig(plugin.deepspeed_config)
    assert config.zero_optimization_stage == stage and config.bfloat16_config.enabled
    if stage == 3:
        assert config.zero_config.gather_16bit_weights_on_model_save
        model = tiny_model()
        plugin.set_moe_leaf_modules(model)
        assert get_z3_leaf_modules(model) == [model.model.vision_tower]


def test_wrap_classes_fit_another_language_model_by_its_layer_name():
    """The page says to change the last name: it is the layer that the language model asks not to split."""
    for text, layer in (("llama", "LlamaDecoderLayer"), ("qwen3", "Qwen3DecoderLayer")):
        model = tiny_model(text) if text != "llama" else tiny_model()
        assert layer in model._no_split_modules and tiny_config(text).text_config.model_type == text
