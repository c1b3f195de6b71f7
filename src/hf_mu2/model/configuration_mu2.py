"""Configurations of mu2: the 3D vision tower, the question-conditioned tokenizer, and the whole model.

Paper: "mu2 Tokenizer", https://huggingface.co/papers/2507.00316. Defaults are the mended form with the paper's sizes
and 256 visual tokens (preset `mu2-1b`); `Mu2Config.from_preset` gives the others.
"""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

_AUTO_MAP = {
    "AutoConfig": "configuration_mu2.Mu2Config",
    "AutoModel": "modeling_mu2.Mu2Model",
    "AutoModelForCausalLM": "modeling_mu2.Mu2ForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_mu2.Mu2ForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_mu2.Mu2ForConditionalGeneration",
    "AutoImageProcessor": "image_processing_mu2.Mu2ImageProcessor",
    "AutoProcessor": "processing_mu2.Mu2Processor",
}

# Llama-3.2-1B-Instruct, the language model of the paper (section 3).
_LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128009,
    "pad_token_id": 128004,
}
# `<|eot_id|><|start_header_id|>assistant`, and the first reserved slot of the Llama-3 vocabulary as placeholder.
_LLAMA_TOKENS = {"image_token_id": 128002, "question_end_token_ids": [128009, 128006, 78191]}

_TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 1536,
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 4,
    "pad_token_id": 0,
}

PRESETS: dict[str, dict] = {
    "mu2-1b": {"text_config": _LLAMA_1B, "vision_config": {}, "tokenizer_config": {}, **_LLAMA_TOKENS},
    "mu2-1b-paper": {
        "text_config": _LLAMA_1B,
        "vision_config": {},
        "tokenizer_config": {"num_query_tokens": 1024, "scale_queries": (512, 256, 256)},
        **_LLAMA_TOKENS,
    },
    # What the published code does (u2Tokenizer b9fb37a); the converter targets this form.
    "official": {
        "text_config": _LLAMA_1B,
        "vision_config": {},
        "tokenizer_config": {
            "hidden_size": 2048,
            "projection": "before",
            "position": "1d",
            "query_position": True,
            "max_positions": 512,
            "refiner": "published",
            "select_from": "refined",
            "pooling": "published",
            "keep_apart": False,
            "query_sets": "shared",
            "normalize_question": False,
        },
        "image_token_id": 128011,
        "question_end_token_ids": [128009, 128006, 78191],
    },
    # The size of the embedded demo checkpoint: trains on two CPU cores.
    "tiny": {
        "text_config": _TINY_LLAMA,
        "vision_config": {
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_channels": 2,
            "frame_size": (16, 72, 72),
            "patch_size": (4, 8, 8),
            "use_cls_token": False,
        },
        "tokenizer_config": {
            "hidden_size": 96,
            "num_heads": 3,
            "num_refiner_layers": 1,
            "num_aggregator_layers": 2,
            "num_selected_tokens": 64,
            "num_query_tokens": 32,
            "scale_queries": (16, 8, 8),
            "max_frames": 8,
        },
        "image_token_id": 5,
        "question_end_token_ids": [4, 3],
    },
}


@strict
class Mu2VisionConfig(PreTrainedConfig):
    r"""
    The 3D ViT that encodes one frame (a slab of slices) at a time. Defaults are the M3D-CLIP image tower.

    num_channels (`int`, *optional*, defaults to 1):
        HU windows per slice; each is a channel.
    frame_size (`tuple[int, int, int]`, *optional*, defaults to `(32, 256, 256)`):
        Slices, height and width of a frame in voxels.
    patch_size (`tuple[int, int, int]`, *optional*, defaults to `(4, 16, 16)`):
        Depth, height and width of a patch in voxels. Must divide `frame_size`.
    use_cls_token (`bool`, *optional*, defaults to `True`):
        Whether a class token attends with the patches, as in M3D-CLIP. It is dropped from the output.
    frames_per_chunk (`int`, *optional*, defaults to 4):
        Frames encoded at once. Peak activations grow with this number, not with the frames of a study.
    """

    model_type = "mu2_vision"
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 1
    frame_size: tuple[int, ...] | list[int] = (32, 256, 256)
    patch_size: tuple[int, ...] | list[int] = (4, 16, 16)
    use_cls_token: bool = True
    frames_per_chunk: int = 4
    layer_norm_eps: float = 1e-5
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches of a frame along depth, height and width; token order is depth-major."""
        depth, height, width = (size // patch for size, patch in zip(self.frame_size, self.patch_size))
        return depth, height, width

    def validate_patches(self):
        if len(self.frame_size) != 3 or len(self.patch_size) != 3:
            raise ValueError(
                "`frame_size` and `patch_size` must have three entries (slices, height, width), got "
                f"{self.frame_size} and {self.patch_size}."
            )
        if any(size % patch for size, patch in zip(self.frame_size, self.patch_size)):
            raise ValueError(
                f"`patch_size` must divide `frame_size`, got {self.patch_size} and {self.frame_size}. "
                "Use e.g. `patch_size=(4, 16, 16)` for `frame_size=(32, 256, 256)`."
            )

    def validate_heads(self):
        _check_heads(self.hidden_size, self.num_attention_heads)


@strict
class Mu2TokenizerConfig(PreTrainedConfig):
    r"""
    The mu2 tokenizer between vision tower and language model (paper section 2.2), with every switch of the ablations.

    connector (`"mu2"` or `"spatial_pooling"`, *optional*, defaults to `"mu2"`):
        `"spatial_pooling"` is the M3D-LaMed form: pooled patches through an MLP, no question, one frame per volume.
    projection (`"after"` or `"before"`, *optional*, defaults to `"after"`):
        Where visual tokens reach the language model's width: after aggregation (paper) or, with spatial pooling, before
        the refiner (published code).
    position (`"3d"`, `"1d"`, `"rope"`, `"absolute"` or `None`, *optional*, defaults to `"3d"`):
        Positions in the refiner: relative bias per (dz, dy, dx) offset of a frame's token grid, per flattened index
        (paper), rotary, learned absolute embeddings (LinVT), or none. Frames always use the 1-D form of the same kind.
    query_position (`bool`, *optional*, defaults to `False`):
        Whether self-attention of the queries uses the relative bias or rotary positions too (published code).
    max_positions (`int`, *optional*):
        Positions a 1-D relative table covers; farther offsets share the outermost entry. `None` covers all of a frame.
    swap_axes (`bool`, *optional*, defaults to `False`):
        Reproduces the published variant without relative bias at batch size 1: frames are attended first, then the
        tokens of a frame, and queries do not see each other.
    refiner (`"residual"` or `"published"`, *optional*, defaults to `"residual"`):
        Pre-norm with residuals, or the published layers without either, which collapse to one repeated vector.
    select_from (`"input"` or `"refined"`, *optional*, defaults to `"input"`):
        Which tokens the selection mixes. `"input"` keeps the paper's linearity.
    selection (`"soft"` or `"topk"`, *optional*, defaults to `"soft"`):
        Differentiable selection, or LinVT's hard one with a straight-through gradient to the scorer.
    selection_init_std (`float`, *optional*, defaults to 3.7):
        Standard deviation of the scores of normalised tokens at initialisation. 3.7 leaves about 20 effective tokens of
        16,384 per slot, since exp(entropy) of a softmax over n Gaussian scores is about n exp(-std^2 / 2).
    pooling (`"gated"`, `"published"`, `"fixed"` or `"none"`, *optional*, defaults to `"gated"`):
        Gates from mean and spread of the selected tokens, from the means of the pooled ones (constant 1/3 for ever), no
        gates (LinVT), or no pooling.
    keep_apart (`bool`, *optional*, defaults to `True`):
        Keeps slots and queries from becoming copies of one: selection and aggregation score tokens by what these do
        not share with the whole study, and queries are normalised before each attention. `False` as published.
    query_sets (`"per_scale"` or `"shared"`, *optional*, defaults to `"per_scale"`):
        One set of queries per pooling scale (`scale_queries` each, set `s` aggregates scale `s` only), or one for all.
    vision_hidden_size, text_hidden_size, frame_grid:
        Filled in by `Mu2Config` from the other two configurations.
    projector_grid (`tuple[int, int, int]`, *optional*):
        Grid that spatial pooling assumes. `None` is the true `frame_grid`; released checkpoints may carry another.
    """

    model_type = "mu2_tokenizer"
    base_config_key = "tokenizer_config"

    connector: Literal["mu2", "spatial_pooling"] = "mu2"
    projection: Literal["after", "before"] = "after"
    hidden_size: int = 768
    num_heads: int = 8
    num_refiner_layers: int = 4
    num_aggregator_layers: int = 4
    max_frames: int = 8
    position: Literal["3d", "1d", "rope", "absolute"] | None = "3d"
    query_position: bool = False
    max_positions: int | None = None
    swap_axes: bool = False
    refiner: Literal["residual", "published"] = "residual"
    select_from: Literal["input", "refined"] = "input"
    selection: Literal["soft", "topk"] = "soft"
    num_selected_tokens: int = 1024
    selection_temperature: float | int = 1.0
    selection_init_std: float | int = 3.7
    pooling: Literal["gated", "published", "fixed", "none"] = "gated"
    pooling_scales: tuple[int, ...] | list[int] = (1, 2, 4)
    keep_apart: bool = True
    query_sets: Literal["per_scale", "shared"] = "per_scale"
    num_query_tokens: int = 256
    scale_queries: tuple[int, ...] | list[int] = (128, 64, 64)
    normalize_question: bool = True
    projector_pool_size: int = 2
    projector_grid: tuple[int, ...] | list[int] | None = None
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    vision_hidden_size: int = 768
    text_hidden_size: int = 2048
    frame_grid: tuple[int, ...] | list[int] = (8, 16, 16)

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Grid of the tokens that enter the refiner."""
        if self.connector == "spatial_pooling" or self.projection == "before":
            depth, height, width = (
                n // self.projector_pool_size for n in self.projector_grid or self.frame_grid
            )
        else:
            depth, height, width = self.frame_grid
        return depth, height, width

    @property
    def scales(self) -> tuple[int, ...]:
        """Pooling kernels in use: those not longer than the number of selected tokens."""
        if self.pooling == "none":
            return (1,)
        return tuple(scale for scale in self.pooling_scales if scale <= self.num_selected_tokens)

    def validate_heads(self):
        _check_heads(self.hidden_size, self.num_heads)

    def validate_queries(self):
        if self.connector != "mu2" or self.query_sets == "shared":
            return
        if len(self.scale_queries) != len(self.scales) or sum(self.scale_queries) != self.num_query_tokens:
            raise ValueError(
                "`scale_queries` must hold one number per pooling scale and sum to `num_query_tokens`, got "
                f"{tuple(self.scale_queries)} for scales {self.scales} and {self.num_query_tokens} queries. "
                'Adjust them together, or use `query_sets="shared"`.'
            )

    def validate_projection(self):
        if (
            self.connector == "mu2"
            and self.projection == "before"
            and self.hidden_size != self.text_hidden_size
        ):
            raise ValueError(
                '`projection="before"` works at the width of the language model, got `hidden_size` '
                f"{self.hidden_size} and `text_hidden_size` {self.text_hidden_size}. Set `hidden_size` to the latter."
            )

    def validate_spatial_pooling(self):
        if self.connector != "spatial_pooling":
            return
        num_pooled = self.token_grid[0] * self.token_grid[1] * self.token_grid[2]
        if self.max_frames != 1 or self.num_query_tokens != num_pooled:
            raise ValueError(
                '`connector="spatial_pooling"` takes one frame per volume and as many visual tokens as the pooled grid '
                f"has, got `max_frames` {self.max_frames} and `num_query_tokens` {self.num_query_tokens} for a pooled "
                f"grid of {self.token_grid}. Set `max_frames=1` and `num_query_tokens={num_pooled}`."
            )


@strict
class Mu2Config(PreTrainedConfig):
    r"""
    mu2: vision tower, tokenizer and any causal language model of transformers.

    image_token_id (`int`, *optional*, defaults to 128002):
        Placeholder token; each volume takes `tokenizer_config.num_query_tokens` of them in `input_ids`.
    question_end_token_ids (`list[int]`, *optional*):
        Token ids that end a user turn and open the assistant's, e.g. `<|eot_id|><|start_header_id|>assistant`. The
        question of a volume is the text between its placeholders and this sequence; where the first end-of-turn id
        after the volume does not begin it, the question is empty. More than the end-of-turn id alone is required,
        since that also ends answers, which must never be read as questions.
    notice (`str`, *optional*, defaults to `"Research use only. Not a medical device."`):
        First line of whatever shows this checkpoint's output.
    body_region (`str`, *optional*):
        Region the checkpoint was trained on, e.g. `"chest"`. Volumes of another one draw a warning.
    trained_on_synthetic_only (`bool`, *optional*, defaults to `False`):
        Whether no real volume was ever seen in training. Files for clinical systems are then refused.
    frozen_modules (`list[str]`, *optional*):
        Which of `vision_tower`, `mu2_tokenizer` and `language_model` load frozen: any trainer then leaves them alone.
    """

    model_type = "mu2"
    # Not `sub_configs_defaults`, which transformers 5.17 does not know.
    sub_configs = {
        "text_config": AutoConfig,
        "vision_config": Mu2VisionConfig,
        "tokenizer_config": Mu2TokenizerConfig,
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    tokenizer_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 128002
    question_end_token_ids: list[int] | tuple[int, ...] = (128009, 128006, 78191)
    tie_word_embeddings: bool | None = None
    initializer_range: float = 0.02
    notice: str = "Research use only. Not a medical device."
    body_region: str | None = None
    trained_on_synthetic_only: bool = False
    frozen_modules: list[str] | tuple[str, ...] = ()

    def __post_init__(self, **kwargs):
        kwargs["auto_map"] = {**_AUTO_MAP, **(kwargs.get("auto_map") or {})}
        # Remote code from a folder has several classes of the same name: ask for the base class only.
        if not isinstance(self.text_config, PreTrainedConfig):
            fields = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(fields.pop("model_type", "llama"), **fields)
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = Mu2VisionConfig(**(self.vision_config or {}))
        surroundings = {
            "vision_hidden_size": self.vision_config.hidden_size,
            "text_hidden_size": self.text_config.hidden_size,
            "frame_grid": self.vision_config.grid,
        }
        if isinstance(self.tokenizer_config, PreTrainedConfig):
            for name, value in surroundings.items():
                setattr(self.tokenizer_config, name, value)
            self.tokenizer_config.validate()
        else:
            self.tokenizer_config = Mu2TokenizerConfig(**{**(self.tokenizer_config or {}), **surroundings})
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "Mu2Config":
        """Build the configuration of a preset.

        Args:
            name (`str`): `"mu2-1b"` (256 visual tokens), `"mu2-1b-paper"` (1,024), `"official"` (what the published
                code does) or `"tiny"` (the size of the embedded demo checkpoint).
            overrides: Fields of `Mu2Config`; dictionaries for the three sub-configurations are merged into those of the
                preset, except that a `text_config` with another `model_type` replaces it.

        Raises:
            ValueError: for an unknown preset.
        """
        if name not in PRESETS:
            raise ValueError(f"A preset is one of {', '.join(PRESETS)}, got `{name}`.")
        fields = {**PRESETS[name], **overrides}
        for key in ("text_config", "vision_config", "tokenizer_config"):
            given = overrides.get(key)
            if isinstance(given, dict):
                base = PRESETS[name][key]
                is_other_lm = key == "text_config" and given.get("model_type", "llama") != base["model_type"]
                fields[key] = dict(given) if is_other_lm else {**base, **given}
        return cls(**fields)

    def validate_tokens(self):
        if len(self.question_end_token_ids) < 2:
            raise ValueError(
                "`question_end_token_ids` must hold the end-of-turn id and the start of the assistant's turn, got "
                f"{list(self.question_end_token_ids)}. The end-of-turn id alone also ends answers, so a prompt "
                "without it would leak the answer into the question."
            )


def _check_heads(hidden_size: int, num_heads: int):
    if hidden_size % num_heads != 0:
        raise ValueError(
            f"`hidden_size` must be divisible by the number of heads, got {hidden_size} and {num_heads}. "
            "Use a divisor of `hidden_size`, e.g. 8 heads for 768."
        )


Mu2Config.register_for_auto_class()

__all__ = ["PRESETS", "Mu2Config", "Mu2TokenizerConfig", "Mu2VisionConfig"]
