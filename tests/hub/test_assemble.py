"""Assembling checkpoints: the placeholder's slot, templates, padding, what is refused, what loads and learns."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PhiConfig,
    Qwen3Config,
)

from hf_mu2.hub.assemble import assemble, image_processor_for, load_vision_tower, take_slot
from hf_mu2.hub.official_keys import vision_keys
from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.model.modeling_mu2_vision import Mu2VisionModel
from hf_mu2.model.processing_mu2 import Mu2Processor
from tests.model.test_processing_mu2 import FORMATS, published_template, tokenizer_with
from tests.tiny import tiny_config, tiny_tokenizer, tiny_volume

SMALL = {
    "vision_config": tiny_config().vision_config.to_dict(),
    "tokenizer_config": {
        name: value
        for name, value in tiny_config().tokenizer_config.to_dict().items()
        if name not in ("vision_hidden_size", "text_hidden_size", "frame_grid")
    },
}
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
}


def save_lm(folder, config, tokenizer):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama_folder(folder, tie=True, extra=("<|reserved_special_token_0|>",), rows=None):
    tokenizer = tokenizer_with(published_template("llama3_2"), *FORMATS["llama3_2"])
    tokenizer = without_placeholder(tokenizer, folder / "tokenizer")
    tokenizer.add_tokens(list(extra), special_tokens=True)
    tokenizer.pad_token = None
    config = LlamaConfig(vocab_size=rows or len(tokenizer), tie_word_embeddings=tie, **SIZES)
    return save_lm(folder, config, tokenizer)


def without_placeholder(tokenizer, folder):
    """A tokenizer of a language model knows no volumes: rename our placeholder."""
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace("<|image|>", "<|unused|>"))
    return type(tokenizer).from_pretrained(folder)


def ask(processor, text="Any nodule?"):
    return processor.apply_chat_template(
        [processor.build_messages(tiny_volume(), question=text)],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@pytest.mark.parametrize("tie", [True, False])
def test_the_assembled_checkpoint_speaks_as_its_language_model_and_learns(tmp_path, tie):
    folder = llama_folder(tmp_path / "lm", tie)
    output = assemble(folder, tmp_path / "out", **SMALL)
    assert output == tmp_path / "out" and not list(tmp_path.glob(".*"))
    processor = AutoProcessor.from_pretrained(output)
    model = AutoModelForImageTextToText.from_pretrained(output)
    lm = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert isinstance(processor, Mu2Processor)

    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=ids).logits, lm(input_ids=ids).logits)

    batch = ask(processor)
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 8
    assert model.model.find_questions(batch["input_ids"], 1)[1].sum() == len("Any nodule?")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        assert all(p.grad is not None for p in model.model.mu2_tokenizer.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert len(model.eval().generate(**batch, max_new_tokens=3)[0]) > batch["input_ids"].shape[1]


def test_the_placeholder_takes_a_reserved_slot_and_keeps_its_id(tmp_path):
    folder = llama_folder(tmp_path / "lm")
    slot = AutoProcessor.from_pretrained(folder).convert_tokens_to_ids("<|reserved_special_token_0|>")
    output = assemble(folder, tmp_path / "out", **SMALL)
    processor, config = AutoProcessor.from_pretrained(output), Mu2Config.from_pretrained(output)
    assert processor.image_token_id == config.image_token_id == slot
    assert (
        processor.tokenizer.convert_tokens_to_ids("<|reserved_special_token_0|>")
        == processor.tokenizer.unk_token_id
    )
    assert processor.tokenizer.decode([slot, 65], skip_special_tokens=True) == processor.tokenizer.decode(
        [65]
    )


def test_without_a_reserved_slot_the_vocabulary_grows_by_what_is_needed(tmp_path):
    folder = llama_folder(tmp_path / "lm", extra=())
    before = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    output = assemble(folder, tmp_path / "out", **SMALL)
    model = AutoModelForImageTextToText.from_pretrained(output)
    weight = model.get_input_embeddings().weight
    assert len(weight) == len(before) + 1 == model.config.text_config.vocab_size
    torch.testing.assert_close(weight[: len(before)], before)
    assert weight.data_ptr() == model.lm_head.weight.data_ptr()


def test_unused_rows_of_the_embedding_are_a_slot(tmp_path):
    folder = llama_folder(tmp_path / "lm", extra=(), rows=320)
    output = assemble(folder, tmp_path / "out", **SMALL)
    assert Mu2Config.from_pretrained(output).text_config.vocab_size == 320


def test_padding_is_no_end_of_a_turn(tmp_path):
    output = assemble(llama_folder(tmp_path / "lm"), tmp_path / "out", **SMALL)
    processor = AutoProcessor.from_pretrained(output)
    model = AutoModelForImageTextToText.from_pretrained(output)
    config = model.generation_config
    end = processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert end in config.eos_token_id and config.pad_token_id not in config.eos_token_id
    assert config.pad_token_id == processor.tokenizer.pad_token_id == model.config.text_config.pad_token_id
    assert processor.tokenizer.padding_side == "left"


@pytest.mark.parametrize("name", ["qwen3", "phi3"])
def test_other_language_models_keep_their_format(tmp_path, name):
    tokenizer = without_placeholder(
        tokenizer_with(published_template(name), *FORMATS[name]), tmp_path / "tokenizer"
    )
    tokenizer.chat_template = published_template(name)
    config_class = {"qwen3": Qwen3Config}.get(name, LlamaConfig)
    folder = save_lm(tmp_path / "lm", config_class(vocab_size=len(tokenizer), **SIZES), tokenizer)
    output = assemble(folder, tmp_path / "out", **SMALL)
    processor = AutoProcessor.from_pretrained(output)
    messages = [{"role": "user", "content": "Hi"}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert processor.question_end_token_ids == list(Mu2Config.from_pretrained(output).question_end_token_ids)
    assert ask(processor)["pixel_values"].ndim == 5


def test_a_base_model_gets_a_template(tmp_path):
    tokenizer = without_placeholder(tiny_tokenizer(), tmp_path / "tokenizer")
    tokenizer.chat_template = None
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=48, n_layer=2, n_head=4, n_positions=256)
    output = assemble(save_lm(tmp_path / "lm", config, tokenizer), tmp_path / "out", **SMALL)
    batch = ask(AutoProcessor.from_pretrained(output))
    model = AutoModelForImageTextToText.from_pretrained(output)
    assert model.model.find_questions(batch["input_ids"], 1)[1].any()
    assert model(**batch).logits.isfinite().all()


@pytest.mark.parametrize(
    "config",
    [
        PhiConfig(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            vocab_size=300,
            bos_token_id=1,
            eos_token_id=4,
        ),
        Gemma2Config(**{**SIZES, "num_hidden_layers": 1}, vocab_size=300, final_logit_softcapping=0.01),
    ],
    ids=["head with a bias", "capped logits"],
)
def test_language_models_whose_head_is_more_than_a_matrix_are_refused(tmp_path, config):
    folder = save_lm(tmp_path / "lm", config, tiny_tokenizer())
    with pytest.raises(ValueError, match="one linear head"):
        assemble(folder, tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_wrong_folders_and_presets_are_refused(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="new or empty folder"):
        assemble(tmp_path / "lm", tmp_path)
    with pytest.raises(ValueError, match="new or empty folder"):
        assemble(tmp_path / "lm", tmp_path / "note.txt")
    with pytest.raises(ValueError, match="existing folder"):
        assemble(tmp_path / "lm", tmp_path / "out")
    with pytest.raises(ValueError, match="preset is one of"):
        assemble(tmp_path / "lm", tmp_path / "out", preset="mu3")


def test_a_saved_vision_tower_is_taken_over_with_its_sizes(tmp_path):
    torch.manual_seed(1)
    tower = Mu2VisionModel(tiny_config(vision_config={"hidden_size": 40, "num_channels": 2}).vision_config)
    tower.save_pretrained(tmp_path / "tower")
    output = assemble(
        llama_folder(tmp_path / "lm"),
        tmp_path / "out",
        vision_tower=tmp_path / "tower",
        tokenizer_config=SMALL["tokenizer_config"],
    )
    model = AutoModelForImageTextToText.from_pretrained(output)
    for name, value in tower.state_dict().items():
        torch.testing.assert_close(model.model.vision_tower.state_dict()[name], value)
    processor = AutoProcessor.from_pretrained(output)
    assert len(processor.image_processor.windows) == 2
    assert model(**ask(processor)).logits.isfinite().all()
    with pytest.raises(ValueError, match="must fit its configuration"):
        assemble(
            tmp_path / "lm",
            tmp_path / "other",
            vision_tower=tmp_path / "tower",
            vision_config={"hidden_size": 32},
            tokenizer_config=SMALL["tokenizer_config"],
        )


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_published_vision_tower_is_converted(tmp_path, suffix):
    fields = {
        "hidden_size": 128,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "frame_size": (32, 256, 256),
        "patch_size": (4, 16, 16),
    }
    torch.manual_seed(2)
    tower = Mu2VisionModel(tiny_config(vision_config=fields).vision_config)
    state = published_names(tower)
    path = tmp_path / f"pretrained_ViT.{suffix}"
    torch.save(state, path) if suffix == "bin" else save_file(state, path)
    for source in (path, *([tmp_path] if suffix == "bin" else [])):
        found, converted, _ = load_vision_tower(source)
        assert found["hidden_size"] == 128 and found["num_hidden_layers"] == 1
        for name, value in tower.state_dict().items():
            torch.testing.assert_close(converted[name], value)


def published_names(tower: Mu2VisionModel) -> dict[str, torch.Tensor]:
    state = tower.state_dict()
    published = {}
    for key in vision_keys(tower.config):
        parts = [state[name] for name in key.targets]
        value = torch.cat(parts) if parts else torch.zeros(key.shape)
        published[key.name] = (value.T if key.is_transposed else value).reshape(key.shape).contiguous()
    return published


@pytest.mark.parametrize("preset", ["mu2-1b", "mu2-1b-paper", "official", "tiny"])
def test_image_processors_give_what_the_vision_tower_takes(preset):
    config = Mu2Config.from_preset(preset)
    processor = image_processor_for(config)
    vision = config.vision_config
    assert (processor.num_slices, processor.size.height, processor.size.width) == tuple(vision.frame_size)
    assert processor.num_channels == vision.num_channels and processor.patch_depth == vision.patch_size[0]
    assert processor.max_frames == config.tokenizer_config.max_frames
    assert processor.mode == ("official" if preset == "official" else "default")
    covered = [
        mm * n for mm, n in zip(processor.spacing, (processor.num_slices * processor.max_frames, 1, 1))
    ]
    assert covered[0] == pytest.approx(512)
    with pytest.raises(ValueError, match="needs a window"):
        image_processor_for(Mu2Config.from_preset(preset, vision_config={"num_channels": 9}))


def test_the_published_form_works_at_the_width_of_the_language_model(tmp_path):
    sizes = {
        "num_selected_tokens": 16,
        "num_query_tokens": 8,
        "num_heads": 4,
        "num_refiner_layers": 1,
        "num_aggregator_layers": 1,
        "max_frames": 4,
    }
    output = assemble(
        llama_folder(tmp_path / "lm"),
        tmp_path / "out",
        preset="official",
        vision_config=SMALL["vision_config"],
        tokenizer_config=sizes,
    )
    config = json.loads((output / "config.json").read_text())
    assert config["tokenizer_config"]["hidden_size"] == SIZES["hidden_size"]


def test_taking_a_slot_twice_changes_nothing():
    tokenizer = take_slot(tiny_tokenizer(), "<|image|>")
    assert len(tokenizer) == len(tiny_tokenizer())
    assert take_slot(tokenizer, "<|image|>") is tokenizer
