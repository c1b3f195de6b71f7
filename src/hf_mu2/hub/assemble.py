"""Assemble a starting checkpoint from a causal language model and a vision tower.

Reads: a language model (Hub id or folder), optionally a vision tower (M3D-CLIP weights or a saved `Mu2VisionModel`).
Writes: a checkpoint folder with model, code, processor, chat template and generation configuration.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import AddedToken
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_mu2 import embedded_checkpoint
from hf_mu2.files import check_new_folder, new_folder
from hf_mu2.model.configuration_mu2 import PRESETS, Mu2Config, Mu2VisionConfig
from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.modeling_mu2 import Mu2ForConditionalGeneration
from hf_mu2.model.modeling_mu2_tokenizer import Mu2Tokenizer
from hf_mu2.model.modeling_mu2_vision import Mu2VisionModel
from hf_mu2.model.processing_mu2 import IMAGE_TOKEN, Mu2Processor, find_question_end

from .chat_template import adapt_chat_template

# Tokens that vocabularies keep free: Llama-3, Phi-3, Gemma.
_RESERVED = re.compile(r"<\|reserved_special_token_\d+\|>|<\|placeholder\d+\|>|<unused\d+>")
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>")
# Whole range, mediastinum, lung, bone: (low, high) in HU, as many as the vision tower has channels.
_WINDOWS = ((-1000.0, 1000.0), (-160.0, 240.0), (-1350.0, 150.0), (-500.0, 1300.0))
_FIELD_OF_VIEW_MM = (512.0, 384.0, 384.0)  # head to foot, and in plane: a large adult thorax


def assemble(
    language_model: str | Path,
    output: str | Path,
    *,
    preset: str = "mu2-1b",
    vision_tower: str | Path | None = None,
    dtype: torch.dtype | None = None,
    chat_template: str | None = None,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Assemble a starting checkpoint: pretrained language model, pretrained or fresh vision tower, fresh tokenizer.

    Args:
        language_model (`str` or `Path`): Any causal language model of transformers, Hub id or folder; a mu2 checkpoint
            gives its own, with tokenizer and chat template; `"embedded"` is the demo checkpoint of the package.
        output (`str` or `Path`): Folder to write; must not exist or be empty.
        preset (`str`): Sizes of vision tower and tokenizer, see `Mu2Config.from_preset`.
        vision_tower (`str` or `Path`, *optional*): M3D-CLIP weights (file, folder or Hub id) or the folder of a saved
            `Mu2VisionModel`; a mu2 checkpoint or `"embedded"` gives its own, with the image processor it was trained
            with. Its sizes replace those of the preset. Fresh by default.
        dtype (`torch.dtype`, *optional*): By default that of the language model.
        chat_template (`str`, *optional*): By default the language model's own format, see `adapt_chat_template`.
        seed (`int`): Seed of what is fresh.
        overrides: Fields of `Mu2Config`, e.g. `tokenizer_config={"num_query_tokens": 128, ...}`.

    Raises:
        ValueError: if the parts cannot work together; the message says why.
    """
    output = Path(output)
    check_new_folder(output)
    if preset not in PRESETS:
        raise ValueError(f"A preset is one of {', '.join(PRESETS)}, got `{preset}`.")

    tokenizer, lm, own_template = load_language_model(language_model, dtype)
    template = chat_template or own_template or adapt_chat_template(tokenizer, IMAGE_TOKEN)
    tokenizer = take_slot(tokenizer, IMAGE_TOKEN)
    tokenizer, pad_token_id = _choose_padding(tokenizer, find_question_end(tokenizer, template)[0])
    question_end = find_question_end(tokenizer, template)
    if len(tokenizer) > lm.get_input_embeddings().num_embeddings:
        lm.resize_token_embeddings(len(tokenizer))

    lm.config.pad_token_id = pad_token_id
    tower_fields, tower_state, image_processor = load_vision_tower(vision_tower)
    fields: dict[str, Any] = {
        "text_config": lm.config,
        "vision_config": {**tower_fields, **overrides.pop("vision_config", {})},
        "tokenizer_config": dict(overrides.pop("tokenizer_config", {})),
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        "question_end_token_ids": question_end,
    }
    if PRESETS[preset]["tokenizer_config"].get("projection") == "before":
        fields["tokenizer_config"]["hidden_size"] = lm.config.hidden_size
    config = Mu2Config.from_preset(preset, **fields, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = join(config, lm, tower_state)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=_all_ends(lm, question_end[0]),
        pad_token_id=pad_token_id,
    )
    processor = Mu2Processor(
        image_processor or image_processor_for(config),
        tokenizer,
        num_query_tokens=config.tokenizer_config.num_query_tokens,
        question_end_token_ids=question_end,
        chat_template=template,
    )

    with new_folder(output) as partial:
        save_checkpoint(model, processor, partial)
    return output


def join(
    config: Mu2Config, lm: PreTrainedModel, tower_state: dict[str, torch.Tensor] | None = None
) -> Mu2ForConditionalGeneration:
    """Put a language model, a vision tower (fresh without a state) and a fresh tokenizer into one model.

    Raises:
        ValueError: if the state is of another vision tower, or the language model does more between its last hidden
            state and the logits than one matrix.
    """
    with torch.device("meta"):
        model = Mu2ForConditionalGeneration(config)
    parts, head = model.model, lm.get_output_embeddings()
    is_same = isinstance(lm.base_model, type(parts.language_model)) and isinstance(head, nn.Linear)
    is_same = is_same and head.bias is None
    parts.vision_tower = make_vision_tower(config, tower_state)
    parts.mu2_tokenizer = Mu2Tokenizer._from_config(config.tokenizer_config)
    parts.vision_tower.to(lm.dtype)
    parts.mu2_tokenizer.to(lm.dtype)
    if is_same:
        parts.language_model, model.lm_head = lm.base_model, head
        model.tie_weights()
        input_ids = torch.arange(8, device=lm.device)
        input_ids = input_ids[input_ids != config.image_token_id][None]  # a placeholder alone is refused
        with torch.inference_mode():
            is_same = torch.equal(model.eval()(input_ids=input_ids).logits, lm(input_ids=input_ids).logits)
    if not is_same:
        raise ValueError(
            f"The language model must be a decoder with one linear head, without a bias or a scale of its own, "
            f"`{lm.name_or_path}` ({type(lm).__name__}) is not. Use e.g. Llama, Qwen3, Phi-3, Mistral or SmolLM."
        )
    return model


def make_vision_tower(config: Mu2Config, state: dict[str, torch.Tensor] | None = None) -> Mu2VisionModel:
    """Make the vision tower of a configuration, fresh or with the weights of a state.

    Raises:
        ValueError: if the state is of another vision tower.
    """
    tower = Mu2VisionModel._from_config(config.vision_config)
    if state is not None:
        try:
            tower.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"The weights of the vision tower must fit its configuration, they do not: {error} Leave the sizes of "
                "`vision_config` to the tower."
            ) from error
    return tower


def image_processor_for(config: Mu2Config, **overrides: Any) -> Mu2ImageProcessor:
    """Build the image processor that fits a model: frames of its size, spread over the same field of view at any size.

    Args:
        config (`Mu2Config`): Configuration of the model.
        overrides: Fields of `Mu2ImageProcessor`, e.g. `spacing` or `windows`.

    Raises:
        ValueError: if the vision tower has more channels than there are default windows, and none are given.
    """
    vision, tokenizer = config.vision_config, config.tokenizer_config
    num_slices, height, width = vision.frame_size
    if "windows" not in overrides and vision.num_channels > len(_WINDOWS):
        raise ValueError(
            f"Each channel of the vision tower needs a window, {vision.num_channels} channels have no default. Pass "
            "`windows` as a list of (low, high) in HU."
        )
    num_voxels = (num_slices * tokenizer.max_frames, height, width)
    fields = {
        "mode": "official" if tokenizer.projection == "before" else "default",
        "spacing": [mm / number for mm, number in zip(_FIELD_OF_VIEW_MM, num_voxels)],
        "size": {"height": height, "width": width},
        "num_slices": num_slices,
        "patch_depth": vision.patch_size[0],
        "max_frames": tokenizer.max_frames,
        "windows": [list(window) for window in _WINDOWS[: vision.num_channels]],
    }
    return Mu2ImageProcessor(**{**fields, **overrides})


def load_language_model(
    source: str | Path, dtype: torch.dtype | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, str | None]:
    """Load a causal language model with its tokenizer; from a mu2 checkpoint with the chat template too.

    Args:
        source (`str` or `Path`): Hub id or folder of a causal language model or of a mu2 checkpoint, or `"embedded"`.
    """
    folder = _resolve(source)
    if not folder.exists() and (folder.is_absolute() or len(folder.parts) > 2):  # no form of a Hub id
        raise ValueError(f"The language model must be a Hub id or an existing folder, `{folder}` is neither.")
    if not _is_mu2(folder):
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        return (
            tokenizer,
            AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype or "auto").eval(),
            None,
        )
    whole = Mu2ForConditionalGeneration.from_pretrained(folder, dtype=dtype or "auto")
    lm = AutoModelForCausalLM.from_config(whole.config.text_config, dtype=whole.dtype)
    lm.base_model.load_state_dict(whole.model.language_model.state_dict())
    lm.get_output_embeddings().load_state_dict(whole.lm_head.state_dict())
    lm.generation_config, lm.name_or_path = whole.generation_config, str(folder)
    processor = Mu2Processor.from_pretrained(folder)
    return processor.tokenizer, lm.eval(), str(processor.chat_template)


def load_vision_tower(
    source: str | Path | None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor] | None, Mu2ImageProcessor | None]:
    """Load a vision tower: fields of its configuration, its weights, its image processor; nothing for a fresh one.

    Args:
        source (`str` or `Path`, *optional*): Folder of a saved `Mu2VisionModel` or of a mu2 checkpoint; `"embedded"`;
            M3D-CLIP's `pretrained_ViT.bin`, its folder or Hub id.
    """
    if source is None:
        return {}, None, None
    path = _resolve(source)
    if (path / "config.json").is_file():
        if _is_mu2(path):
            tower = Mu2ForConditionalGeneration.from_pretrained(path).model.vision_tower
        else:
            tower = Mu2VisionModel.from_pretrained(path)
        has_processor = any(
            (path / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")
        )
        fields = tower.config.to_dict()
        return (
            {name: fields[name] for name in Mu2VisionConfig.__annotations__},
            tower.state_dict(),
            Mu2ImageProcessor.from_pretrained(path) if has_processor else None,
        )

    from huggingface_hub import hf_hub_download

    from .convert import convert_vision_state

    if path.is_dir():
        path = path / "pretrained_ViT.bin"
    if not path.exists():
        path = Path(hf_hub_download(str(source), "pretrained_ViT.bin"))
    is_safe = path.suffix == ".safetensors"
    state = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    return *convert_vision_state(state), None


def _resolve(source: str | Path) -> Path:
    return embedded_checkpoint() if source == "embedded" else Path(source)


def _is_mu2(folder: Path) -> bool:
    path = folder / "config.json"
    return (
        path.is_file()
        and json.loads(path.read_text(encoding="utf-8")).get("model_type") == Mu2Config.model_type
    )


def take_slot(tokenizer: PreTrainedTokenizerBase, token: str) -> PreTrainedTokenizerBase:
    """Give a vocabulary a special token: in a slot it keeps reserved, else as one more token.

    Returns:
        The tokenizer, another object where a slot was renamed.
    """
    if token not in tokenizer.get_vocab():
        added = sorted(tokenizer.added_tokens_decoder.items())
        reserved = [entry.content for _, entry in added if _RESERVED.fullmatch(entry.content)]
        if reserved:
            tokenizer = _rename_token(tokenizer, reserved[0], token)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
    return tokenizer


def _rename_token(tokenizer: PreTrainedTokenizerBase, old: str, new: str) -> PreTrainedTokenizerBase:
    """Rename a token in the files of a tokenizer: no object of transformers or tokenizers can."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in Path(folder).glob("*.json"):
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(f'"{old}"', f'"{new}"'), encoding="utf-8")
        renamed = AutoTokenizer.from_pretrained(folder)
    renamed.name_or_path = tokenizer.name_or_path
    return renamed


def _choose_padding(
    tokenizer: PreTrainedTokenizerBase, end_of_turn: int
) -> tuple[PreTrainedTokenizerBase, int]:
    """Pad with a token of its own: collators that mask padding would otherwise mask the end of an answer."""
    vocabulary = tokenizer.get_vocab()
    if tokenizer.pad_token is None or tokenizer.pad_token_id == end_of_turn:
        known = [token for token in _PAD_TOKENS if token in vocabulary]
        if not known:
            tokenizer = take_slot(tokenizer, _PAD_TOKENS[1])
        tokenizer.pad_token = known[0] if known else _PAD_TOKENS[1]
    tokenizer.padding_side = "left"
    return tokenizer, tokenizer.pad_token_id


def _all_ends(lm: PreTrainedModel, end_of_turn: int) -> list[int]:
    known = lm.generation_config.eos_token_id if lm.generation_config is not None else None
    known = [] if known is None else [known] if isinstance(known, int) else list(known)
    return list(dict.fromkeys([end_of_turn, *known]))


def save_checkpoint(model: Mu2ForConditionalGeneration, processor: Mu2Processor, folder: str | Path) -> Path:
    """Save model, code, processor and generation configuration; the processor first, since it may refuse."""
    folder, config = Path(folder), model.config
    for part in (config.text_config, config.vision_config, config.tokenizer_config):
        part.dtype = model.dtype  # as loading sets it, so that what is loaded is saved alike
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):  # safetensors writes them for the owner alone
        path.chmod((folder / "config.json").stat().st_mode)
    return folder


__all__ = [
    "assemble",
    "image_processor_for",
    "join",
    "load_language_model",
    "load_vision_tower",
    "make_vision_tower",
    "save_checkpoint",
    "take_slot",
]
