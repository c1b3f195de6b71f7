import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

import hf_mu2  # noqa: F401  (registers the Auto classes)
from hf_mu2.hub.convert import (
    convert_checkpoint,
    convert_vision_state,
    inspect_checkpoint,
    official_inputs,
)
from hf_mu2.hub.official_keys import check_state, official_keys
from hf_mu2.hub.official_layout import find_layout
from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.model.modeling_mu2 import Mu2ForConditionalGeneration
from tests.hub import official
from tests.hub.official import LAYOUTS, QUERIES, TOKENIZER, VISION, Layout
from tests.tiny import tiny_tokenizer

LLAMA = LAYOUTS["llama"]


class Converted(NamedTuple):
    layout: Layout
    state: official.State
    source: Path
    output: Path


@pytest.fixture(scope="module", params=LAYOUTS)
def converted(request, tmp_path_factory) -> Converted:
    layout = LAYOUTS[request.param]
    folder = tmp_path_factory.mktemp("convert")
    state = official.build_state(layout)
    source = official.write(official.store(state, layout), layout, folder / "source")
    return Converted(layout, state, source, convert_checkpoint(source, folder / "output"))


def to_double(state: official.State) -> official.State:
    return {name: tensor.double() for name, tensor in state.items()}


def compute_both(layout: Layout, state: official.State, folder: Path, batch: int = 1, num_frames: int = 3):
    """Outputs for two questions, and the transcription's logits; float64, since sharp attention amplifies rounding."""
    images = torch.rand(batch, num_frames, *official.FRAME, dtype=torch.float64)
    input_ids = torch.randint(6, official.VOCABULARY, (batch, QUERIES + 12))
    question_ids = torch.randint(6, official.VOCABULARY, (batch, 7))
    model = Mu2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float64).eval()
    mapped = input_ids.clone()
    mapped[:, 1 : 1 + QUERIES] = model.config.image_token_id
    mapped[:, 0] = torch.where(input_ids[:, 0] == model.config.image_token_id, 7, input_ids[:, 0])
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            expected = official.logits(to_double(state), layout, images, input_ids, question_ids)
            outputs = model(input_ids=mapped, pixel_values=images, question_input_ids=question_ids)
            other = model(input_ids=mapped, pixel_values=images, question_input_ids=question_ids[:, :3])
    finally:
        torch.set_default_dtype(torch.float32)
    return outputs, other, expected


def test_a_converted_checkpoint_computes_what_the_published_code_does(converted):
    # The published form without positions mixes the samples of a batch; at batch 1, as it was used, it does not.
    batch = 1 if converted.layout.attention == "mha" else 2
    outputs, other, expected = compute_both(converted.layout, converted.state, converted.output, batch)
    torch.testing.assert_close(outputs.logits, expected, atol=5e-5, rtol=1e-5)
    # The comparison is worth something only if the volume tokens differ and depend on the question.
    tokens = outputs.image_hidden_states
    assert (tokens - tokens.mean(dim=1, keepdim=True)).norm() / tokens.norm() > 1e-3
    assert (other.logits - outputs.logits).abs().max() > 1e-2


def test_the_layout_is_detected_and_stored_in_the_config(converted):
    layout, conversion = converted.layout, Mu2Config.from_pretrained(converted.output).conversion
    assert conversion["language_model"] == layout.language_model
    assert (
        conversion["attention"]
        == {"rma": "relative bias", "rope": "rotary", "mha": "swapped axes"}[layout.attention]
    )
    assert conversion["selection"] == ("soft" if layout.is_soft else "topk")
    assert conversion["pooling"] == (
        "published" if layout.is_gated else "fixed" if layout.is_pooled else "none"
    )
    assert conversion["is_tied"] == (layout.head != "untied")
    assert tuple(conversion["projector_grid"]) == layout.pooling_grid
    assert ("LoRA" in conversion["layout"]) == layout.is_lora
    assert ("March" in conversion["layout"]) == (layout.prefix != TOKENIZER)
    assert conversion["num_tensors"] == len(official.store(converted.state, replace(layout, is_lora=False)))
    detected = str(inspect_checkpoint(converted.source))
    assert f"attention: {conversion['attention']}" in detected
    assert "projector_grid: " + ", ".join(map(str, layout.pooling_grid)) in detected


def test_weights_alone_tell_the_variant(converted, tmp_path):
    """Without config.json, given the base model and what no tensor shows: image size, and k of the hard selection."""
    base = tmp_path / "base"
    AutoConfig.for_model(
        converted.layout.language_model, **official.language_model_fields(converted.layout)
    ).save_pretrained(base)
    folder = official.write(
        official.store(converted.state, converted.layout),
        converted.layout,
        tmp_path / "bare",
        with_config=False,
    )
    known = {name: official.config_fields(converted.layout)[name] for name in ("image_size", "patch_size")}
    if not converted.layout.is_soft:
        known["u2t_top_k"] = official.SELECTED
    if not converted.layout.is_pooled:
        known["use_multi_scale"] = False
    output = convert_checkpoint(folder, tmp_path / "output", config=known, language_model=base)
    with_config, without = (Mu2Config.from_pretrained(path) for path in (converted.output, output))
    assert without.tokenizer_config.to_dict() == with_config.tokenizer_config.to_dict()
    assert without.vision_config.to_dict() == with_config.vision_config.to_dict()
    assert without.text_config.to_dict() == with_config.text_config.to_dict()


def example_names(stored: official.State) -> list[str]:
    """One tensor of each kind: the names without their numbers, the first of each."""
    kinds: dict[str, str] = {}
    for name in stored:
        kinds.setdefault("".join(c for c in name if not c.isdigit()), name)
    return list(kinds.values())


def refuse(stored: official.State, layout: Layout, folder: Path, name: str):
    source = official.write(stored, layout, folder / "source")
    # A LoRA pair is named by the plain name of its layer, or by the half that is left.
    plain = name.removeprefix("base_model.model.").replace(layout.prefix, TOKENIZER)
    layer = plain.split(".base_layer")[0].split(".lora_")[0]
    with pytest.raises(ValueError, match="Nothing was converted") as error:
        convert_checkpoint(source, folder / "output")
    assert layer in str(error.value), name
    assert [path.name for path in folder.iterdir()] == ["source"]


@pytest.mark.parametrize("change", ["removed", "reshaped", "added"])
def test_one_tensor_too_few_too_many_or_of_another_shape_is_refused_and_named(converted, tmp_path, change):
    layout, stored = converted.layout, official.store(converted.state, converted.layout)
    names = [name for name in example_names(stored) if "lm_head" not in name]
    some = [
        "query_tokens",
        "gate_fc.weight",
        "score_net.weight",
        "linear_aggregator.wv",
        "qkv",
        "projector.2.bias",
    ]
    some += ["spatial_attention", "lora_B", "base_layer", "input_layernorm"]
    picked = [next((name for name in names if mark in name), None) for mark in some]
    for i, name in enumerate(dict.fromkeys(name for name in picked if name)):
        changed = dict(stored)
        if change == "removed":
            del changed[name]
        elif change == "reshaped":
            changed[name] = torch.cat([changed[name], changed[name][-1:]])
        else:
            name = name.rpartition(".")[0] + ".extra"
            changed[name] = torch.zeros(3)
        folder = tmp_path / str(i)
        folder.mkdir()
        refuse(changed, layout, folder, name)


@pytest.mark.parametrize("name", ["qwen3, released", "llama, no positions, hard selection"])
def test_every_single_tensor_is_asked_for(name):
    layout = LAYOUTS[name]
    state, fields = official.build_state(layout), official.config_fields(layout)
    config, _ = find_layout(state, fields)
    keys = official_keys(config)
    assert {key.name: key.shape for key in keys} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    for name in state:
        changes = [{key: tensor for key, tensor in state.items() if key != name}]
        changes.append({**state, name: torch.cat([state[name], state[name][-1:]])})
        for changed in changes:
            # The table follows from the config, whichever tensor is damaged.
            again, _ = find_layout(changed, fields)
            assert again.tokenizer_config.to_dict() == config.tokenizer_config.to_dict(), name
            assert again.vision_config.to_dict() == config.vision_config.to_dict(), name
            with pytest.raises(ValueError, match="Nothing was converted") as error:
                check_state(changed, keys, "it")
            assert name in str(error.value)


def test_the_full_sizes_have_the_published_number_of_tensors_and_parameters():
    def text(layers: int, width: int, mlp: int, heads: int) -> dict[str, Any]:
        return {
            "model_type": "qwen3",
            "vocab_size": 151669,
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
        }

    def measure(text_config: dict[str, Any], position: str | None = "1d") -> tuple[int, dict[str, int]]:
        width = text_config["hidden_size"]
        tokens = {"hidden_size": width, "text_hidden_size": width}
        tokens |= {"position": position, "swap_axes": position is None}
        keys = official_keys(
            Mu2Config.from_preset("official", text_config=text_config, tokenizer_config=tokens)
        )
        parts = (VISION, "model.mm_projector.", TOKENIZER)
        return len(keys), {
            part: sum(math.prod(key.shape) for key in keys if key.name.startswith(part)) for part in parts
        }

    llama = Mu2Config.from_preset("official").text_config.to_dict()
    small, large = text(28, 2048, 6144, 16), text(36, 2560, 9728, 32)
    vision = 87_389_184
    assert measure(llama) == (498, {VISION: vision, "model.mm_projector.": 5_771_264, TOKENIZER: 355_265_441})
    assert measure(small) == (662, {VISION: vision, "model.mm_projector.": 5_771_264, TOKENIZER: 355_265_441})
    assert measure(small, "rope")[0] == 650 and measure(small, "rope")[1][TOKENIZER] == 355_167_233
    assert measure(large) == (750, {VISION: vision, "model.mm_projector.": 8_524_800, TOKENIZER: 554_157_473})
    assert measure(large, "rope")[0] == 738
    assert measure(small, None)[0] - 28 * 11 - 3 == 291  # `nn.MultiheadAttention`


def test_a_checkpoint_that_lost_its_tokenizer_is_refused(tmp_path):
    state = {
        name: tensor for name, tensor in official.build_state(LLAMA).items() if not name.startswith(TOKENIZER)
    }
    source = official.write(state, LLAMA, tmp_path / "source")
    with pytest.raises(ValueError, match="loaded and saved again"):
        convert_checkpoint(source, tmp_path / "output")


@pytest.mark.parametrize(
    "field, value, named",
    [
        ("attn_type", "rope", "relative_bias"),
        ("enable_dmtp", False, "gate_fc.weight"),
        ("enable_diffts", False, "score_net.weight"),
        ("num_3d_query_token", 8, "query_tokens"),
        ("u2t_num_layers", 3, "layers.2"),
        ("num_hidden_layers", 1, "model.layers.1"),
        ("vocab_size", 128, "embed_tokens"),
        ("proj_pooling_type", "sequence", "proj_pooling_type"),
        ("mm_projector_type", "linear", "mm_projector_type"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused_and_the_tensor_named(tmp_path, field, value, named):
    source = official.write(official.build_state(LLAMA), LLAMA, tmp_path / "source")
    with pytest.raises(ValueError, match=named):
        inspect_checkpoint(source, config={field: value})


def test_a_stale_enable_rpe_does_not_hide_the_bias_that_was_trained(tmp_path):
    source = official.write(official.build_state(LLAMA), LLAMA, tmp_path / "source")
    fields = {name: value for name, value in official.config_fields(LLAMA).items() if name != "attn_type"}
    (source / "config.json").write_text(json.dumps({**fields, "enable_rpe": False}))
    detected = inspect_checkpoint(source)
    assert detected.attention == "relative bias" and any("enable_rpe" in note for note in detected.notes)
    (source / "config.json").write_text(json.dumps({**fields, "enable_rpe": True}))
    assert inspect_checkpoint(source).attention == "relative bias"


def test_what_no_weight_shows_is_said_in_the_notes(tmp_path):
    layout = LAYOUTS["llama, no positions, hard selection"]
    state = official.build_state(layout)
    state["model.embed_tokens.weight"][-4:] = state["model.embed_tokens.weight"][:-4].mean(dim=0)
    source = official.write(state, layout, tmp_path / "source")
    fields = official.config_fields(layout)
    for name in ("u2t_num_heads", "u2t_top_k"):
        del fields[name]
    (source / "config.json").write_text(json.dumps(fields))
    notes = " ".join(inspect_checkpoint(source).notes)
    assert "u2t_num_heads" in notes and "u2t_top_k" in notes and "260-263 are one repeated vector" in notes


@pytest.mark.parametrize("origin", ["given", "adapter_config.json", "config.json", "published default"])
def test_alpha_of_a_lora_dump_comes_from_where_it_is_known(tmp_path, origin):
    layout = LAYOUTS["LoRA"]
    alpha = 32.0 if origin == "published default" else 6.0
    state = official.build_state(layout)
    source = official.write(official.store(state, layout, lora_alpha=alpha), layout, tmp_path / "source")
    if origin.endswith(".json"):
        fields = official.config_fields(layout) if origin == "config.json" else {}
        (source / origin).write_text(json.dumps({**fields, "lora_alpha": alpha}))
    output = convert_checkpoint(source, tmp_path / "output", lora_alpha=alpha if origin == "given" else None)
    model = Mu2ForConditionalGeneration.from_pretrained(output)
    assert model.config.conversion["lora"] == {"rank": 4, "alpha": alpha, "alpha_from": origin, "layers": 14}
    weight = model.model.language_model.layers[1].self_attn.q_proj.weight
    torch.testing.assert_close(weight, state["model.layers.1.self_attn.q_proj.weight"], atol=1e-5, rtol=1e-5)


def test_a_vision_tower_is_converted_alone(tmp_path):
    tower = official.under(official.build_state(LLAMA), VISION)
    torch.save(tower, tmp_path / "pretrained_ViT.bin")
    sizes = {"image_size": official.FRAME, "patch_size": official.PATCH}
    output = convert_checkpoint(tmp_path / "pretrained_ViT.bin", tmp_path / "output", config=sizes)
    model = AutoModel.from_pretrained(output).eval()
    assert model.config.conversion["kind"] == "vision tower"
    frames = torch.rand(2, 3, *official.FRAME)
    with torch.inference_mode():
        expected = official.vision_tower(tower, frames.flatten(0, 1), official.PATCH, official.VISION_HEADS)
        features = model(frames).last_hidden_state
    torch.testing.assert_close(features.flatten(0, 1), expected, atol=1e-5, rtol=1e-5)


def test_a_vision_state_is_converted_in_memory_and_refused_when_incomplete():
    tower = official.under(official.build_state(LLAMA), VISION)
    sizes = {"frame_size": official.FRAME, "patch_size": official.PATCH}
    fields, state = convert_vision_state(tower, **sizes)
    assert fields == {
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **sizes,
    }
    assert not {
        tensor.untyped_storage().data_ptr() for tensor in tower.values() if tensor.shape[0] == 384
    } & {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    with pytest.raises(ValueError, match="position_embeddings"):
        convert_vision_state(tower)
    for name in tower:
        incomplete = {key: tensor for key, tensor in tower.items() if key != name}
        with pytest.raises(ValueError, match=f"1 missing: {name}"):
            convert_vision_state(incomplete, **sizes)


def test_a_base_that_is_neither_given_nor_known_is_asked_for(tmp_path):
    folder = official.write(official.build_state(LLAMA), LLAMA, tmp_path / "source", with_config=False)
    with pytest.raises(ValueError, match="Pass `language_model`"):
        inspect_checkpoint(folder)
    AutoConfig.for_model("qwen3", **official.language_model_fields(LLAMA)).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="got qwen3"):
        inspect_checkpoint(folder, language_model=tmp_path / "base")


def no_checkpoint(kind: str, folder: Path) -> Path:
    file = folder / "pytorch_model.bin"
    if kind == "LFS pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    elif kind == "pickled code":
        torch.save({"model": torch.nn.Linear(2, 2)}, file)
    elif kind == "more than tensors":
        torch.save({"epoch": 3, "weight": torch.ones(2)}, file)
    elif kind == "cut off":
        torch.save({"weight": torch.ones(1000)}, file)
        file.write_bytes(file.read_bytes()[:2000])
    elif kind == "safetensors cut off":
        file = folder / "model.safetensors"
        file.write_bytes(b"\x20\x00\x00\x00\x00\x00\x00\x00{")
    elif kind == "empty folder":
        return folder
    elif kind == "nothing":
        return folder / "absent.bin"
    elif kind == "Hub repository out of reach":
        return Path("nobody/nothing")
    elif kind == "other model":
        torch.save({"encoder.weight": torch.ones(2)}, file)
    return file


@pytest.mark.parametrize(
    "kind, message",
    [
        ("LFS pointer", "Git LFS pointer"),
        ("pickled code", "pickled code"),
        ("more than tensors", "one flat state dict"),
        ("cut off", "cut off"),
        ("safetensors cut off", "cut off"),
        ("empty folder", "holds nothing"),
        ("nothing", "does not exist"),
        ("Hub repository out of reach", "can be fetched now"),
        ("other model", "u2tokenizer"),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_advice(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(no_checkpoint(kind, tmp_path), tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_folder_in_use_is_left_alone_and_a_killed_run_is_taken_up(tmp_path):
    source = official.write(official.build_state(LLAMA), LLAMA, tmp_path / "source")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="new or empty folder"):
        convert_checkpoint(source, tmp_path / "used")
    (tmp_path / ".partial_output").mkdir()
    (tmp_path / ".partial_output" / "model.safetensors").write_text("half")
    (tmp_path / "output").mkdir()
    output = convert_checkpoint(source, tmp_path / "output", dtype=torch.bfloat16)
    assert AutoModelForImageTextToText.from_pretrained(output).dtype == torch.bfloat16
    assert {path.name for path in tmp_path.iterdir()} == {"source", "used", "output"}


def tokenizer_with(placeholder: bool, start: bool):
    """A tokenizer with or without `<im_patch>` as one token, and with or without a start token, as Llama's has."""
    tokenizer = tiny_tokenizer()
    if placeholder:
        tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
    if start:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 1)]
        )
    return tokenizer


@pytest.mark.parametrize("placeholder", [True, False], ids=["one token", "split"])
@pytest.mark.parametrize("start", [True, False], ids=["start token", "no start token"])
def test_the_published_prompt_maps_onto_ours_with_equal_logits(tmp_path, placeholder, start):
    state, question = official.build_state(LLAMA), "What is seen?"
    tokenizer = tokenizer_with(placeholder, start)
    source = official.write(state, LLAMA, tmp_path / "source")
    tokenizer.save_pretrained(source)
    output = convert_checkpoint(source, tmp_path / "output")
    model = Mu2ForConditionalGeneration.from_pretrained(output, dtype=torch.float64).eval()
    assert ("is one token (263)" in model.config.conversion["placeholder"]) == placeholder

    images = torch.rand(1, 2, *official.FRAME, dtype=torch.float64)
    inputs = official_inputs(question, AutoProcessor.from_pretrained(output).tokenizer, model.config)
    input_ids = torch.tensor([tokenizer("<im_patch>" * QUERIES + question)["input_ids"]])
    question_ids = torch.tensor([tokenizer(question, add_special_tokens=False)["input_ids"]])
    first = 1 if start else 263 if placeholder else tokenizer.convert_tokens_to_ids("<")
    assert inputs["input_ids"][0, 0] == first
    assert inputs["input_ids"].shape == input_ids.shape
    if placeholder:  # with a start token the question is whole, without it has lost its first token
        rest = question if start else question[1:]
        assert tokenizer.decode(inputs["input_ids"][0, 1 + QUERIES :]) == rest

    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            expected = official.logits(to_double(state), LLAMA, images, input_ids, question_ids)
            logits = model(**inputs, pixel_values=images).logits
            written = model.generate(**inputs, pixel_values=images, do_sample=False, max_new_tokens=1)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(logits, expected, atol=5e-5, rtol=1e-5)
    assert written[0, -1] == expected[0, -1].argmax()


def test_a_question_with_our_placeholder_or_without_text_is_refused():
    config = Mu2Config.from_preset("official", image_token_id=5)
    tokenizer = tokenizer_with(placeholder=True, start=False)
    for question in ("", "a <|image|> b"):
        with pytest.raises(ValueError, match="without the placeholder"):
            official_inputs(question, tokenizer, config)


def test_the_processor_beside_the_weights_preprocesses_as_published(tmp_path):
    source = official.write(official.build_state(LLAMA), LLAMA, tmp_path / "source")
    tokenizer_with(placeholder=True, start=False).save_pretrained(source)
    output = convert_checkpoint(source, tmp_path / "output")
    processor, config = AutoProcessor.from_pretrained(output), Mu2Config.from_pretrained(output)
    assert processor.image_processor.mode == "official"
    assert processor.num_query_tokens == QUERIES
    assert config.image_token_id == processor.image_token_id == 5
    assert list(config.question_end_token_ids) == processor.question_end_token_ids == [4, 3]
    names = {path.name for path in output.iterdir()}
    assert {"modeling_mu2.py", "processing_mu2.py", "generation_config.json", "model.safetensors"} <= names


def test_a_placeholder_beyond_the_embedding_is_refused(tmp_path):
    layout = replace(LLAMA, head="untied")
    source = official.write(official.build_state(layout), layout, tmp_path / "source")
    tokenizer = tokenizer_with(placeholder=True, start=False)
    tokenizer.add_tokens(["<|image_pad|>"], special_tokens=True)
    with pytest.raises(ValueError, match="renamed to"):
        convert_checkpoint(
            source, tmp_path / "output", tokenizer=renamed_image_token(tokenizer, tmp_path / "tokenizer")
        )


def renamed_image_token(tokenizer, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace('"<|image|>"', '"<|other|>"'))
    return folder


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "qwen3, released",
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "eos_token_id": 4},
        ),
        ("llama", {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 4}),
        ("phi3", {"eos_token_id": 4, "pad_token_id": 0}),
    ],
)
def test_sampling_is_that_of_the_release_unless_the_checkpoint_says_otherwise(tmp_path, name, expected):
    layout = LAYOUTS[name]
    source = official.write(official.build_state(layout), layout, tmp_path / "source")
    generation = GenerationConfig.from_pretrained(convert_checkpoint(source, tmp_path / "output"))
    assert {key: generation.to_dict()[key] for key in expected} == expected
    GenerationConfig(do_sample=True, temperature=0.3).save_pretrained(source)
    generation = GenerationConfig.from_pretrained(convert_checkpoint(source, tmp_path / "again"))
    assert generation.temperature == 0.3
