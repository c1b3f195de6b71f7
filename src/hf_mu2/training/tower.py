"""Pre-train the vision tower on pairs of volume and report, and on finding labels.

Reads: a recipe of stage `tower`, a corpus with volumes and reports, a text model.
Writes: `output_dir` with the tower as a saved `Mu2VisionModel` beside its image processor; `hf-mu2 init` and recipes
take the folder as `vision_tower`. Checkpoints of the trainer hold the heads too.

The contrastive part plays the role of M3D-CLIP (https://huggingface.co/papers/2404.00578, section 3.2): volume and
report of a study are pulled together, others of the batch pushed apart. The label part asks one query per finding, so
that small findings are not lost in one vector for the whole volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, Trainer, TrainingArguments, set_seed

from hf_mu2.data.study import FINDING_LABELS
from hf_mu2.data.views import report_text
from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.modeling_mu2_vision import Mu2VisionModel

from .checkpoints import last_whole_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class TowerArguments:
    """What a recipe of stage `tower` says beside where the studies come from.

    Args:
        text_model (`str`): Text encoder or language model, Hub id or folder; `"embedded"` is that of the demo
            checkpoint. It is frozen; the projection on top of it is trained.
        vision_tower (`str`, *optional*): A tower to go on from, as in [`~hf_mu2.hub.assemble`]: its sizes replace those
            of the preset, and its image processor comes along. Fresh by default.
        preset (`str`): Sizes of the tower, as in `Mu2Config.from_preset`.
        vision_config (`dict`, *optional*): Fields of `Mu2VisionConfig` that replace those of the preset.
        image_processor (`dict`, *optional*): Fields of `Mu2ImageProcessor` that replace the derived ones, or those of
            the tower to go on from.
        projection_size (`int`): Width of the shared space.
        contrastive_weight, label_weight (`float`): Weights of the two losses; 0 leaves one out.
        max_text_length (`int`): Tokens read of each report.
    """

    text_model: str = "embedded"
    vision_tower: str | None = None
    preset: str = "mu2-1b"
    vision_config: dict[str, Any] | None = None
    image_processor: dict[str, Any] | None = None
    projection_size: int = 512
    contrastive_weight: float = 1.0
    label_weight: float = 1.0
    max_text_length: int = 512


class FindingPool(nn.Module):
    """Let learned queries look at all patches of a volume: one for the study, one per finding.

    One attention layer over patches that are valid; heads as wide as in the tower.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_queries: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, hidden_size) * 0.02)
        self.norm = nn.LayerNorm(hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, num_heads, batch_first=True)

    def forward(self, patches: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool patches `(volumes, patches, width)`, `mask` True where valid, to `(volumes, queries, width)`."""
        patches = self.norm(patches)
        queries = self.queries.to(patches.dtype).expand(len(patches), -1, -1)
        return self.attention(queries, patches, patches, key_padding_mask=~mask, need_weights=False)[0]


class TowerForPretraining(nn.Module):
    """A vision tower with a head for each loss, beside a frozen text model.

    Args:
        vision_tower (`Mu2VisionModel`): What is pre-trained.
        text_model (`PreTrainedModel`): Gives hidden states of report tokens; frozen.
    """

    def __init__(self, vision_tower: Mu2VisionModel, text_model: PreTrainedModel, arguments: TowerArguments):
        super().__init__()
        width = vision_tower.config.hidden_size
        self.vision_tower = vision_tower
        self.text_model = text_model.requires_grad_(False).eval()
        self.pool = FindingPool(width, vision_tower.config.num_attention_heads, 1 + len(FINDING_LABELS))
        self.image_projection = nn.Linear(width, arguments.projection_size)
        self.text_projection = nn.Linear(text_model.config.hidden_size, arguments.projection_size)
        self.finding_weight = nn.Parameter(torch.randn(len(FINDING_LABELS), width) / math.sqrt(width))
        self.finding_bias = nn.Parameter(torch.full((len(FINDING_LABELS),), -1.0))  # findings are rare
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start
        self.weights = (arguments.contrastive_weight, arguments.label_weight)

    def train(self, mode: bool = True) -> TowerForPretraining:
        """Switch modes; the text model always predicts alike."""
        super().train(mode)
        self.text_model.eval()
        return self

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        report_ids: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Compute both losses.

        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(studies, length)`): The report's tokens.
            labels (`torch.Tensor` of shape `(studies, 18)`): 1, 0, or NaN where unknown.
            report_ids (`torch.LongTensor` of shape `(studies,)`): Equal where reports are equal: two normal studies
                with one text are not each other's negatives.

        Returns:
            `dict`: `loss`, `contrastive_loss`, `label_loss`, `logits` of the findings, `(studies, 18)`.
        """
        patches = self.vision_tower(pixel_values, pixel_attention_mask).last_hidden_state  # (B, T, N, E)
        grid = self.vision_tower.config.grid
        mask = pixel_attention_mask.bool().repeat_interleave(grid[1] * grid[2], dim=-1).flatten(1)  # (B, T*N)
        pooled = self.pool(patches.flatten(1, 2), mask)
        findings = (pooled[:, 1:] * self.finding_weight).sum(-1) + self.finding_bias

        known = ~labels.isnan()
        each = F.binary_cross_entropy_with_logits(findings.float(), labels.nan_to_num(), reduction="none")
        label_loss = (each * known).sum() / known.sum().clamp(min=1)
        with torch.no_grad():
            words = self.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            shares = attention_mask / attention_mask.sum(1, keepdim=True).clamp(min=1)
            text = (words * shares[:, :, None].to(words.dtype)).sum(1)
        image = F.normalize(self.image_projection(pooled[:, 0]).float(), dim=-1)
        text = F.normalize(self.text_projection(text.to(self.text_projection.weight.dtype)).float(), dim=-1)
        contrastive_loss = contrastive(image, text, report_ids, self.log_scale)
        contrastive_weight, label_weight = self.weights
        return {
            "loss": contrastive_weight * contrastive_loss + label_weight * label_loss,
            "contrastive_loss": contrastive_loss.detach(),
            "label_loss": label_loss.detach(),
            "logits": findings.detach(),
        }


def contrastive(
    image: torch.Tensor, text: torch.Tensor, report_ids: torch.Tensor, log_scale: torch.Tensor
) -> torch.Tensor:
    """Compute CLIP's loss over the studies of all processes (https://huggingface.co/papers/2103.00020, figure 3).

    Targets are spread over all studies with the same report. Every process compares its own rows with everybody's
    columns; gradients flow back through the gathering, so that the mean over processes is the loss of the whole batch.

    Args:
        image, text (`torch.Tensor` of shape `(studies, width)`): Of unit length.
        report_ids (`torch.LongTensor` of shape `(studies,)`): Equal where reports are equal.
        log_scale (`torch.Tensor`): Logarithm of the inverse temperature, held below log 100.
    """
    scale = log_scale.clamp(max=math.log(100)).exp()
    all_image, all_text, all_ids = image, text, report_ids
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        from torch.distributed.nn.functional import all_gather

        all_image, all_text = torch.cat(all_gather(image)), torch.cat(all_gather(text))
        gathered = [torch.empty_like(report_ids) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(gathered, report_ids)
        all_ids = torch.cat(gathered)
    same = (report_ids[:, None] == all_ids).float()
    targets = same / same.sum(1, keepdim=True)
    losses = [
        -(targets * F.log_softmax(scale * own @ others.T, dim=1)).sum(1).mean()
        for own, others in ((image, all_text), (text, all_image))
    ]
    return sum(losses) / 2


class TowerCollator:
    """Turn study rows into a batch: volumes, report tokens, labels."""

    def __init__(
        self, image_processor: Mu2ImageProcessor, tokenizer: PreTrainedTokenizerBase, max_text_length: int
    ):
        self.image_processor, self.tokenizer, self.max_text_length = (
            image_processor,
            tokenizer,
            max_text_length,
        )

    def __call__(self, studies: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [report_text(study) for study in studies]
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_text_length, return_tensors="pt"
        )
        volumes = self.image_processor([study["images"][0] for study in studies], return_tensors="pt")
        labels = [[study["labels"][label] for label in FINDING_LABELS] for study in studies]
        return {
            **volumes,
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "labels": torch.tensor(
                [[math.nan if value is None else value for value in row] for row in labels],
                dtype=torch.float32,
            ),
            "report_ids": torch.tensor([_stable_id(text) for text in texts]),
        }


def train_tower(recipe: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Pre-train a tower as a recipe says and return its folder.

    Raises:
        ValueError: if the recipe or the corpus cannot be trained as asked.
    """
    from trl import TrlParser

    from .recipe import RecipeArguments, find_recipe, open_studies

    fields: Any = (RecipeArguments, TowerArguments, TrainingArguments)
    parser = TrlParser(fields, prog="hf-mu2 train")
    data, arguments, training = parser.parse_args_and_config(
        ["--config", str(find_recipe(recipe)), *overrides]
    )
    training.remove_unused_columns = False  # the collator makes the model's arguments from the columns
    set_seed(training.seed)
    train = open_studies(data, data.train_split, data.max_train_studies)
    evaluation = None
    if training.eval_strategy != "no":
        evaluation = open_studies(data, data.eval_split, data.max_eval_studies)
    model, collator = assemble_tower(arguments)
    trainer = Trainer(
        model=model, args=training, train_dataset=train, eval_dataset=evaluation, data_collator=collator
    )
    trainer.label_names = ["labels"]
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(training.output_dir))
    out = Path(training.output_dir)
    if trainer.is_world_process_zero():
        model.vision_tower.save_pretrained(out)
        collator.image_processor.save_pretrained(out)
    trainer.accelerator.wait_for_everyone()
    return out


def assemble_tower(arguments: TowerArguments) -> tuple[TowerForPretraining, TowerCollator]:
    """Put a tower, a text model and the matching collator together.

    Raises:
        ValueError: if the tower to go on from does not fit what is asked for.
    """
    from hf_mu2.hub.assemble import (
        image_processor_for,
        load_language_model,
        load_vision_tower,
        make_vision_tower,
    )

    if arguments.text_model == "embedded" or (Path(arguments.text_model) / "processor_config.json").is_file():
        tokenizer, language_model, _ = load_language_model(arguments.text_model)
        text_model = language_model.base_model
    else:
        tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
        text_model = AutoModel.from_pretrained(arguments.text_model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    fields, state, image_processor = load_vision_tower(arguments.vision_tower)
    config = Mu2Config.from_preset(
        arguments.preset, vision_config={**fields, **(arguments.vision_config or {})}
    )
    tower = make_vision_tower(config, state)
    replaced = arguments.image_processor or {}
    if image_processor is None:
        image_processor = image_processor_for(config, **replaced)
    elif replaced:
        image_processor = Mu2ImageProcessor.from_dict({**image_processor.to_dict(), **replaced})
    model = TowerForPretraining(tower, text_model, arguments)
    return model, TowerCollator(image_processor, tokenizer, arguments.max_text_length)


def _stable_id(text: str) -> int:
    from hashlib import blake2b

    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest())
