"""Numbers of the published modules (u2Tokenizer b9fb37a) against ours, through the converter's table of keys."""

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from hf_mu2.hub.convert import convert_vision_state
from hf_mu2.hub.official_keys import OfficialKey, check_state, convert_state, projector_keys, tokenizer_keys
from hf_mu2.model.configuration_mu2 import PRESETS, Mu2TokenizerConfig, Mu2VisionConfig
from hf_mu2.model.modeling_mu2_tokenizer import Mu2Tokenizer, SpatialPoolingProjector
from hf_mu2.model.modeling_mu2_vision import Mu2VisionModel
from tests.paths import shared_data_or_skip

Tensors = dict[str, torch.Tensor]


def load(name: str) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """Load a parity file: the published configuration, and tensors by their first word (state, in, out, grad)."""
    tensors: dict[str, Tensors] = {}
    with safe_open(shared_data_or_skip("parity", f"{name}.safetensors"), "pt") as file:
        for key in file.keys():  # noqa: SIM118
            kind, _, rest = key.partition(".")
            tensors.setdefault(kind, {})[rest] = file.get_tensor(key)
        return json.loads(file.metadata()["config"]), tensors


@pytest.fixture(scope="module")
def tokenizer() -> tuple[Mu2Tokenizer, dict[str, Tensors], list[OfficialKey]]:
    """The tokenizer with converted weights; it gets tokens that the projector has already pooled."""
    published, tensors = load("u2t_rma_dts_dmtp")
    config = Mu2TokenizerConfig(
        **{
            **PRESETS["official"]["tokenizer_config"],
            "hidden_size": published["embed_size"],
            "text_hidden_size": published["hidden_size"],
            "num_heads": published["num_heads"],
            "num_refiner_layers": published["num_layers"],
            "num_aggregator_layers": published["num_layers"],
            "num_selected_tokens": published["top_k"],
            "num_query_tokens": published["num_3d_query_token"],
            "frame_grid": (2, 2, 2 * published["N"]),
        }
    )
    keys = tokenizer_keys(config)
    check_state(tensors["state"], keys, "the parity file")
    model = Mu2Tokenizer(config)
    model.input_projector = nn.Identity()
    model.load_state_dict(convert_state(tensors["state"], keys))
    return model.eval(), tensors, keys


def steps(model: Mu2Tokenizer) -> dict[str, nn.Module]:
    """The modules whose outputs the file holds, in the order of computation."""
    modules: dict[str, nn.Module] = {}
    for i, layer in enumerate(model.refiner.layers):
        modules[f"svr.layer{i}.spatial"] = layer.spatial_attention
        modules[f"svr.layer{i}.temporal"] = layer.temporal_attention
        modules[f"svr.layer{i}"] = layer
    modules |= {"svr.selected": model.selection, "svr.pooled": model.pooling}
    for i, layer in enumerate(model.aggregator.layers):
        modules[f"tta.layer{i}.self_attention"] = layer.self_attention
        modules[f"tta.layer{i}.norm_self"] = layer.self_norm
        modules[f"tta.layer{i}.norm_cross_v"] = layer.visual_norm
        modules[f"tta.layer{i}"] = layer
    return modules | {"align_token": model.aggregator}


def run(model: Mu2Tokenizer, tensors: dict[str, Tensors], is_stepwise: bool) -> tuple[Tensors, Tensors]:
    """Compute the outputs of each step and all gradients.

    Stepwise, each step starts from the published output of the one before it, and gradients pass as if it did not: the
    weights are so sharp that free running amplifies rounding a hundredfold, in the published numbers as well.
    """
    dtype = next(model.parameters()).dtype
    seen: Tensors = {}
    hooks = []

    def hook(name: str):
        def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
            parts = output if isinstance(output, list) else [output]
            seen[name] = torch.cat(parts, dim=1).detach()
            if not is_stepwise:
                return output
            published = tensors["out"][name].to(dtype).split([part.shape[1] for part in parts], dim=1)
            forced = [value + (part - part.detach()) for value, part in zip(published, parts)]
            return forced if isinstance(output, list) else forced[0]

        return replace

    for name, module in steps(model).items():
        hooks.append(module.register_forward_hook(hook(name)))
    visual, text = (
        tensors["in"][name].to(dtype, copy=True).requires_grad_() for name in ("v_token", "t_token")
    )
    model.zero_grad()
    (model(visual, text) * tensors["in"]["cotangent"].to(dtype)).sum().backward()
    for handle in hooks:
        handle.remove()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return seen, gradients | {"v_token": visual.grad, "t_token": text.grad}


def published_gradients(tensors: dict[str, Tensors], keys: list[OfficialKey]) -> Tensors:
    """The same rearrangement that brings weights here brings their gradients."""
    named = {
        name.removeprefix("param."): grad
        for name, grad in tensors["grad"].items()
        if name.startswith("param.")
    }
    assert {key.name for key in keys} - named.keys() == {
        key.name for key in keys if not key.targets and "linear_aggregator" in key.name
    }
    gradients = convert_state(named, [key for key in keys if key.name in named])
    return gradients | {name: tensors["grad"][name] for name in ("v_token", "t_token")}


def test_each_step_of_the_tokenizer_computes_the_published_numbers(tokenizer):
    model, tensors, _ = tokenizer
    seen, _ = run(model, tensors, is_stepwise=True)
    assert seen.keys() == tensors["out"].keys() - {"svr.scores", "svr.gate_logits"}
    for name, tensor in seen.items():
        error = (tensor - tensors["out"][name]).abs() - 1e-5 * tensors["out"][name].abs()
        assert error.max() < 1e-5, name


def test_scores_and_gates_are_the_published_ones_but_for_biases_that_never_act(tokenizer):
    model, tensors, _ = tokenizer
    state, published = tensors["state"], tensors["out"]
    with torch.inference_mode():
        scores = model.selection.score(published["svr.layer3"])
        selected = published["svr.selected"].transpose(1, 2)
        means = torch.stack([F.avg_pool1d(selected, scale).mean(dim=2) for scale in (1, 2, 4)], dim=1)
        logits = model.pooling.gate(means).squeeze(-1)
    scores = scores + state["svt_module.token_selection.score_net.bias"]
    logits = logits + state["svt_module.dynamic_pool.gate_fc.bias"]
    torch.testing.assert_close(scores, published["svr.scores"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, published["svr.gate_logits"], atol=1e-5, rtol=1e-5)


def test_each_step_of_the_tokenizer_has_the_published_gradients(tokenizer):
    model, tensors, keys = tokenizer
    expected = published_gradients(tensors, keys)
    _, gradients = run(model, tensors, is_stepwise=True)
    assert gradients.keys() == expected.keys()
    for name, tensor in expected.items():
        # Gradients of key biases are zero but for rounding: a softmax over keys ignores them.
        scale = (
            expected[name.replace("key.bias", "key.weight")].norm() if "key.bias" in name else tensor.norm()
        )
        assert (gradients[name] - tensor).norm() <= 1e-4 * scale, name


def test_free_running_the_tokenizer_differs_by_rounding_only(tokenizer):
    """Float64 tells how far rounding carries: we stay as near to it as the published float32 numbers do."""
    model, tensors, keys = tokenizer
    outputs, gradients = run(model, tensors, is_stepwise=False)
    exact_outputs, exact_gradients = run(copy.deepcopy(model).double(), tensors, is_stepwise=False)
    published = published_gradients(tensors, keys)
    assert (outputs["align_token"] - tensors["out"]["align_token"]).abs().max() < 1e-4

    def distance(values: Tensors, exact: Tensors) -> list[float]:
        names = [name for name in exact if "key.bias" not in name]
        return [float((values[name] - exact[name]).norm() / exact[name].norm()) for name in names]

    for ours, theirs, exact in (
        (outputs, tensors["out"], exact_outputs),
        (gradients, published, exact_gradients),
    ):
        assert max(distance(ours, exact)) < 2 * max(distance(theirs, exact)) < 2e-3


def test_the_vision_tower_computes_the_published_features():
    published, tensors = load("vit3d")
    fields, state = convert_vision_state(
        tensors["state"],
        num_attention_heads=published["num_heads"],
        frame_size=tuple(published["img_size"]),
        patch_size=tuple(published["patch_size"]),
    )
    assert (fields["hidden_size"], fields["intermediate_size"], fields["num_hidden_layers"]) == (48, 96, 3)
    model = Mu2VisionModel(Mu2VisionConfig(**fields)).eval()
    model.load_state_dict(state)
    seen: Tensors = {}

    def watch(module: nn.Module, name: str):
        module.register_forward_hook(lambda module, inputs, output: seen.__setitem__(name, output))

    watch(model.encoder.patch_embedding, "patch_embedding")
    watch(model.encoder.layernorm, "last_with_cls_after_norm")
    for i, layer in enumerate(model.encoder.layers):
        watch(layer, f"block{i}")
    with torch.inference_mode():
        # The images (2, 1, depth, height, width) are two volumes of one frame.
        seen["patch_features"] = model(tensors["in"]["images"]).last_hidden_state[:, 0]
        seen["patch_embedding"] = seen["patch_embedding"] + model.encoder.position_embedding
    for name, tensor in tensors["out"].items():
        torch.testing.assert_close(seen[name], tensor, atol=1e-5, rtol=1e-5)


def test_the_projector_computes_the_published_tokens():
    published, tensors = load("spp_right")
    grid = tuple(size // patch for size, patch in zip(published["image_size"], published["patch_size"]))
    config = Mu2TokenizerConfig(
        vision_hidden_size=published["in_dim"],
        text_hidden_size=published["out_dim"],
        frame_grid=grid,
        projector_pool_size=published["pooling_size"],
    )
    keys = projector_keys(config)
    check_state(tensors["state"], keys, "the parity file")
    projector = SpatialPoolingProjector(config)
    projector.load_state_dict(convert_state(tensors["state"], keys))
    with torch.inference_mode():
        tokens = projector(tensors["in"]["features"][:, None])[:, 0]
    torch.testing.assert_close(tokens, tensors["out"]["tokens"], atol=1e-5, rtol=1e-5)
