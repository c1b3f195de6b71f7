"""Read an answer token by token under a prompt and a volume, for its likelihood and the gradient of that.

Shapes: A = answer tokens, S = sentences, Q = queries, E = width of the tokenizer.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import BatchFeature, PreTrainedTokenizerBase

from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.inference import Reader
from hf_mu2.scoring.statements import even_text, sentences

_HEADING = re.compile(r"(findings|impression)\s*:\s*", re.IGNORECASE)


@dataclass(frozen=True)
class ForcedAnswer:
    """A prompt with one volume, and an answer to it.

    Args:
        reader (`Reader`), volume (`Volume`), question (`str`): What was asked of whom about what.
        inputs (`BatchFeature`): What the model reads: `input_ids` of prompt and answer, one row, and the volume.
        answer (`str`): Its text.
        num_answer_tokens (`int`): How many of the last ids are the answer's.
        sentences (`tuple`): Start and end of each sentence in `answer`.
        sentence_tokens (`torch.Tensor` of shape `(sentences, answer tokens)`): 1 where a token is the sentence's.
    """

    reader: Reader
    volume: Volume
    question: str
    inputs: BatchFeature
    answer: str
    num_answer_tokens: int
    sentences: tuple[tuple[int, int], ...]
    sentence_tokens: torch.Tensor

    @property
    def slab_mask(self) -> torch.Tensor:
        """Slabs with anatomy, `(1, frames, slabs)`."""
        return self.inputs["pixel_attention_mask"]

    @cached_property
    def question_ids(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of the row and the mask of the question in them, `(1, length)` each."""
        return self.reader.model.model.find_questions(self.inputs["input_ids"], 1)

    @cached_property
    def vision_hidden_states(self) -> torch.Tensor:
        """Output of the vision tower, `(1, frames, patches, width)`."""
        with torch.no_grad():
            return self.reader.model.model.vision_tower(
                self.inputs["pixel_values"], self.slab_mask
            ).last_hidden_state

    @property
    def is_image(self) -> torch.Tensor:
        """Where soft prompts stand, `(1, length)`."""
        return self.inputs["input_ids"] == self.reader.model.config.image_token_id

    def soft_prompts(self, vision_hidden_states: torch.Tensor) -> torch.Tensor:
        """Tokenize variants of the volume under the question: `(batch, queries, text width)`."""
        count = len(vision_hidden_states)
        return self.reader.model.model.get_image_features(
            None,
            self.slab_mask.expand(count, -1, -1),
            *(part.expand(count, -1) for part in self.question_ids),
            vision_hidden_states=vision_hidden_states,
        )

    def embed(self, soft_prompts: torch.Tensor) -> torch.Tensor:
        """Put soft prompts `(batch, queries, text width)` at the placeholders: `(batch, length, text width)`."""
        ids = self.inputs["input_ids"].expand(len(soft_prompts), -1)
        embeds = self.reader.model.get_input_embeddings()(ids)
        return embeds.masked_scatter(self.is_image[:, :, None], soft_prompts.to(embeds.dtype))

    def log_probabilities(self, soft_prompts: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of every token of the answer, `(batch, answer tokens)` in float32."""
        model, embeds = self.reader.model, self.embed(soft_prompts)
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, -self.num_answer_tokens - 1 : -1]).float()
        targets = self.inputs["input_ids"][:, -self.num_answer_tokens :].expand(len(embeds), -1)
        return logits.log_softmax(dim=-1).gather(2, targets[..., None])[..., 0]

    @torch.no_grad()
    def sentence_likelihoods(self, vision_hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the log-likelihood of each sentence in nats, given what the tower made of variants of the volume.

        Args:
            vision_hidden_states (`torch.Tensor` of shape `(batch, frames, patches, vision width)`): The variants.

        Returns:
            `torch.Tensor` of shape `(batch, sentences)`.
        """
        soft_prompts = self.soft_prompts(vision_hidden_states)
        return self.log_probabilities(soft_prompts) @ self.sentence_tokens.T

    def sentence_gradients(self, visual_tokens: torch.Tensor) -> torch.Tensor:
        """Differentiate the log-likelihood of each sentence by the visual tokens V', the projector's input.

        Args:
            visual_tokens (`torch.Tensor` of shape `(queries, width)`): V'.

        Returns:
            `torch.Tensor` of shape `(sentences, queries, width)`.
        """
        with _frozen(self.reader.model):
            point = visual_tokens[None].detach().requires_grad_()
            scores = self._sentence_scores(self.reader.model.model.mu2_tokenizer.projector(point))
            return torch.cat(_gradients(scores, point)).float()

    def integrated_gradients(self, num_steps: int = 8) -> torch.Tensor:
        """Split what sets this volume apart from an even one over its patches, for each sentence.

        Integrated gradients (https://huggingface.co/papers/1703.01365) of the sentence's log-likelihood by the output
        of the vision tower, through tokenizer and language model: the mean gradient on the line from a volume whose
        patches are all like their mean, times each patch's distance from it. The parts sum to the difference in
        log-likelihood between the two, as far as `num_steps` points on the line tell it: the middles of equal parts,
        since the likelihood jumps somewhere on the way, where rules for smooth functions do worse.

        Returns:
            `torch.Tensor` of shape `(sentences, frames, patches)`, in nats.
        """
        states = self.vision_hidden_states
        even = self.even_hidden_states()
        total: torch.Tensor | float = 0.0
        with _frozen(self.reader.model):
            for step in range(num_steps):
                point = torch.lerp(even, states, (step + 0.5) / num_steps).requires_grad_()
                gradients = _gradients(self._sentence_scores(self.soft_prompts(point)), point)
                total = total + torch.cat(gradients).float()
        return (total * (states - even).float()).sum(dim=-1) / num_steps

    def even_hidden_states(self) -> torch.Tensor:
        """Replace every patch by the mean of all, padding left as it is: `(1, frames, patches, width)`."""
        states = self.vision_hidden_states
        is_real = self.slab_mask.bool().repeat_interleave(states.shape[2] // self.slab_mask.shape[2], dim=2)
        return torch.where(is_real[..., None], states[is_real].mean(dim=0), states)

    def _sentence_scores(self, soft_prompts: torch.Tensor) -> torch.Tensor:
        return self.sentence_tokens @ self.log_probabilities(soft_prompts)[0]

    @torch.no_grad()
    def answer_attention(self) -> Iterator[torch.Tensor]:
        """Yield per layer the attention of the positions that write the answer: `(heads, answer tokens, length)`.

        The language model runs once with the attention of all layers in memory: layers x heads x length^2 numbers.
        """
        language_model = self.reader.model.model.language_model
        own = language_model.config._attn_implementation
        language_model.set_attn_implementation("eager")  # the other kernels return no weights
        try:
            embeds = self.embed(self.soft_prompts(self.vision_hidden_states))
            layers = language_model(inputs_embeds=embeds, use_cache=False, output_attentions=True).attentions
        finally:
            language_model.set_attn_implementation(own)
        for layer in layers:
            yield layer[0, :, -self.num_answer_tokens - 1 : -1].float()  # position p writes token p + 1


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Compute no gradients of weights: only inputs are of interest, and some kernels would compute both."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _gradients(scores: torch.Tensor, point: torch.Tensor) -> list[torch.Tensor]:
    return [torch.autograd.grad(score, point, retain_graph=True)[0] for score in scores]


def force_answer(
    reader: Reader,
    volume: Volume,
    question: str,
    answer: str | None = None,
    *,
    history: Sequence[Mapping[str, Any]] | None = None,
    max_new_tokens: int = 512,
) -> ForcedAnswer:
    """Put a volume, a question and an answer into the form the model reads; a missing answer is generated.

    Args:
        history (`Sequence[Mapping]`, *optional*): Earlier turns of the conversation, text alone: the volume stands in
            the last turn, whose question the tokenizer reads.

    Raises:
        ValueError: if the answer is empty, or `history` holds volumes.
    """
    turns = [dict(message) for message in history or ()]
    if not all(isinstance(message["content"], str) for message in turns):
        raise ValueError(
            "Earlier turns are text, `history` holds other parts. The volume goes with the last question, which the "
            "tokenizer reads: pass `{'role': ..., 'content': text}` alone."
        )
    prompt = reader.prepare([[*turns, *reader.processor.build_messages(volume, question=question)]])
    if answer is None:
        answer = reader.answer(prompt, max_new_tokens)[0].text
    answer_ids, spans, sentence_tokens = tokenize_sentences(reader.processor.tokenizer, answer)
    if not spans:
        raise ValueError("An answer must hold words to be explained, this one is empty. Ask something else.")
    ids = torch.cat([prompt["input_ids"], answer_ids.to(prompt["input_ids"].device)], dim=1)
    inputs = BatchFeature({**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return ForcedAnswer(
        reader, volume, question, inputs, answer, answer_ids.shape[1], spans, sentence_tokens.to(ids.device)
    )


def tokenize_sentences(
    tokenizer: PreTrainedTokenizerBase, answer: str
) -> tuple[torch.Tensor, tuple[tuple[int, int], ...], torch.Tensor]:
    """Tokenize an answer and say which tokens are of which sentence.

    Returns:
        Ids `(1, tokens)`, start and end of each sentence, and `(sentences, tokens)` float32, 1 where a token is the
        sentence's.
    """
    spans = split_sentences(answer)
    encoded = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True, return_tensors="pt")
    offsets = encoded["offset_mapping"][0].reshape(-1, 2)  # of an empty answer too
    bounds = torch.tensor(spans).reshape(-1, 2)
    overlaps = (offsets[:, 0] < bounds[:, 1:]) & (offsets[:, 1] > bounds[:, :1])
    return encoded["input_ids"], spans, overlaps.float()


def split_sentences(text: str) -> tuple[tuple[int, int], ...]:
    """Return start and end of every sentence of a report, section headings left out."""
    even = even_text(text)
    spans = []
    for start, end in sentences(even.clean):
        heading = _HEADING.match(even.clean, start, end)
        start = heading.end() if heading else start
        if start < end:
            spans.append(even.span(start, end))
    return tuple(spans)
