"""A checkpoint in the ecosystem: three ways to load it, every Auto class, generation, training, backbones."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import is_torchvision_available

from hf_mu2.model import modeling_mu2
from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.modeling_mu2 import Mu2ForConditionalGeneration, Mu2Model
from hf_mu2.model.processing_mu2 import Mu2Processor
from tests.tiny import make_tiny_checkpoint, tiny_config, tiny_model, tiny_nifti, tiny_processor, tiny_volume

BACKBONES = ["llama", "qwen3", "phi3"]
VERSION = Version(transformers.__version__)
# AutoImageProcessor of older transformers needs torchvision; AutoProcessor does not.
IMAGE_PROCESSOR_LOADS = Version("5.21") <= VERSION or is_torchvision_available()
HEADS = [AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def processor() -> Mu2Processor:
    return tiny_processor()


def prompts(processor, *questions, volumes=None, **kwargs):
    volumes = volumes or [tiny_volume(i) for i in range(len(questions))]
    return processor.apply_chat_template(
        [processor.build_messages(v, question=q) for v, q in zip(volumes, questions)],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
        **kwargs,
    )


# ------------------------------------------------------------------------------------------------------------ loading


def test_every_auto_class_finds_ours(checkpoint):
    assert type(AutoConfig.from_pretrained(checkpoint)) is Mu2Config
    assert type(AutoModel.from_pretrained(checkpoint)) is Mu2Model
    for auto in HEADS:
        assert type(auto.from_pretrained(checkpoint)) is Mu2ForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(checkpoint)) is Mu2Processor
    assert len(AutoTokenizer.from_pretrained(checkpoint)) == 263


@pytest.mark.skipif(not IMAGE_PROCESSOR_LOADS, reason="needs torchvision")
def test_the_image_processor_loads_by_itself(checkpoint):
    assert type(AutoImageProcessor.from_pretrained(checkpoint)) is Mu2ImageProcessor


@pytest.mark.parametrize("kernel", ["eager", "sdpa", "flex_attention"])
def test_a_kernel_of_the_language_model_may_be_chosen(checkpoint, processor, kernel):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, attn_implementation=kernel)
    assert model.model.language_model.config._attn_implementation == kernel
    ours = "eager" if kernel == "eager" else "sdpa"
    for part in (model.model.vision_tower, model.model.mu2_tokenizer):
        assert part.config._attn_implementation == ours
    if kernel != "flex_attention":  # which compiles for a minute
        batch = prompts(processor, "Any nodule?")
        expected = AutoModelForImageTextToText.from_pretrained(checkpoint)
        with torch.inference_mode():
            torch.testing.assert_close(model(**batch).logits, expected(**batch).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_slices", "num_frames"), [(1, 1), (40, 2), (1000, 4)])
def test_volumes_of_any_number_of_slices_run_end_to_end(processor, num_slices, num_frames):
    volume = tiny_volume(shape=(num_slices, 40, 44), spacing=(1.0, 2.0, 2.0))
    batch = prompts(processor, "Any nodule?", volumes=[volume])
    assert batch["pixel_values"].shape[1] == num_frames
    with torch.inference_mode():
        assert tiny_model()(**batch).logits.isfinite().all()


def test_a_pooled_grid_in_another_order_takes_the_mask_of_the_processor():
    """Released weights pool on a grid that is not that of their frames, and the processor always gives a mask."""
    config = tiny_config(
        tokenizer_config={
            "projection": "before",
            "hidden_size": 64,
            "projector_grid": (8, 2, 2),
            "max_frames": 2,
        }
    )
    processor = tiny_processor(config)
    processor.image_processor.mode = "official"
    batch = prompts(processor, "Any nodule?")
    assert batch["pixel_attention_mask"].all()
    model = Mu2ForConditionalGeneration(config).eval()
    with torch.inference_mode():
        logits = model(**batch).logits
        batch.pop("pixel_attention_mask")
        torch.testing.assert_close(model(**batch).logits, logits)


def test_the_base_model_and_the_head_load_each_other(checkpoint, processor):
    batch = prompts(processor, "Any nodule?")
    whole = AutoModelForImageTextToText.from_pretrained(checkpoint)
    base, info = AutoModel.from_pretrained(checkpoint, output_loading_info=True)
    assert not info["missing_keys"]
    with torch.inference_mode():
        torch.testing.assert_close(
            base(**batch).last_hidden_state, whole.model(**batch).last_hidden_state, rtol=0, atol=0
        )


REMOTE = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "hf_mu2":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import torch, transformers

folder, inputs, output, *names = sys.argv[1:]
parts = {name: getattr(transformers, name).from_pretrained(folder, trust_remote_code=True) for name in names}
model, processor = parts["AutoModelForImageTextToText"].eval(), parts["AutoProcessor"]
batch = processor.apply_chat_template(
    [processor.build_messages(inputs, question="Any nodule?")],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
with torch.inference_mode():
    logits = model(**batch).logits
assert not any(name.partition(".")[0] == "hf_mu2" for name in sys.modules)
model.save_pretrained(output + "/again")
processor.save_pretrained(output + "/again")
classes = {name: type(part).__name__ for name, part in parts.items()}
torch.save({"logits": logits, "classes": classes}, output + "/result.pt")
"""


def test_the_checkpoint_runs_from_its_own_files_without_the_package(checkpoint, processor, tmp_path):
    nib.save(tiny_nifti(), tmp_path / "ct.nii.gz")
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
    }
    expected = {"AutoConfig": Mu2Config, "AutoModel": Mu2Model, "AutoProcessor": Mu2Processor}
    expected |= {auto.__name__: Mu2ForConditionalGeneration for auto in HEADS}
    if IMAGE_PROCESSOR_LOADS:
        expected["AutoImageProcessor"] = Mu2ImageProcessor
    command = [sys.executable, "-c", REMOTE, checkpoint, tmp_path / "ct.nii.gz", tmp_path, *expected]
    run = subprocess.run(
        list(map(str, command)), env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    result = torch.load(tmp_path / "result.pt")
    assert result["classes"] == {auto: ours.__name__ for auto, ours in expected.items()}
    batch = prompts(processor, "Any nodule?", volumes=[tmp_path / "ct.nii.gz"])
    with torch.inference_mode():
        logits = AutoModelForImageTextToText.from_pretrained(checkpoint)(**batch).logits
    torch.testing.assert_close(result["logits"], logits, rtol=0, atol=0)
    # What remote code saves is a whole checkpoint again.
    names = {path.name for path in checkpoint.iterdir()}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names


def test_a_trained_adapter_equals_its_merged_model(checkpoint, processor, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4,
        target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
        modules_to_save=["mu2_tokenizer"],
    )
    base = AutoModelForImageTextToText.from_pretrained(checkpoint)
    model = peft.get_peft_model(base, config)
    batch = prompts(processor, "Any nodule?", "Is the heart large?")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(3):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    model.eval().save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        trained = model(**batch).logits

        through_peft = peft.PeftModel.from_pretrained(
            AutoModelForImageTextToText.from_pretrained(checkpoint), tmp_path / "adapter"
        )
        torch.testing.assert_close(through_peft.eval()(**batch).logits, trained, rtol=0, atol=0)
        if Version("5.21") <= VERSION:  # older ones leave out `modules_to_save`
            through_auto = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter")
            torch.testing.assert_close(through_auto.eval()(**batch).logits, trained, rtol=0, atol=0)
        merged = through_peft.merge_and_unload()
        assert type(merged) is Mu2ForConditionalGeneration
        merged.save_pretrained(tmp_path / "merged")
        saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(merged(**batch).logits, trained, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(saved(**batch).logits, merged(**batch).logits, rtol=0, atol=0)


def test_saving_what_was_loaded_gives_the_same_files(checkpoint, tmp_path):
    for auto in (AutoModelForImageTextToText, AutoProcessor):
        auto.from_pretrained(checkpoint).save_pretrained(tmp_path)
    names = {path.name for path in checkpoint.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (checkpoint / name).read_bytes(), name


def test_checkpoints_carry_their_code_and_nothing_of_this_machine(checkpoint):
    names = {path.name for path in checkpoint.glob("*.py")}
    assert names == {path.name for path in Path(modeling_mu2.__file__).parent.glob("*_mu2*.py")}
    for path in checkpoint.glob("*.json"):
        assert str(checkpoint.parent) not in path.read_text(), path.name
    assert (checkpoint / "model.safetensors").stat().st_mode & 0o044 == 0o044


# --------------------------------------------------------------------------------------------------------- generation


@pytest.fixture(scope="module")
def model() -> Mu2ForConditionalGeneration:
    """A model whose answers differ: its head is not tied, so that it does not repeat the last token."""
    model = tiny_model(text_config={"tie_word_embeddings": False})
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.5)
    model.generation_config.pad_token_id = 0
    return model


@pytest.mark.parametrize(
    ("options", "num_answers"),
    [
        ({"do_sample": False}, 1),
        ({"do_sample": True, "temperature": 0.9}, 1),
        ({"num_beams": 3}, 1),
        ({"num_beams": 3, "num_return_sequences": 2}, 2),
        ({"do_sample": True, "num_return_sequences": 3}, 3),
        ({"cache_implementation": "static", "do_sample": False}, 1),
    ],
    ids=["greedy", "sampled", "beams", "two of three beams", "three samples", "static cache"],
)
def test_generation_encodes_each_volume_once(model, processor, options, num_answers):
    batch = prompts(processor, "Any nodule?", "Is the heart much too large?")
    calls = []
    handle = model.model.vision_tower.register_forward_hook(lambda *args: calls.append(len(args[1][0])))
    try:
        output = model.generate(**batch, max_new_tokens=4, **options)
    finally:
        handle.remove()
    assert calls == [2]
    assert output.shape == (2 * num_answers, batch["input_ids"].shape[1] + 4)
    assert torch.equal(
        output[:, :-4], batch["input_ids"].repeat_interleave(num_answers, 0)
    )  # prompt, then answer


def test_greedy_generation_follows_the_logits_without_a_cache(model, processor):
    batch = prompts(processor, "Any nodule?")
    output = model.generate(**batch, max_new_tokens=5, do_sample=False)
    input_ids = batch.pop("input_ids")
    batch.pop("attention_mask")
    with torch.inference_mode():
        for _ in range(5):
            following = model(input_ids=input_ids, **batch).logits[:, -1].argmax(-1)
            input_ids = torch.cat([input_ids, following[:, None]], dim=1)
    assert torch.equal(output, input_ids)


def test_a_left_padded_batch_equals_single_runs(model, processor):
    questions = ["Any nodule?", "Is there any pleural effusion on the left side?", "Why?"]
    volumes = [tiny_volume(0), tiny_volume(1, shape=(20, 40, 44)), tiny_volume(2, shape=(5, 30, 30))]
    together = prompts(processor, *questions, volumes=volumes)
    assert (together["attention_mask"][2] == 0).any() and not together["pixel_attention_mask"].all()
    answers = model.generate(**together, max_new_tokens=6, do_sample=False)[:, -6:]
    with torch.inference_mode():
        last = model(**together).logits[:, -1]
    for i, (question, volume) in enumerate(zip(questions, volumes)):
        alone = prompts(processor, question, volumes=[volume])
        with torch.inference_mode():
            torch.testing.assert_close(model(**alone).logits[0, -1], last[i], rtol=1e-4, atol=1e-5)
        assert torch.equal(model.generate(**alone, max_new_tokens=6, do_sample=False)[0, -6:], answers[i])


def test_text_alone_and_two_volumes_generate(model, processor):
    alone = processor.apply_chat_template(
        [{"role": "user", "content": "Hello"}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert model.generate(**alone, max_new_tokens=3).shape[1] == alone["input_ids"].shape[1] + 3
    both = prompts(processor, "What changed?", volumes=[[tiny_volume(0), tiny_volume(1)]])
    assert len(both["pixel_values"]) == 2
    assert model.generate(**both, max_new_tokens=3).shape[1] == both["input_ids"].shape[1] + 3


def test_the_pipeline_accepts_a_nifti_path(checkpoint, tmp_path):
    nib.save(tiny_nifti(), tmp_path / "ct.nii.gz")
    pipe = pipeline("image-text-to-text", model=str(checkpoint))
    content = [
        {"type": "image", "path": str(tmp_path / "ct.nii.gz")},
        {"type": "text", "text": "Any nodule?"},
    ]
    for part in (content[0], {"type": "image", "image": str(tmp_path / "ct.nii.gz")}):
        messages = [{"role": "user", "content": [part, content[1]]}]
        output = pipe(text=messages, max_new_tokens=3, return_full_text=False)
        assert isinstance(output[0]["generated_text"], str)
    # A conversation per study, in one batch.
    outputs = pipe(text=[messages, messages], max_new_tokens=3, return_full_text=False, batch_size=2)
    assert len(outputs) == 2


# ----------------------------------------------------------------------------------------------------------- training


def rows(processor, number):
    dataset = []
    for i in range(number):
        batch = prompts(processor, "Any nodule?", volumes=[tiny_volume(i)])
        dataset.append(
            {name: value[0] for name, value in batch.items()} | {"labels": batch["input_ids"][0].clone()}
        )
    return dataset


def test_a_step_of_the_stock_trainer_moves_every_parameter(processor, tmp_path):
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows(processor, 4), processing_class=processor
    )
    assert trainer.train().training_loss > 0
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    trainer.save_model(tmp_path / "last")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "last")
    batch = prompts(processor, "Any nodule?")
    with torch.inference_mode():
        torch.testing.assert_close(again(**batch).logits, model.eval()(**batch).logits, rtol=1e-5, atol=1e-6)
    assert type(AutoProcessor.from_pretrained(tmp_path / "last")) is Mu2Processor


@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable`:FutureWarning", "ignore:None of the inputs"
)
@pytest.mark.parametrize("frozen", [(), ("vision_tower",), ("vision_tower", "language_model", "lm_head")])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(processor, frozen, reentrant):
    batch = prompts(processor, "Any nodule?", "Is the heart large?")
    gradients = []
    for is_checkpointed in (False, True):
        model = tiny_model().train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(part in name for part in frozen))
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, plain in gradients[0].items():
        assert (plain is None) == any(part in name for part in frozen), name
        if plain is not None:
            torch.testing.assert_close(gradients[1][name], plain, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("text", BACKBONES)
def test_any_backbone_saves_generates_and_learns(processor, tmp_path, text):
    make_tiny_checkpoint(tmp_path, text)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert model.config.text_config.model_type == text
    batch = prompts(processor, "Any nodule?", "Is the heart large?")
    model.generate(**batch, max_new_tokens=2, num_beams=2)
    model.train()(**batch, labels=batch["input_ids"]).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_embeddings_can_be_resized(processor):
    model = tiny_model()
    batch = prompts(processor, "Any nodule?")
    with torch.inference_mode():
        before = model(**batch).logits
        model.resize_token_embeddings(320, mean_resizing=False)
        after = model(**batch).logits
    assert model.config.text_config.vocab_size == 320 == model.lm_head.out_features
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    torch.testing.assert_close(after[..., :300], before, rtol=1e-5, atol=1e-6)


def test_half_precision_stays_close(checkpoint, processor):
    batch = prompts(processor, "Any nodule?")
    half = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16)
    full = AutoModelForImageTextToText.from_pretrained(checkpoint)
    assert all(p.dtype == torch.bfloat16 for p in half.parameters())
    with torch.inference_mode():
        logits, expected = half(**batch).logits, full(**batch).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.02)


def test_the_compiled_model_equals_the_eager_one(processor):
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    batch = prompts(processor, "Any nodule?", "Is the heart large?")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-6)


def test_trainers_that_compute_the_logits_themselves_see_the_volumes(processor):
    """TRL's fused head calls the base model and multiplies by the weight of the head."""
    model = tiny_model()
    assert isinstance(model.lm_head, nn.Linear) and model.lm_head.bias is None
    batch = prompts(processor, "Any nodule?")
    with torch.inference_mode():
        hidden = model.base_model(**batch, use_cache=False).last_hidden_state
        torch.testing.assert_close(hidden @ model.lm_head.weight.T, model(**batch).logits)
        other = prompts(processor, "Any nodule?", volumes=[tiny_volume(7)])
        assert not torch.allclose(model(**other).logits, model(**batch).logits, atol=1e-6)
