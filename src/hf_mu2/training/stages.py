"""What is frozen, what is trained and what gets an adapter, in each stage of training: one table.

The two-stage schedule is that of Lu et al. (https://huggingface.co/papers/2312.01504, section 3): `align` trains the
vision side that makes soft visual prompts for a frozen language model, `adapt` then tunes both, vision side slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_mu2.model.configuration_mu2 import Mu2Config

if TYPE_CHECKING:
    from peft import LoraConfig

TOWER, CONNECTOR, LANGUAGE_MODEL = PARTS = ("tower", "connector", "language_model")


@dataclass(frozen=True)
class Stage:
    """Learning rate of each part as a multiple of the trainer's; `None` freezes the part.

    Args:
        tower: The vision tower.
        connector: What turns patches into soft prompts: mu2's tokenizer, the merger of Qwen2.5-VL.
        language_model: The language model; with LoRA its own weights are frozen and the adapter has this rate.
        uses_volumes: `False` where rows are text alone.
    """

    tower: float | None
    connector: float | None
    language_model: float | None
    about: str
    uses_volumes: bool = True

    def rate(self, part: str) -> float | None:
        """Return the multiple for one of `PARTS`."""
        return {TOWER: self.tower, CONNECTOR: self.connector, LANGUAGE_MODEL: self.language_model}[part]


#                       tower  connector  language model
STAGES: dict[str, Stage] = {
    "tower": Stage(1.0, None, None, "Pre-train the tower on pairs of volume and report, and on labels."),
    "tokenizer": Stage(None, 1.0, None, "Train the tokenizer alone; patches may come from a cache."),
    "align": Stage(1.0, 1.0, None, "Stage 1: soft prompts for a frozen language model."),
    "adapt": Stage(
        0.1, 0.25, 1.0, "Stage 2: the language model, or its adapter; the vision side more slowly."
    ),
    "frozen_tower": Stage(None, 1.0, 1.0, "Everything but the tower, whose patches may come from a cache."),
    "full": Stage(1.0, 1.0, 1.0, "Everything at one rate, as published for mu2."),
    "impression": Stage(
        None, None, 1.0, "Text only: the language model, or its adapter.", uses_volumes=False
    ),
}

# Where a parameter belongs, by the first of these that its name holds; everything else is the language model.
_PART_OF = (
    ("mu2_tokenizer.", CONNECTOR),
    ("vision_tower.", TOWER),
    ("visual.merger.", CONNECTOR),  # Qwen2.5-VL, Qwen3-VL
    ("visual.deepstack_merger_list.", CONNECTOR),
    ("visual.", TOWER),
)
_MU2_MODULES = {TOWER: "vision_tower", CONNECTOR: "mu2_tokenizer", LANGUAGE_MODEL: "language_model"}


def stage_of(name: str) -> Stage:
    """Look up a stage by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in STAGES:
        raise ValueError(
            f"`stage` must be one of {', '.join(STAGES)}, got `{name}`. See `hf_mu2.training.stages`."
        )
    return STAGES[name]


def part_of(parameter_name: str) -> str:
    """Return which of `PARTS` a parameter belongs to, by its name in the model, wrapped or not."""
    return next((part for piece, part in _PART_OF if piece in parameter_name), LANGUAGE_MODEL)


def freeze(model: nn.Module, stage: Stage) -> None:
    """Freeze what the stage does not train. A mu2 model notes it in `config.frozen_modules`, so that a reload keeps it.

    Raises:
        ValueError: if nothing would be trained.
    """
    frozen = [part for part in PARTS if stage.rate(part) is None]
    num_trained = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) not in frozen)
        num_trained += parameter.requires_grad
    if not num_trained:
        raise ValueError(
            f"A stage must train something, got a {type(model).__name__} without any of the parts that are trained "
            f"here (frozen: {frozen}). Choose another stage."
        )
    if isinstance(model.config, Mu2Config):
        model.config.frozen_modules = [_MU2_MODULES[part] for part in frozen]


def lora_modules_to_save(model: nn.Module, stage: Stage) -> list[str]:
    """Name the modules outside the language model that the stage trains: an adapter carries them whole."""
    names: list[str] = []
    for name, _module in model.named_modules():
        part = part_of(f"{name}.")
        inside_another = any(name.startswith(f"{other}.") for other in names)
        if part != LANGUAGE_MODEL and stage.rate(part) is not None and not inside_another:
            names.append(name)
    return names


def complete_lora(config: LoraConfig, model: nn.Module, stage: Stage) -> LoraConfig:
    """Keep adapters inside the language model, and let the adapter carry the trained vision side.

    Target names such as `q_proj` occur in vision towers too: they become a pattern that holds only for the language
    model. `modules_to_save` receives every other module the stage trains.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    head = model.get_output_embeddings()
    wanted = config.target_modules
    targets = [
        name
        for name in linears
        if part_of(f"{name}.") == LANGUAGE_MODEL
        and model.get_submodule(name) is not head
        and (wanted in (None, "all-linear") or _is_wanted(name, wanted))
    ]
    if not targets:
        raise ValueError(
            f"`lora_target_modules` must name linear layers of the language model, none fits {wanted!r}. Use the last "
            "part of their names, e.g. `q_proj v_proj`, or `all-linear`."
        )
    config.target_modules = targets
    others = lora_modules_to_save(model, stage)
    config.modules_to_save = sorted({*(config.modules_to_save or ()), *others}) or None
    return config


def _is_wanted(name: str, wanted: Any) -> bool:
    import re

    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None or name.rsplit(".", 1)[-1] == wanted
    return name.rsplit(".", 1)[-1] in wanted or name in wanted


def parameter_groups(
    model: nn.Module, stage: Stage, learning_rate: float, weight_decay: float, decayed: set[str]
) -> list[dict[str, Any]]:
    """Group trainable parameters by part and by weight decay, each part at its own learning rate.

    Args:
        decayed (`set[str]`): Names of the parameters that weight decay acts on.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * (stage.rate(part) or 0.0),
            "weight_decay": weight_decay if is_decayed else 0.0,
            "part": part,
        }
        for (part, is_decayed), parameters in groups.items()
    ]


def describe_parts(model: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Yield each part with its number of parameters and how many of them are trained."""
    for part in PARTS:
        sizes = [
            (p.numel(), p.requires_grad) for name, p in model.named_parameters() if part_of(name) == part
        ]
        if sizes:
            yield part, sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
