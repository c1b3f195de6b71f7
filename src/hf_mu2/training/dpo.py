"""DPO (https://huggingface.co/papers/2305.18290) as TRL computes it, each volume encoded once per pair and step.

Reads: rows with prompt, chosen, rejected and `images`, e.g. a folder of `hf-mu2 pairs`.
Writes: with `precompute_ref_log_probs`, `<reference_cache>/<key>/*.jsonl`, a line per pair; see [`add_log_probs`].

TRL's own collator and trainer pass every volume to the model twice, for chosen and for rejected, and to the reference
again. Here a batch has one row per volume, and chosen and rejected share its soft prompts: the question that the
tokenizer sees is that of the prompt, which both have in common. The reference takes over what cannot differ from the
policy: patches where the tower is frozen, soft prompts where tokenizer and text embeddings are too. Losses, rewards and
gradients are the stock trainer's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from hf_mu2.model.modeling_mu2 import Mu2Model

from .monitor import VOLUME_TENSORS
from .recipe import Objective, RecipeArguments, with_paths
from .reference import LOG_PROB_COLUMNS, add_log_probs
from .trainer import VOLUME_COLUMNS, StageTrainer

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedModel, ProcessorMixin

# What the reference may take over from the policy.
Shared = Literal["nothing", "patches", "prompts"]
_HIDDEN = {name: f"volume_{name}" for name in VOLUME_COLUMNS}


@dataclass
class PairCollator(DataCollatorForVisionPreference):
    """TRL's collator for pairs with volumes, with one row per volume, for chosen and rejected together."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        shown = {hidden: name for name, hidden in _HIDDEN.items()}
        rows = [{shown.get(name, name): value for name, value in example.items()} for example in examples]
        batch = super().torch_call(rows)  # volumes of chosen, then the same volumes for rejected
        for name in VOLUME_TENSORS:
            if name in batch:
                batch[name] = batch[name][: len(batch[name]) // 2]
        for name in LOG_PROB_COLUMNS:
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch


@contextmanager
def encoding_once(*models: nn.Module, shared: Shared = "nothing") -> Iterator[None]:
    """Let mu2 models take batches of [`PairCollator`]: volumes once, texts of all chosen before all rejected.

    Args:
        models (`nn.Module`): Policy and, where it is a model of its own, reference; in wrappers of trainers or not.
        shared (`str`): What the first pass inside the block leaves for the next, see [`what_is_shared`].
    """
    kept: dict[str, torch.Tensor] = {}

    def embed_pairs(
        model: Mu2Model, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        others = {name: value for name, value in kwargs.items() if name not in (*VOLUME_TENSORS, "input_ids")}
        pixels, mask, patches = (kwargs.get(name) for name in VOLUME_TENSORS)
        volumes = pixels if patches is None else patches
        if volumes is None:
            return None
        input_ids: torch.Tensor = kwargs["input_ids"]
        num_volumes = len(volumes)
        chosen_ids = input_ids[: len(input_ids) // 2]
        model._check_placeholders(chosen_ids, num_volumes)
        prompts = kept.get("prompts")
        if prompts is None:
            if patches is None:
                patches = kept.get("patches")
            if patches is None:
                with torch.set_grad_enabled(torch.is_grad_enabled() and shared == "nothing"):
                    patches = model.vision_tower(pixels, mask).last_hidden_state
            rows, is_question = model.find_questions(chosen_ids, num_volumes)
            prompts = model.get_image_features(None, mask, rows, is_question, patches)
            if shared != "nothing":
                kept["patches"] = patches
            if shared == "prompts":
                kept["prompts"] = prompts
        embeds = model.get_input_embeddings()(input_ids)
        is_image = (input_ids == model.config.image_token_id)[:, :, None]
        both = torch.cat([prompts, prompts]).to(embeds.device, embeds.dtype)
        return args, {**others, "inputs_embeds": embeds.masked_scatter(is_image, both)}

    handles = [
        module.register_forward_pre_hook(embed_pairs, with_kwargs=True)
        for model in models
        for module in model.modules()
        if isinstance(module, Mu2Model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def what_is_shared(policy: nn.Module, reference: nn.Module | None = None) -> Shared:
    """Say what of an encoded volume is the same in policy and reference, at every step.

    Args:
        reference (`nn.Module`, *optional*): The reference; by default the policy with its adapter off.
    """
    own = _mu2_of(policy)
    other = own if reference is None else _mu2_of(reference)
    if not _is_frozen_alike(own.vision_tower, other.vision_tower):
        return "nothing"
    rest = zip(
        (own.mu2_tokenizer, own.get_input_embeddings()), (other.mu2_tokenizer, other.get_input_embeddings())
    )
    return "prompts" if all(_is_frozen_alike(*pair) for pair in rest) else "patches"


def _mu2_of(model: nn.Module) -> Mu2Model:
    for module in model.modules():
        if isinstance(module, Mu2Model):
            return module
    raise ValueError(
        f"This trainer encodes the volumes of mu2 models once, got a {type(model).__name__}. Train other models with "
        "`trl dpo`."
    )


def _is_frozen_alike(own: nn.Module, other: nn.Module) -> bool:
    if any(parameter.requires_grad for parameter in own.parameters()):
        return False
    pairs = zip(own.state_dict().values(), other.state_dict().values())
    return own is other or all(torch.equal(_whole(a), _whole(b).to(a.device)) for a, b in pairs)


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


class StageDPOTrainer(StageTrainer, DPOTrainer):
    """TRL's `DPOTrainer` for mu2: each volume is encoded once per pair, log-probabilities of the reference are kept.

    Rows without volumes train as in the stock trainer.

    Args:
        reference_cache (`str` or `Path`, *optional*): Where `precompute_ref_log_probs` keeps them, by default
            `<output_dir>/reference`. Runs from one reference, e.g. at several `beta`, may share a folder; all processes
            must see it.
    """

    texts_per_study = 2

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: DPOConfig | None = None,
        *,
        train_dataset: Dataset | IterableDataset,
        processing_class: ProcessorMixin,
        reference_cache: str | Path | None = None,
        **options: Any,
    ) -> None:
        args = DPOConfig("dpo") if args is None else args
        self.reference_cache = Path(reference_cache or Path(args.output_dir) / "reference")
        self.has_volumes = any(name in next(iter(train_dataset)) for name in VOLUME_COLUMNS)
        if self.has_volumes:
            _mu2_of(model)
            if args.truncation_mode != "keep_start":
                raise ValueError(
                    f"`truncation_mode` must be `keep_start`, got `{args.truncation_mode}`: a cut at the start takes "
                    "the placeholders of the volume. Raise `max_length` instead."
                )
            options.setdefault("data_collator", PairCollator(processing_class, max_length=args.max_length))
            # Of a dataset with `images` the stock trainer thinks that nothing can be computed ahead.
            train_dataset = _hide_volumes(train_dataset)
        super().__init__(
            model,
            ref_model,
            args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **options,
        )

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Leave rows with volumes to the collator."""
        return (
            _hide_volumes(dataset) if self.has_volumes else super()._prepare_dataset(dataset, *args, **kwargs)
        )

    def _set_signature_columns_if_needed(self) -> None:
        if self.has_volumes:
            self._signature_columns = ["prompt", "chosen", "rejected", *_HIDDEN.values(), *LOG_PROB_COLUMNS]
        super()._set_signature_columns_if_needed()

    @cached_property
    def shared(self) -> Shared:
        """What the reference takes over from the policy within a step."""
        return what_is_shared(self.model, self.ref_model)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if not self.has_volumes:
            return super()._compute_loss(model, inputs, return_outputs)
        models = [model] if self.ref_model is None else [model, self.ref_model]
        with encoding_once(*models, shared=self.shared):
            return super()._compute_loss(model, inputs, return_outputs)

    def compute_ref_log_probs(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the log-probabilities of a batch of pairs under the reference, `(pairs,)` for chosen and rejected."""
        if not self.has_volumes:
            return super().compute_ref_log_probs(model, inputs)
        with encoding_once(model):
            return super().compute_ref_log_probs(model, inputs)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Add the columns that the stock trainer would, from what earlier runs have kept and this one computes."""
        from datasets import Dataset

        if not self.has_volumes or not isinstance(dataset, Dataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)
        return add_log_probs(self, dataset, self.reference_cache, batch_size)

    def _flops(self, inputs: dict[str, Any], rows: int, length: int) -> float:
        """Count nothing: passes of the reference and shared volumes have no count of ours."""
        return 0.0


def _hide_volumes(dataset: Any) -> Any:
    names = {name: hidden for name, hidden in _HIDDEN.items() if name in next(iter(dataset))}
    return with_paths(dataset).rename_columns(names) if names else dataset


@dataclass
class DPOArguments(RecipeArguments):
    """What a recipe for DPO says beside the fields of TRL's configurations.

    Args:
        reference_cache (`str`, *optional*): Where `precompute_ref_log_probs` keeps what it computes, by default
            `<output_dir>/reference`. Runs from one checkpoint may share a folder.
    """

    reference_cache: str | None = None


def make_trainer(arguments: DPOArguments, model: PreTrainedModel, **options: Any) -> StageDPOTrainer:
    """Make the trainer of a recipe. The reference of an adapter is the model without it."""
    from peft import PeftModel

    trainer = StageDPOTrainer(model, reference_cache=arguments.reference_cache, **options)
    if isinstance(model, PeftModel) and "ref" in model.peft_config:
        model.delete_adapter(
            "ref"
        )  # a copy of one that is still to be trained: the same as none, at twice the memory
    return trainer


OBJECTIVE = Objective(DPOArguments, DPOConfig, make_trainer)
