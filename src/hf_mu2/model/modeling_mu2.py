"""mu2: CT volumes and text in, a report out. `Mu2ForConditionalGeneration` is `Mu2Model` with a language-model head."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .configuration_mu2 import Mu2Config
from .modeling_mu2_tokenizer import Mu2Tokenizer
from .modeling_mu2_vision import Mu2VisionModel


@dataclass
class Mu2ModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.FloatTensor` of shape `(volumes, num_query_tokens, hidden_size)`, *optional*):
        Soft prompts of the volumes, in the width of the language model.
    """

    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class Mu2CausalLMOutputWithPast(CausalLMOutputWithPast):
    r"""
    image_hidden_states (`torch.FloatTensor` of shape `(volumes, num_query_tokens, hidden_size)`, *optional*):
        Soft prompts of the volumes, in the width of the language model.
    """

    image_hidden_states: torch.FloatTensor | None = None


class Mu2PreTrainedModel(PreTrainedModel):
    config: Mu2Config
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Mu2VisionLayer", "RefinerLayer", "AggregatorLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load as every model does, then freeze `config.frozen_modules`: loading makes all parameters trainable."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for name in model.config.frozen_modules:
            model.base_model.get_submodule(name).requires_grad_(False)
            if name == "language_model" and model.get_output_embeddings() is not None:
                model.get_output_embeddings().requires_grad_(False)
        return loaded


class Mu2Model(Mu2PreTrainedModel):
    """Vision tower, mu2 tokenizer and language model without its head. The output is as long as `input_ids`."""

    def __init__(self, config: Mu2Config):
        super().__init__(config)
        self.vision_tower = Mu2VisionModel._from_config(config.vision_config)
        self.mu2_tokenizer = Mu2Tokenizer._from_config(config.tokenizer_config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def find_questions(
        self, input_ids: torch.LongTensor, num_volumes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the question of each volume in `input_ids`: the rest of its own user turn, never an answer.

        The question runs from the last placeholder of the volume to the first end-of-turn id, and counts only if
        `config.question_end_token_ids` (end of turn, start of the assistant's turn) begins there. So a plain prompt, a
        truncated one or a base model's has no question, instead of everything that follows.

        Returns:
            The row of `input_ids` of each volume, `(volumes, length)`, and the mask of its question, of that shape.
        """
        length = input_ids.shape[1]
        num_query_tokens = self.config.tokenizer_config.num_query_tokens
        is_image = input_ids == self.config.image_token_id
        volumes_per_row = is_image.sum(dim=1) // num_query_tokens
        first_of_row = volumes_per_row.cumsum(0) - volumes_per_row
        rows = torch.repeat_interleave(
            torch.arange(len(input_ids), device=input_ids.device), volumes_per_row, output_size=num_volumes
        )
        index_in_row = torch.arange(num_volumes, device=input_ids.device) - first_of_row[rows]

        is_turn_end = input_ids == self.config.question_end_token_ids[0]
        is_question_end = is_turn_end
        for offset, token_id in enumerate(self.config.question_end_token_ids[1:], start=1):
            follows = torch.zeros_like(is_turn_end)
            if offset < length:
                follows[:, :-offset] = input_ids[:, offset:] == token_id
            is_question_end = is_question_end & follows

        is_after = is_image.cumsum(dim=1)[rows] >= (index_in_row + 1)[:, None] * num_query_tokens
        num_ends = (is_turn_end[rows] & is_after).cumsum(dim=1)
        has_question = (is_question_end[rows] & is_after & (num_ends == 1)).any(dim=1, keepdim=True)
        return input_ids[rows], is_after & ~is_image[rows] & (num_ends == 0) & has_question

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode volumes to soft prompts under their questions.

        Args:
            pixel_values (`torch.Tensor` of shape `(volumes, frames, windows * slices, height, width)`, *optional*):
                Windowed slices. Not needed with `vision_hidden_states`.
            pixel_attention_mask (`torch.BoolTensor` of shape `(volumes, frames, slabs)`, *optional*):
                Which slabs of each frame hold anatomy.
            question_input_ids (`torch.LongTensor` of shape `(volumes, length)`, *optional*):
                Question per volume; none, if absent.
            question_attention_mask (`torch.BoolTensor` of shape `(volumes, length)`, *optional*):
                Tokens of the question.
            vision_hidden_states (`torch.Tensor` of shape `(volumes, frames, patches, vision_hidden_size)`, *optional*):
                Cached output of the vision tower, in place of `pixel_values`.

        Returns:
            `torch.Tensor` of shape `(volumes, num_query_tokens, hidden_size)`.
        """
        if vision_hidden_states is None:
            vision_hidden_states = self.vision_tower(pixel_values, pixel_attention_mask).last_hidden_state
        else:
            vision_hidden_states = vision_hidden_states.to(self.dtype)
        if question_input_ids is None:
            question_input_ids = vision_hidden_states.new_zeros(
                len(vision_hidden_states), 1, dtype=torch.long
            )
            question_attention_mask = torch.zeros_like(question_input_ids, dtype=torch.bool)
        question_embeds = self.get_input_embeddings()(question_input_ids)
        question_mask = None if question_attention_mask is None else question_attention_mask.bool()
        return self.mu2_tokenizer(vision_hidden_states, question_embeds, pixel_attention_mask, question_mask)

    def embed_inputs(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed text and put the soft prompts of the volumes at their placeholders.

        Returns:
            Input embeddings `(batch, length, hidden_size)`, soft prompts `(volumes, num_query_tokens, hidden_size)`.

        Raises:
            ValueError: if the placeholders in `input_ids` do not fit the volumes.
        """
        num_volumes = len(pixel_values if vision_hidden_states is None else vision_hidden_states)
        self._check_placeholders(input_ids, num_volumes)
        is_image = input_ids == self.config.image_token_id
        if question_input_ids is None:
            question_input_ids, question_attention_mask = self.find_questions(input_ids, num_volumes)
        features = self.get_image_features(
            pixel_values,
            pixel_attention_mask,
            question_input_ids,
            question_attention_mask,
            vision_hidden_states,
        )
        inputs_embeds = self.get_input_embeddings()(input_ids)
        features = features.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(is_image[:, :, None], features), features

    def _check_placeholders(
        self, input_ids: torch.LongTensor, num_volumes: int, past_key_values: Cache | None = None
    ):
        """Refuse placeholders that do not fit the volumes, unless a cache holds those. A compiled model cannot look."""
        if torch.compiler.is_compiling():
            return
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            return
        num_query_tokens = self.config.tokenizer_config.num_query_tokens
        num_tokens = (input_ids == self.config.image_token_id).sum(dim=1)
        num_features = num_volumes * num_query_tokens
        if int(num_tokens.sum()) == num_features and not bool((num_tokens % num_query_tokens).any()):
            return
        advice = (
            "Make both with the processor of this checkpoint, and do not truncate placeholders: raise `max_length`."
            if num_volumes
            else "No volume arrived: usually a dropped `images` column, so train with `remove_unused_columns=False` "
            "and pass all the processor returns."
        )
        raise ValueError(
            f"Image features and image tokens do not match, tokens: {num_tokens.tolist()}, features: {num_features} "
            f"({num_volumes} volumes of {num_query_tokens}). {advice}"
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Mu2ModelOutputWithPast:
        """Run text, with or without volumes; see `embed_inputs` for the arguments of the volumes.

        Raises:
            ValueError: if not exactly one of `input_ids` and `inputs_embeds` is given, volumes come without ids, or
                placeholders do not fit the volumes. Ids that continue a cache may hold placeholders alone.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of `input_ids` or `inputs_embeds`.")
        features = None
        if pixel_values is not None or vision_hidden_states is not None:
            if input_ids is None:
                raise ValueError(
                    "Volumes need `input_ids`: placeholders and questions are found there. Pass `input_ids`."
                )
            inputs_embeds, features = self.embed_inputs(
                input_ids,
                pixel_values,
                pixel_attention_mask,
                question_input_ids,
                question_attention_mask,
                vision_hidden_states,
            )
        elif inputs_embeds is None:
            self._check_placeholders(input_ids, 0, past_key_values)
            inputs_embeds = self.get_input_embeddings()(input_ids)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return Mu2ModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=features,
        )


class Mu2ForConditionalGeneration(Mu2PreTrainedModel, GenerationMixin):
    """mu2 with a language-model head: writes reports, computes the loss."""

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: Mu2Config):
        super().__init__(config)
        self.model = Mu2Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # Language models name their embeddings differently: `embed_tokens`, `wte`, `embed_in`.
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module):
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> Mu2CausalLMOutputWithPast:
        """Compute logits and, with `labels`, the loss of the next token.

        Args:
            labels (`torch.LongTensor` of shape `(batch, length)`, *optional*): Targets; -100 is ignored.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0): Last positions, or indices, whose
                logits are computed; 0 is all.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            question_input_ids=question_input_ids,
            question_attention_mask=question_attention_mask,
            vision_hidden_states=vision_hidden_states,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return Mu2CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    def generate(self, inputs: torch.LongTensor | None = None, generation_config=None, **kwargs):
        """Generate as every model does; each volume is encoded once, before beams or samples multiply it."""
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        volumes = {
            name: kwargs.pop(name, None)
            for name in (
                "pixel_values",
                "pixel_attention_mask",
                "question_input_ids",
                "question_attention_mask",
                "vision_hidden_states",
            )
        }
        if volumes["pixel_values"] is not None or volumes["vision_hidden_states"] is not None:
            if input_ids is None:
                raise ValueError(
                    "Volumes need `input_ids`: placeholders and questions are found there. Pass `input_ids`."
                )
            with torch.no_grad():
                kwargs["inputs_embeds"] = self.model.embed_inputs(input_ids, **volumes)[0]
        if input_ids is not None:
            kwargs["input_ids"] = input_ids
        return super().generate(generation_config=generation_config, **kwargs)


# Every `save_pretrained`, a trainer's too, then writes the code beside the weights.
Mu2Model.register_for_auto_class("AutoModel")
Mu2ForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["Mu2ForConditionalGeneration", "Mu2Model", "Mu2PreTrainedModel"]
