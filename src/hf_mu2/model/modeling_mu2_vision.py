"""The 3D ViT of mu2: one frame (a slab of slices) at a time, M3D-CLIP's image tower by default."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from .configuration_mu2 import Mu2VisionConfig
from .modeling_mu2_attention import as_checkpoint_input, as_sdpa, open_empty_rows


class Mu2VisionAttention(nn.Module):
    def __init__(self, config: Mu2VisionConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        width = config.hidden_size
        # Names differ from the language model's (`q_proj` ...), so that LoRA targets never hit the vision side.
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        # (F, N, E) -> (F, heads, N, E / heads); F = frames
        query, key, value = (
            layer(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.output(attended.transpose(1, 2).flatten(2))


class Mu2VisionLayer(nn.Module):
    def __init__(self, config: Mu2VisionConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Mu2VisionAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden_states = hidden_states + self.attention(self.layernorm_before(hidden_states), mask)
        return hidden_states + self.fc2(F.gelu(self.fc1(self.layernorm_after(hidden_states))))


class Mu2VisionEncoder(GradientCheckpointingLayer):
    """Encode a chunk of frames. The whole chunk is one checkpoint, so activations never grow with the frames."""

    def __init__(self, config: Mu2VisionConfig):
        super().__init__()
        self.patch_size = tuple(config.patch_size)
        num_patches = config.grid[0] * config.grid[1] * config.grid[2]
        voxels = config.num_channels * self.patch_size[0] * self.patch_size[1] * self.patch_size[2]
        self.num_channels = config.num_channels
        self.patch_embedding = nn.Linear(voxels, config.hidden_size)
        self.position_embedding = nn.Parameter(torch.zeros(1, num_patches, config.hidden_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_cls_token else None
        self.layers = nn.ModuleList(Mu2VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Encode frames.

        Args:
            frames (`torch.Tensor` of shape `(frames, windows * slices, height, width)`): Windowed slices.
            mask (`torch.BoolTensor` of shape `(frames, patches)`, *optional*): Patches of slabs that hold anatomy.
        """
        hidden_states = self.patch_embedding(self.patchify(frames)) + self.position_embedding
        if self.cls_token is not None:
            hidden_states = torch.cat([self.cls_token.expand(len(frames), -1, -1), hidden_states], dim=1)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        attention_mask = None if mask is None else open_empty_rows(mask)[:, None, None, :]
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask)
        hidden_states = self.layernorm(hidden_states)
        return hidden_states if self.cls_token is None else hidden_states[:, 1:]

    def patchify(self, frames: torch.Tensor) -> torch.Tensor:
        depth, height, width = self.patch_size
        frames = frames.unflatten(1, (self.num_channels, -1, depth))
        frames = frames.unflatten(4, (-1, height)).unflatten(6, (-1, width))
        # (F, C, gd, d, gh, h, gw, w) -> (F, gd*gh*gw, C*d*h*w)
        return frames.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


class Mu2VisionModel(PreTrainedModel):
    """Encode the frames of a batch of volumes."""

    config: Mu2VisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Mu2VisionLayer"]
    _supports_sdpa = True
    _can_compile_fullgraph = True

    def __init__(self, config: Mu2VisionConfig):
        super().__init__(config)
        self.encoder = Mu2VisionEncoder(config)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, pixel_attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutput:
        """Encode every frame by itself; padded slabs are neither read nor attended, and come out as zeros.

        Args:
            pixel_values (`torch.Tensor` of shape `(volumes, frames, windows * slices, height, width)`):
                Windowed slices of `Mu2ImageProcessor`.
            pixel_attention_mask (`torch.BoolTensor` of shape `(volumes, frames, slabs)`, *optional*):
                Which slabs (patch depths) of each frame hold anatomy. All, if absent.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(volumes, frames, patches, hidden_size)`.

        Raises:
            ValueError: if the frames have another shape than `config.frame_size` and `config.num_channels` say.
        """
        slices, height, width = self.config.frame_size
        expected = (self.config.num_channels * slices, height, width)
        if pixel_values.ndim != 5 or tuple(pixel_values.shape[2:]) != expected:
            raise ValueError(
                f"`pixel_values` must have shape (volumes, frames, {', '.join(map(str, expected))}), got "
                f"{tuple(pixel_values.shape)}. Make them with the image processor saved beside this checkpoint."
            )
        num_volumes, num_frames = pixel_values.shape[:2]
        frames = pixel_values.flatten(0, 1).to(self.encoder.patch_embedding.weight.dtype)
        mask = None
        if pixel_attention_mask is not None:
            slabs = pixel_attention_mask.bool().flatten(0, 1)  # (F, gd)
            voxels = slabs.repeat_interleave(self.config.patch_size[0], dim=1).repeat(
                1, self.config.num_channels
            )
            frames = frames.masked_fill(~voxels[:, :, None, None], 0.0)  # zero first: 0 * NaN is NaN
            grid = self.config.grid
            mask = slabs.repeat_interleave(grid[1] * grid[2], dim=1)  # (F, N), depth-major

        size = self.config.frames_per_chunk
        hidden_states = torch.cat(
            [
                self.encoder(
                    as_checkpoint_input(frames[i : i + size], self.encoder),
                    None if mask is None else mask[i : i + size],
                )
                for i in range(0, len(frames), size)
            ]
        )
        if mask is not None:
            hidden_states = hidden_states.masked_fill(~mask[:, :, None], 0.0)
        return BaseModelOutput(last_hidden_state=hidden_states.unflatten(0, (num_volumes, num_frames)))

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Mu2VisionEncoder):
            init.trunc_normal_(module.position_embedding, std=self.config.initializer_range)
            if module.cls_token is not None:
                init.zeros_(module.cls_token)

    def _check_and_adjust_attn_implementation(self, attn_implementation, *args, **kwargs):
        # `scaled_dot_product_attention` picks the flash kernel itself where no mask is given, so a request for flash
        # attention on the language model must not fail here.
        return super()._check_and_adjust_attn_implementation(as_sdpa(attn_implementation), *args, **kwargs)


__all__ = ["Mu2VisionModel"]
