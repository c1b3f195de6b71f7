"""The processor of mu2: chat text with a placeholder per volume, volumes to `pixel_values`.

References to cached features stand wherever volumes do, and give `vision_hidden_states` in place of `pixel_values`.
"""

from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
import transformers
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin

DEFAULT_QUESTION = "Write the findings and impression of this CT."
IMAGE_TOKEN = "<|image|>"


class Mu2ImagesKwargs(ImagesKwargs, total=False):
    """Options of a call of the image processor, beside its own fields."""

    augment: bool
    seed: int
    epoch: int
    study_ids: Sequence[int | str] | None
    return_provenance: bool


class Mu2ProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: Mu2ImagesKwargs
    _defaults = {}  # transformers 5.17 reads it  # type: ignore[misc]


class Mu2Processor(ProcessorMixin):
    r"""
    Turns conversations about CT volumes into `input_ids`, `attention_mask`, `pixel_values` and `pixel_attention_mask`.

    image_processor (`Mu2ImageProcessor`):
        Turns volumes into frames.
    tokenizer (`PreTrainedTokenizerBase`):
        Tokenizer of the language model; knows `image_token` as a special token.
    num_query_tokens (`int`, *optional*, defaults to 256):
        Placeholders per volume: `tokenizer_config.num_query_tokens` of the model.
    question_end_token_ids (`list[int]`, *optional*):
        Token ids between a question and its answer, as in the model's configuration. Found from the chat template and
        checked against it when saving, see [`find_question_end`].
    image_token (`str`, *optional*, defaults to `"<|image|>"`):
        Placeholder of a volume.
    """

    valid_processor_kwargs = Mu2ProcessorKwargs
    skip_tensor_conversion = [*ProcessorMixin.skip_tensor_conversion, "provenance"]

    def __init__(
        self,
        image_processor,
        tokenizer,
        num_query_tokens: int = 256,
        question_end_token_ids: list[int] | None = None,
        image_token: str = IMAGE_TOKEN,
        chat_template: str | None = None,
    ):
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        ids = tokenizer.encode(image_token, add_special_tokens=False)
        if ids != [self.image_token_id] or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(
                f"The placeholder must be one token of the tokenizer, `{image_token}` is not. Assemble the checkpoint "
                f'with `hf-mu2 init`, or add it: `tokenizer.add_tokens(["{image_token}"], special_tokens=True)`.'
            )
        self.num_query_tokens = num_query_tokens
        self.question_end_token_ids = question_end_token_ids
        self._question_end: tuple = None, None  # what it was read from, what was read
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        return_question_ids: bool = False,
        **kwargs,
    ) -> BatchFeature:
        """Tokenize texts and process their volumes.

        Args:
            images: Volumes in the order of their placeholders: one, a list of them, or a list per text. A volume is
                anything that `load_volume` takes: path, bytes, nibabel image, `datasets.Nifti` dict, array, `Volume` or
                PIL image.
            text (`str` or `Sequence[str]`): Texts with one placeholder per volume.
            return_question_ids (`bool`, *optional*, defaults to `False`):
                Also return `question_input_ids` and `question_attention_mask`, one row per volume, which the model
                otherwise finds by itself. For servers that encode volumes apart from their text.
            kwargs: Options of the tokenizer and of the image processor.
        """
        if videos is not None or audio is not None:
            raise ValueError("mu2 reads volumes and text, got `videos` or `audio`. Pass volumes as `images`.")
        batch = super().__call__(images=images, text=text, **kwargs)
        if return_question_ids:
            rows, masks = self._find_questions([list(map(int, row)) for row in batch["input_ids"]])
            questions = {"question_input_ids": rows, "question_attention_mask": masks}
            batch.update(BatchFeature(questions, tensor_type=kwargs.get("return_tensors")))
        return batch

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """List texts and volumes, each flat: 4-D arrays, paths and nibabel images pass as they are."""
        text = [text] if isinstance(text, str) else None if text is None else list(text)
        if isinstance(images, (list, tuple)) and text is not None and len(images) == len(text):
            self._check_rows(images, text)
        images = _flatten_volumes(images)
        return images or None, text, None, None

    def validate_inputs(self, images=None, text=None, **kwargs):
        """Check that texts hold one placeholder per volume."""
        if images is None and text is None:
            raise ValueError("Pass `text`, `images` or both, got neither.")
        if text is None:
            return
        if not all(isinstance(sample, str) for sample in text):
            raise ValueError(
                "`text` must be a string or a list of strings. For conversations use `apply_chat_template` with "
                "`tokenize=True`."
            )
        num_placeholders = sum(sample.count(self.image_token) for sample in text)
        num_volumes = 0 if images is None else len(images)
        if num_placeholders != num_volumes:
            raise ValueError(
                f"Each volume needs one `{self.image_token}` in the text, got {num_placeholders} for {num_volumes} "
                'volumes. Use `apply_chat_template` with one `{"type": "image", "image": ...}` part per volume.'
            )

    def _check_rows(self, images: Sequence, text: list[str]):
        """Name the row whose volumes and placeholders differ, where volumes come as a list per text."""
        for i, (volumes, sample) in enumerate(zip(images, text)):
            num_placeholders = str(sample).count(self.image_token)
            if (
                isinstance(volumes, (list, tuple))
                and not _is_array(volumes)
                and len(volumes) != num_placeholders
            ):
                raise ValueError(
                    f"Each volume needs one `{self.image_token}` in its text, got {num_placeholders} for "
                    f"{len(volumes)} volumes in row {i}. Use `apply_chat_template`, which places them."
                )

    def _process_images(self, images: list, **kwargs):
        replacement = self.image_token * self.num_query_tokens
        return self.image_processor(images, **kwargs), [replacement] * len(images)

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        return_assistant_tokens_mask: bool = False,
        **kwargs,
    ):
        """Write conversations as the model reads them, as every processor does.

        Raises:
            ValueError: if the mask of answers is asked of a transformers that misplaces it behind a volume.
        """
        release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
        if return_assistant_tokens_mask and release < (5, 18):
            raise ValueError(
                "The mask of answers needs transformers 5.18 or newer, which moves it past volumes, got "
                f"{transformers.__version__}. Upgrade with `pip install -U transformers`, or train on prompt and "
                "completion, which need no mask."
            )
        return super().apply_chat_template(
            conversation, chat_template, return_assistant_tokens_mask=return_assistant_tokens_mask, **kwargs
        )

    @property
    def unused_input_names(self) -> list[str]:
        """Keys of some tokenizers that the model does not take."""
        return ["token_type_ids"]

    def build_messages(
        self,
        volume: Any,
        question: str | None = None,
        indication: str | None = None,
        technique: str | None = None,
        prior_report: str | None = None,
    ) -> list[dict[str, Any]]:
        """Write the conversation that asks for a report.

        Args:
            volume: The volume, or a list of volumes of the study, in any form the processor takes.
            question (`str`, *optional*): What to ask; by default for findings and impression.
            indication (`str`, *optional*): Why the study was done.
            technique (`str`, *optional*): How it was acquired.
            prior_report (`str`, *optional*): An earlier report of the patient.

        Returns:
            One user turn, for [`apply_chat_template`].
        """
        context = {"Indication": indication, "Technique": technique, "Prior report": prior_report}
        lines = [f"{name}: {text.strip()}" for name, text in context.items() if text]
        volumes = volume if isinstance(volume, list) and not _is_array(volume) else [volume]
        content = [{"type": "image", "image": item} for item in volumes]
        content.append({"type": "text", "text": "\n".join([*lines, question or DEFAULT_QUESTION])})
        return [{"role": "user", "content": content}]

    def _find_questions(self, input_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        """Find the question of each volume as `Mu2Model.find_questions` does: ids and mask, padded on the right."""
        end = self._resolve_question_end()
        questions = []
        for row in input_ids:
            places = [i for i, token in enumerate(row) if token == self.image_token_id]
            for last in places[self.num_query_tokens - 1 :: self.num_query_tokens]:
                stop = next((i for i in range(last, len(row)) if row[i] == end[0]), len(row))
                question = [token for token in row[last + 1 : stop] if token != self.image_token_id]
                questions.append(question if row[stop : stop + len(end)] == end else [])
        length = max([1, *map(len, questions)])
        pad = self.tokenizer.pad_token_id or 0
        padded = [question + [pad] * (length - len(question)) for question in questions]
        return padded, [[1] * len(question) + [0] * (length - len(question)) for question in questions]

    def _resolve_question_end(self) -> list[int]:
        """Return the stored ids if the chat template agrees with them, the ones found in it if none are stored."""
        source = id(self.tokenizer), len(self.tokenizer), self.chat_template, self.tokenizer.chat_template
        if self._question_end[0] != source:  # reading renders a dozen conversations
            self._question_end = source, _read_question_end(self.tokenizer, self.chat_template)
        found, common = self._question_end[1]
        stored = self.question_end_token_ids
        if stored is None:
            return found
        if len(stored) < len(found) or common[: len(stored)] != list(stored):
            raise ValueError(
                "`question_end_token_ids` must be what the chat template writes between a question and its answer, got "
                f"{list(stored)}, while the template writes {common}, of which at least {found} are needed. "
                "Restore the template of the checkpoint, or set the ids of processor and model to the latter."
            )
        return list(stored)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Save as every processor does, after checking that questions can be told from answers.

        Raises:
            ValueError: if the chat template gives no valid end of a question, or contradicts the stored one.
        """
        self.question_end_token_ids = self._resolve_question_end()
        for name in ("is_local", "local_files_only"):  # how it was loaded is no part of a checkpoint
            self.tokenizer.init_kwargs.pop(name, None)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def find_question_end(tokenizer, chat_template: str | None = None) -> list[int]:
    """Find the token ids that end a question: the model's `question_end_token_ids`.

    They begin with the end-of-turn id and are the shortest sequence that follows every question and no answer, e.g.
    `<|eot_id|><|start_header_id|>assistant`. What the first word of an answer could change, such as white space, is no
    part of them.

    Args:
        tokenizer: A tokenizer, or a processor with its template.
        chat_template (`str`, *optional*): Template, if not that of the tokenizer.

    Raises:
        ValueError: if there is no such sequence, or it does not begin with a special token.
    """
    if isinstance(tokenizer, ProcessorMixin):
        return _read_question_end(tokenizer.tokenizer, chat_template or tokenizer.chat_template)[0]
    return _read_question_end(tokenizer, chat_template)[0]


def _read_question_end(tokenizer, chat_template: str | None) -> tuple[list[int], list[int]]:
    """Return the shortest valid end of a question, and all token ids common to whatever follows a question."""
    template = chat_template or tokenizer.chat_template
    question, answers = "QUESTION", ["Answer", " an answer", "\nanswer", "1. Answer", "- answer", "<answer>"]

    def render(*texts: str, prompt: bool = False) -> str:
        messages = [
            {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
        ]
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )

    def encode_after(text: str, last: str) -> list[int]:
        """Encode the whole text, as the model reads it, and keep the ids behind the last occurrence of a word."""
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        end = text.rindex(last) + len(last)
        return [i for i, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"]) if start >= end]

    if template is None:
        raise ValueError(
            "A processor of mu2 needs a chat template, got none. Assemble the checkpoint with `hf-mu2 init`."
        )
    follows_question = [encode_after(render(question, prompt=True), question)]
    follows_answer = []
    for answer in answers:
        follows_question.append(encode_after(render(question, answer), question))
        for texts in ((question, answer), (question, answer, "Next")):
            follows_answer.append(encode_after(render(*texts), answer.strip()))
    common = follows_question[0]
    for ids in follows_question:
        same = [a == b for a, b in zip(common, ids)]
        common = common[: same.index(False) if False in same else len(same)]

    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(i for i, entry in added if entry.special)}
    if not common or common[0] not in special:
        raise ValueError(
            "The user's turn must end in a special token of the tokenizer, the chat template writes "
            f"{tokenizer.convert_ids_to_tokens(common[:1]) or 'nothing'} there. End each turn in one token, e.g. "
            "`<|eot_id|>`, and register it as special."
        )
    length = 2
    while any(ids[:length] == common[:length] for ids in follows_answer) and length <= len(common):
        length += 1
    if length > len(common):
        raise ValueError(
            "The chat template must write something between a question and its answer that never follows an answer, "
            f"got {tokenizer.convert_ids_to_tokens(common)}. Open the assistant's turn with a token or word of its own."
        )
    return common[:length], common


def _flatten_volumes(images: Any) -> list:
    """List the volumes of any nesting of lists; an array in the form of lists (`datasets.Array3D`) is one volume."""
    if images is None:
        return []
    if not isinstance(images, (list, tuple)):
        return [images]
    if _is_array(images):
        return [np.asarray(images)]
    if any(item is None for item in images):
        raise ValueError(
            "A volume is missing: `images` holds `None`. Leave it out together with its placeholder."
        )
    return [volume for item in images for volume in _flatten_volumes(item)]


def _is_array(images: Any) -> bool:
    depth = 0
    while isinstance(images, (list, tuple)) and len(images):
        images, depth = images[0], depth + 1
    return isinstance(images, Number) and depth == 3


# Every `save_pretrained`, a trainer's too, then writes the code beside the weights.
Mu2Processor.register_for_auto_class()

__all__ = ["DEFAULT_QUESTION", "Mu2Processor", "find_question_end"]
