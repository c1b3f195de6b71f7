"""Convert published mu2 checkpoints and M3D-CLIP vision towers, every tensor accounted for.

Reads: a published checkpoint (file, folder or Hub repository). Writes: a checkpoint folder in the `official` form, with
what was detected under `conversion` in its config.json.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from hf_mu2.files import check_new_folder, new_folder
from hf_mu2.model.configuration_mu2 import Mu2Config, Mu2VisionConfig
from hf_mu2.model.modeling_mu2 import Mu2ForConditionalGeneration
from hf_mu2.model.modeling_mu2_vision import Mu2VisionModel
from hf_mu2.model.processing_mu2 import IMAGE_TOKEN, Mu2Processor, find_question_end

from .assemble import image_processor_for, save_checkpoint, take_slot
from .chat_template import adapt_chat_template
from .official_keys import OfficialKey, check_state, convert_state, official_keys, vision_keys
from .official_layout import count_parameters, find_layout, frame_fields, vision_fields
from .official_state import OfficialState, read_json, read_official

# Placeholder of the published prompt; ours is another token, since its first one may stay in front of the volume.
OFFICIAL_PLACEHOLDER = "<im_patch>"

# Sampling of the released checkpoints: u2Qwen3's generation_config.json and that of Llama-3.2-1B.
_GENERATION: dict[str, dict[str, Any]] = {
    "qwen3": {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "llama": {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    "phi3": {},
}


@dataclasses.dataclass(frozen=True)
class Detected:
    """What was found in a published checkpoint; stored in the converted config under `conversion`.

    Args:
        layout (`str`): Form of the names: `current`, `before March 2025`, `LoRA`.
        attention (`str`): `relative bias`, `rotary`, or `swapped axes` (the published form without either).
        projector_grid (`tuple`): Grid that pooling before the tokenizer assumes.
        placeholder (`str`): What `<im_patch>` is in the tokenizer, if there is one.
        notes (`tuple[str, ...]`): What could not be seen, or is unusual.
    """

    kind: Literal["mu2", "vision tower"]
    files: tuple[str, ...]
    num_tensors: int
    num_parameters: int
    dtype: str
    layout: str = "current"
    lora: dict[str, Any] | None = None
    language_model: str | None = None
    is_tied: bool | None = None
    attention: str | None = None
    selection: str | None = None
    pooling: str | None = None
    num_query_tokens: int | None = None
    projector_grid: tuple[int, ...] | None = None
    placeholder: str | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        values = dataclasses.asdict(self)
        lines = [f"{name}: {_write(values[name])}" for name in values if name != "notes"]
        return "\n".join([*(line for line in lines if line), *(f"note: {note}" for note in self.notes)])


def inspect_checkpoint(
    source: str | Path,
    *,
    config: Mapping[str, Any] | str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    language_model: str | Path | None = None,
    lora_alpha: float | None = None,
) -> Detected:
    """Tell what a published checkpoint is and check it, as `convert_checkpoint` does with the same arguments."""
    state = read_official(source, lora_alpha)
    return _detect(state, config, _load_tokenizer(tokenizer, state.folder), language_model)[2]


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    config: Mapping[str, Any] | str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    language_model: str | Path | None = None,
    lora_alpha: float | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Convert a published checkpoint to one that loads here, and compute the same.

    Args:
        source (`str` or `Path`): `pytorch_model.bin`, `model.safetensors`, `model_with_lora.bin` or M3D-CLIP's
            `pretrained_ViT.bin`; a folder with one of them and perhaps config.json and a tokenizer; or a Hub
            repository.
        output (`str` or `Path`): Folder to write; must not exist or be empty.
        config (`dict` or `Path`, *optional*): Published config: fields that complete or replace those of the
            config.json beside the weights.
        tokenizer (*optional*): Tokenizer of the checkpoint, folder or Hub id; by default the one beside the weights.
            With one the processor is written too.
        language_model (`str` or `Path`, *optional*): Base of the language model, Hub id or folder, for checkpoints
            without config.json.
        lora_alpha (`float`, *optional*): Alpha of a LoRA dump; by default that of its config, else the published 32.
        dtype (`torch.dtype`, *optional*): By default that of the file; released ones may be float32.

    Raises:
        ValueError: if a tensor is missing, unexpected or of another shape, or the source is no published checkpoint.
    """
    output = Path(output)
    check_new_folder(output)
    state = read_official(source, lora_alpha)
    tokenizer = _load_tokenizer(tokenizer, state.folder)
    converted_config, keys, detected = _detect(state, config, tokenizer, language_model)
    processor = None
    if isinstance(converted_config, Mu2Config) and tokenizer is not None:
        processor = _build_processor(converted_config, tokenizer)
    weights = convert_state(state.tensors, keys)
    if dtype is not None:
        weights = {target: tensor.to(dtype) for target, tensor in weights.items()}
    if detected.is_tied:
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]

    converted_config.conversion = dataclasses.asdict(detected)
    is_whole = isinstance(converted_config, Mu2Config)
    with torch.device("meta"):
        model = (Mu2ForConditionalGeneration if is_whole else Mu2VisionModel)(converted_config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    if is_whole:
        model.generation_config = _generation_config(state.folder, converted_config, tokenizer)
    with new_folder(output) as partial:
        if processor is None:
            model.save_pretrained(partial)
        else:
            save_checkpoint(model, processor, partial)
    return output


def convert_vision_state(
    state: Mapping[str, torch.Tensor],
    *,
    num_attention_heads: int | None = None,
    frame_size: tuple[int, int, int] = (32, 256, 256),
    patch_size: tuple[int, int, int] = (4, 16, 16),
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Convert the state dict of an M3D-CLIP vision tower (`pretrained_ViT.bin`, bare names).

    Args:
        state: Tensors named `cls_token`, `patch_embedding.*`, `blocks.*`, `norm.*`.
        num_attention_heads (`int`, *optional*): By default heads are 64 wide, as in M3D-CLIP.
        frame_size, patch_size (`tuple[int, int, int]`): Depth, height and width in voxels, which weights do not show.

    Returns:
        Fields of `Mu2VisionConfig`, and the state dict of `Mu2VisionModel`.

    Raises:
        ValueError: names every tensor that is missing, unexpected or of another shape.
    """
    fields = {**vision_fields(state), "frame_size": frame_size, "patch_size": patch_size}
    if num_attention_heads is not None:
        fields["num_attention_heads"] = num_attention_heads
    keys = vision_keys(Mu2VisionConfig(**fields))
    check_state(state, keys, "the vision tower")
    return fields, convert_state(state, keys)


def official_inputs(
    question: str, tokenizer: PreTrainedTokenizerBase, config: Mu2Config
) -> dict[str, torch.Tensor]:
    """Write the published prompt for a converted checkpoint: model inputs, but for `pixel_values`.

    The published text is 256 placeholders and the question, without a chat template. Whatever its tokens are, positions
    1 to 256 become the volume, so that without a start token the first placeholder stays and the first token of the
    question is lost, as in training. The question reaches the mu2 tokenizer whole, unpadded and unmasked.

    Returns:
        `input_ids`, `attention_mask` and `question_input_ids`, each of shape `(1, length)`.

    Raises:
        ValueError: for an empty question, or one that holds the placeholder of `config`.
    """
    num_query_tokens = config.tokenizer_config.num_query_tokens
    input_ids = tokenizer(OFFICIAL_PLACEHOLDER * num_query_tokens + question)["input_ids"]
    question_ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    input_ids[1 : 1 + num_query_tokens] = [config.image_token_id] * num_query_tokens
    if not question_ids or input_ids.count(config.image_token_id) != num_query_tokens:
        raise ValueError(
            f"A question must be text without the placeholder token {config.image_token_id}, got {question!r}."
        )
    ids = torch.tensor([input_ids])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "question_input_ids": torch.tensor([question_ids]),
    }


def _detect(
    state: OfficialState,
    config: Mapping[str, Any] | str | Path | None,
    tokenizer: PreTrainedTokenizerBase | None,
    language_model: str | Path | None,
) -> tuple[Mu2Config | Mu2VisionConfig, list[OfficialKey], Detected]:
    if isinstance(config, (str, Path)):
        path = Path(config)
        config = read_json(path / "config.json" if path.is_dir() else path)
        if not config:
            raise ValueError(
                f"`config` must be fields or a config.json, `{path}` is not one. Check the path."
            )
    fields = {**state.fields, **(config or {})}
    name = f"`{', '.join(state.files)}`"
    common: dict[str, Any] = {
        "files": tuple(state.files),
        "num_tensors": len(state.tensors),
        "num_parameters": count_parameters(state.tensors),
        "dtype": ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in state.tensors.values()})),
        "layout": state.layout,
        "lora": state.lora,
    }
    if any(name.startswith("blocks.") for name in state.tensors):
        vision_config = Mu2VisionConfig(**vision_fields(state.tensors), **frame_fields(fields)[0])
        keys = vision_keys(vision_config)
        check_state(state.tensors, keys, name)
        return vision_config, keys, Detected(kind="vision tower", **common)

    mu2_config, notes = find_layout(state.tensors, fields, language_model)
    keys = official_keys(mu2_config)
    if mu2_config.text_config.tie_word_embeddings:  # the head may be left out, or stored twice
        keys = [key for key in keys if key.name != "lm_head.weight" or key.name in state.tensors]
    check_state(state.tensors, keys, name)
    tokens = mu2_config.tokenizer_config
    return (
        mu2_config,
        keys,
        Detected(
            kind="mu2",
            **common,
            language_model=mu2_config.text_config.model_type,
            is_tied=mu2_config.text_config.tie_word_embeddings,
            attention={"1d": "relative bias", "rope": "rotary", None: "swapped axes"}[tokens.position],
            selection=tokens.selection,
            pooling=tokens.pooling,
            num_query_tokens=tokens.num_query_tokens,
            projector_grid=tuple(tokens.projector_grid or tokens.frame_grid),
            placeholder=None if tokenizer is None else _describe_placeholder(tokenizer),
            notes=tuple(notes),
        ),
    )


def _load_tokenizer(
    tokenizer: PreTrainedTokenizerBase | str | Path | None, folder: Path
) -> PreTrainedTokenizerBase | None:
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if tokenizer is None and not (folder / "tokenizer_config.json").is_file():
        return None
    return AutoTokenizer.from_pretrained(tokenizer or folder)


def _describe_placeholder(tokenizer: PreTrainedTokenizerBase) -> str:
    ids = tokenizer(OFFICIAL_PLACEHOLDER, add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        return f"`{OFFICIAL_PLACEHOLDER}` is one token ({ids[0]})"
    return f"`{OFFICIAL_PLACEHOLDER}` is {len(ids)} tokens: {tokenizer.convert_ids_to_tokens(ids)}"


def _build_processor(config: Mu2Config, tokenizer: PreTrainedTokenizerBase) -> Mu2Processor:
    """Build the processor with the published preprocessing, and set the ids of its tokens in `config`."""
    num_embeddings = config.text_config.vocab_size
    vocabulary = tokenizer.get_vocab()
    image_token = (
        "<|image_pad|>" if "<|image_pad|>" in vocabulary and IMAGE_TOKEN not in vocabulary else IMAGE_TOKEN
    )
    template = adapt_chat_template(tokenizer, image_token)
    tokenizer = take_slot(tokenizer, image_token)
    config.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
    if config.image_token_id >= num_embeddings:
        raise ValueError(
            f"The placeholder needs a token below the {num_embeddings} embedding rows of the checkpoint, "
            f"`{image_token}` became {config.image_token_id}. Pass the tokenizer of this checkpoint, with an unused "
            f"token renamed to `{IMAGE_TOKEN}`."
        )
    config.question_end_token_ids = find_question_end(tokenizer, template)
    return Mu2Processor(
        image_processor_for(config),
        tokenizer,
        num_query_tokens=config.tokenizer_config.num_query_tokens,
        question_end_token_ids=config.question_end_token_ids,
        image_token=image_token,
        chat_template=template,
    )


def _generation_config(
    folder: Path, config: Mu2Config, tokenizer: PreTrainedTokenizerBase | None
) -> GenerationConfig:
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    text = config.text_config
    end = text.eos_token_id if tokenizer is None else tokenizer.eos_token_id
    padding = text.pad_token_id if tokenizer is None else tokenizer.pad_token_id
    return GenerationConfig(
        **_GENERATION[text.model_type], bos_token_id=text.bos_token_id, eos_token_id=end, pad_token_id=padding
    )


def _write(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


__all__ = [
    "Detected",
    "convert_checkpoint",
    "convert_vision_state",
    "inspect_checkpoint",
    "official_inputs",
]
