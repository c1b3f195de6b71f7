"""How much memory a training step needs, before a GPU is rented: `hf-mu2 plan`.

A step of the model as it is trained (stage, adapter, checkpointing, mixed precision, TRL's fused head) runs on fake
tensors, which have shapes but no content, while every allocation is counted. Optimizer and engine are arithmetic.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.model.modeling_mu2 import Mu2ForConditionalGeneration, Mu2Model

from .stages import CONNECTOR, LANGUAGE_MODEL, TOWER, describe_parts, freeze, part_of, stage_of

Engine = Literal["ddp", "fsdp2", "zero2", "zero3"]
# What is left to the driver, the kernels' workspaces and fragmentation.
USABLE_SHARE = 0.9
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A published question, in tokens; it is part of the text.
_QUESTION_TOKENS = 16


@dataclass(frozen=True)
class Step:
    """A training step on one device.

    Args:
        stage (`str`): A row of `hf_mu2.training.stages.STAGES`.
        batch (`int`): Studies per device and forward pass.
        frames (`int`): Frames of each study.
        length (`int`): Tokens of each row, visual ones included.
        dtype (`str`): Of the weights, `"fp32"` or `"bf16"`.
        autocast (`bool`): Whether matrix products run in bf16: `bf16: true` of a recipe.
        lora_r (`int`, *optional*): Rank of an adapter on all linear layers of the language model.
        checkpointing (`bool`): Whether activations are computed again in the backward pass.
        accumulates (`bool`): Whether gradients of earlier batches are held meanwhile.
        caches_vision (`bool`): Whether the tower's output is read from a cache.
        engine (`str`, *optional*): `"ddp"`, `"fsdp2"`, `"zero2"` or `"zero3"`.
        processes (`int`): Devices of the engine.
    """

    stage: str = "full"
    batch: int = 1
    frames: int = 8
    length: int = 1024
    dtype: Literal["fp32", "bf16"] = "fp32"
    autocast: bool = True
    lora_r: int | None = None
    checkpointing: bool = True
    accumulates: bool = False
    caches_vision: bool = False
    engine: Engine | None = None
    processes: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes of a step on one device; `peak` is the sum of the others."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    engine: int = 0

    @property
    def peak(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.engine


class AllocationCounter(TorchDispatchMode):
    """Count the bytes of all storages alive; remember the highest count, and the highest without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.gradients = self.peak_beside_gradients = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once, until nothing holds it."""
        storage = tensor.untyped_storage()
        if storage in self.seen:
            return
        self.seen.add(storage)
        size = storage.nbytes()
        self.now += size
        weakref.finalize(storage, self._free, size)
        self.peak = max(self.peak, self.now)
        self.peak_beside_gradients = max(self.peak_beside_gradients, self.now - self.gradients)

    def _free(self, size: int) -> None:
        self.now -= size


def measure(config: Mu2Config, step: Step) -> tuple[Memory, dict[str, dict[str, int]]]:
    """Run one step on fake tensors.

    Returns:
        [`Memory`] of one device, and for each part its parameters and how many of them are trained.

    Raises:
        ValueError: if the numbers do not fit each other.
    """
    memory, _, parts = _count(config, step)
    return memory, parts


def _count(config: Mu2Config, step: Step) -> tuple[Memory, Memory, dict[str, dict[str, int]]]:
    """Beside the result of `measure`, a bound that is linear in the batch: all gradients while activations are highest.

    Which of forward pass, backward pass and update is the highest changes with the batch, so that peaks are no line.
    """
    _check(config, step)
    with torch.device("meta"):
        model = build_model(config, step)
    with FakeTensorMode(allow_non_fake_inputs=True), AllocationCounter() as counter:
        model.to_empty(device="cpu")
        model.get_base_model().tie_weights() if step.lora_r else model.tie_weights()
        weights = _bytes(model.parameters())
        counter.now = counter.peak = counter.peak_beside_gradients = weights
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda p: _note_gradient(counter, p))
            if step.accumulates:
                parameter.grad = torch.empty_like(parameter)
                counter.gradients += parameter.grad.nbytes
        inputs = make_inputs(config, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=step.autocast):
            loss = model(**inputs, fused_lm_head=True).loss
        loss.backward()
        gradients = _bytes(trained)
        at_update = weights + gradients
        parts = {part: {"total": total, "trained": number} for part, total, number in describe_parts(model)}
        sizes = _unit_sizes(model)
    del loss, inputs
    # The update needs all gradients and no activation: it may be the higher of the two.
    memory = Memory(weights, gradients, 2 * gradients, max(counter.peak, at_update) - weights - gradients)
    bound = replace(memory, activations=counter.peak_beside_gradients - weights)
    return shard(memory, step, sizes), shard(bound, step, sizes), parts


def _note_gradient(counter: AllocationCounter, parameter: torch.Tensor) -> None:
    counter.gradients += parameter.grad.nbytes


def _check(config: Mu2Config, step: Step) -> None:
    visual = config.tokenizer_config.num_query_tokens
    if stage_of(step.stage).uses_volumes and step.length < visual + 2 * _QUESTION_TOKENS:
        raise ValueError(
            f"`length` counts visual tokens too, {visual} of them here, got {step.length}. Use at least "
            f"{visual + 2 * _QUESTION_TOKENS}, e.g. 1024."
        )
    if (step.engine is None) != (step.processes == 1):
        raise ValueError(
            f"An engine and several processes go together, got engine {step.engine} and {step.processes} processes. "
            "Set both, or none."
        )


def build_model(config: Mu2Config, step: Step) -> nn.Module:
    """Build the model as `hf-mu2 train` does: frozen for its stage, with its adapter, with TRL's head."""
    from peft import LoraConfig, get_peft_model
    from transformers.initialization import no_init_weights
    from trl.trainer.utils import add_fused_lm_head

    from .stages import complete_lora

    stage = stage_of(step.stage)
    with no_init_weights():
        model = Mu2ForConditionalGeneration._from_config(deepcopy(config), dtype=DTYPES[step.dtype]).train()
    model.model._check_placeholders = lambda *ignored: None  # fake tensors have nothing to look at
    freeze(model, stage)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    with warnings.catch_warnings():
        # Renamed in transformers 5.23; the oldest supported one knows this name only.
        warnings.simplefilter("ignore", FutureWarning)
        if step.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if step.lora_r is not None:
            lora = LoraConfig(r=step.lora_r, target_modules="all-linear")
            model = get_peft_model(model, complete_lora(lora, model, stage))
    return model


def make_inputs(config: Mu2Config, step: Step) -> dict[str, torch.Tensor]:
    """Make the batch of a step: volumes of zeros, text that says nothing."""
    tokens = torch.full((step.batch, step.length), config.image_token_id + 1)
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.zeros_like(tokens),
    }
    if not stage_of(step.stage).uses_volumes:
        return inputs
    inputs["input_ids"][:, : config.tokenizer_config.num_query_tokens] = config.image_token_id
    vision = config.vision_config
    slices, height, width = vision.frame_size
    mask = torch.ones(step.batch, step.frames, vision.grid[0], dtype=torch.bool)
    if step.caches_vision:
        patches = vision.grid[0] * vision.grid[1] * vision.grid[2]
        volumes = {
            "vision_hidden_states": torch.zeros(step.batch, step.frames, patches, vision.hidden_size),
        }
    else:
        channels = vision.num_channels * slices
        volumes = {"pixel_values": torch.zeros(step.batch, step.frames, channels, height, width)}
    return {**inputs, **volumes, "pixel_attention_mask": mask}


def _bytes(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _unit_sizes(model: nn.Module) -> tuple[int, int]:
    """Bytes of the largest decoder layer, and of what FSDP2 keeps gathered through a step: embeddings and head."""
    layers = [
        _bytes(layer.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and part_of(f"{name}.") not in (TOWER,)
        for layer in module
    ]
    ends = {
        id(parameter): parameter.nbytes
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        for parameter in module.parameters()
    }
    return max(layers), sum(ends.values())


def shard(memory: Memory, step: Step, unit_sizes: tuple[int, int]) -> Memory:
    """Share a step's memory out over the processes of an engine. Arithmetic, not measured.

    DDP adds buckets as large as the gradients; ZeRO-2 shards gradients and optimizer; ZeRO-3 and FSDP2 shard weights
    too and gather one layer while they fetch the next, FSDP2 also embeddings and head.
    """
    if step.engine is None:
        return memory
    if step.engine == "ddp":
        return replace(memory, engine=memory.gradients)
    layer, ends = unit_sizes
    share = replace(
        memory,
        gradients=memory.gradients // step.processes,
        optimizer=memory.optimizer // step.processes,
    )
    if step.engine == "zero2":
        return share
    return replace(
        share,
        weights=memory.weights // step.processes,
        engine=2 * layer + (ends if step.engine == "fsdp2" else 0),
    )


def study_flops(config: Mu2Config, frames: int, length: int) -> dict[str, int]:
    """Count the floating-point operations of one study's forward pass, by part, from the shapes of its products.

    Args:
        frames (`int`): Frames of the study.
        length (`int`): Tokens of its row, visual ones included. The head scores the others.

    Returns:
        `dict`: Operations of tower, connector and language model, two for each multiplication with its addition.
    """
    vision, text = config.vision_config, config.text_config
    slices, height, width = vision.frame_size
    flops = {}
    with torch.device("meta"), torch.no_grad():
        model = Mu2Model._from_config(deepcopy(config)).requires_grad_(False)
        volumes = torch.zeros(1, frames, vision.num_channels * slices, height, width)
        with FlopCounterMode(display=False) as counter:
            patches = model.vision_tower(volumes).last_hidden_state
        flops[TOWER] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            model.mu2_tokenizer(patches, torch.zeros(1, length, text.hidden_size))
        flops[CONNECTOR] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            everything = torch.ones(
                1, 1, length, length, dtype=torch.bool
            )  # a ready mask: its values are not asked for
            embeds = torch.zeros(1, length, text.hidden_size)
            model.language_model(inputs_embeds=embeds, attention_mask=everything, use_cache=False)
    scored = max(0, length - config.tokenizer_config.num_query_tokens)
    flops[LANGUAGE_MODEL] = counter.get_total_flops() + 2 * scored * text.hidden_size * text.vocab_size
    return flops


def flops_per_study(config: Mu2Config, frames: int, length: int) -> int:
    """Count the operations of training on one study: three forward passes; checkpointing counts once."""
    return 3 * sum(study_flops(config, frames, length).values())


def plan_training(config: Mu2Config, step: Step, gpu_memory_gb: float) -> dict[str, Any]:
    """Say whether a step fits a device, how many studies would, and what to change.

    Args:
        gpu_memory_gb (`float`): Memory of the device in units of 10^9 bytes, of which `USABLE_SHARE` is used.

    Returns:
        `dict` as JSON holds it: `step`, `parameters` by part, `memory_gb`, `fits`, `largest_batch` (a careful one),
        `suggestions`, `forward_tflops_per_study` by part.
    """
    usable = USABLE_SHARE * gpu_memory_gb * 1e9
    memory, bound, parameters = _count(config, step)
    per_study = max(1, _count(config, replace(step, batch=step.batch + 1))[1].peak - bound.peak)
    largest = max(0, step.batch + int((usable - bound.peak) // per_study))
    if memory.peak <= usable:
        largest = max(largest, step.batch)
    flops = study_flops(config, step.frames, step.length) if stage_of(step.stage).uses_volumes else {}
    return {
        "step": vars(step),
        "parameters": parameters,
        "memory_gb": {
            name: round(size / 1e9, 3) for name, size in {**vars(memory), "peak": memory.peak}.items()
        },
        "gb_per_study": round(per_study / 1e9, 3),
        "gpu_memory_gb": gpu_memory_gb,
        "fits": memory.peak <= usable,
        "largest_batch": largest,
        "suggestions": list(suggest(memory, step, usable, largest)),
        "forward_tflops_per_study": {part: round(count / 1e12, 4) for part, count in flops.items()},
    }


def suggest(memory: Memory, step: Step, usable: float, largest_batch: int) -> Iterator[str]:
    """Yield what to change, the cheapest first."""
    is_tower_frozen = stage_of(step.stage).tower is None
    if is_tower_frozen and stage_of(step.stage).uses_volumes and not step.caches_vision:
        yield "The tower is frozen: cache its output per study and train from it (--cached-vision)."
    if largest_batch > step.batch:
        yield f"A batch of {largest_batch} fits: fewer accumulation steps for the same studies per update."
    if memory.peak <= usable:
        if step.checkpointing and memory.peak + 3 * memory.activations < usable:
            yield "There is room: try --no-checkpointing, which saves a second forward pass."
        return
    if not step.checkpointing:
        yield "Too large: checkpoint activations (--checkpointing, `gradient_checkpointing: true`)."
    if 1 <= largest_batch < step.batch:
        yield f"Too large: a batch of {largest_batch} fits; accumulate gradients for the rest."
    fixed = memory.weights + memory.gradients + memory.optimizer
    if fixed > 0.5 * usable and step.lora_r is None:
        yield "Weights and optimizer take over half: train an adapter (--lora-r 16)."
    if fixed > 0.5 * usable and step.engine in (None, "ddp"):
        needed = max(2, -(-fixed // int(0.5 * usable)))
        yield f"Weights and optimizer take over half: shard them (--engine fsdp2 --processes {needed})."
    if largest_batch == 0 and memory.activations > 0.5 * usable:
        yield "One study alone is too large: fewer frames, or shorter rows."
