"""The dual-path negative constraint (Gao and Zhao): a report should be likely under its own volume, unlikely under
another.

Reads: training rows with one answer and `images`; patients and labels of the studies, for negatives of other patients.
Writes: `negatives.json` in the output folder, what the first epoch's negatives are like.

    L = mean over pairs of [alpha * CE(answer | volume) - weight * min(CE(answer | negative), max_loss)]

CE is the mean over the answer's tokens, in fp32. A negative whose loss has reached `max_loss` has no gradient. The mean
is over the pairs of the whole step: all accumulation steps and all processes. The weight is `beta`, or follows the
training (`beta_schedule`). With `beta` 0 no negative is read or run, and the loss is that of SFT with each report
weighing the same.

The paper fixes alpha = 1 and beta = 0.1. It gives no value for `max_loss`, and names a "dynamic weight" and "controlled
gradients on negative logits" without a formula: those here are ours, and off unless asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback
from trl import SFTConfig

from hf_mu2.data.negatives import MIN_DISTANCE, POLICIES, Candidates, describe_draw
from hf_mu2.data.negatives_noise import write_gaussian_volumes
from hf_mu2.data.negatives_pool import study_candidates
from hf_mu2.data.negatives_rows import (
    DrawnVolumes,
    GaussianVolumes,
    GivenVolumes,
    NegativeVolumes,
    PairRows,
)
from hf_mu2.files import replace_text
from hf_mu2.model.features_mu2 import is_features
from hf_mu2.scoring.labels import label_reports

from .features import cache_features
from .monitor import answer_of, generate_text
from .recipe import Objective, RecipeArguments, open_studies
from .sft import StageSFTTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from torch.utils.data import DataLoader

NEGATIVES = ("gauss", *POLICIES)
SCHEDULES = ("constant", "linear", "adaptive")


@dataclass
class NegativeArguments(RecipeArguments):
    """A recipe's arguments and whose volumes are the negatives.

    Args:
        negatives (`str`): `"gauss"`, or a policy of `hf_mu2.data.negatives`: `"paper"`, `"balanced"`, `"hard"`,
            `"pairs"`.
        min_label_distance (`int`): Labels in which a negative differs, of `"paper"` and `"balanced"`.
        max_uses (`int`): How often a volume may stand in per epoch, of `"balanced"`.
        findings (`list[str]`, *optional*): The findings that matter, of `"hard"`; all labels when not given.
        embeddings (`str`, *optional*): Output of `hf-mu2 embed` for the training studies, which says for `"hard"` how
            alike they look; what is known of patient and scanner when not given.
    """

    negatives: str = "balanced"
    min_label_distance: int = MIN_DISTANCE
    max_uses: int = 1
    findings: list[str] | None = None
    embeddings: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negatives not in NEGATIVES:
            raise ValueError(
                f"`negatives` must be one of {', '.join(NEGATIVES)}, got `{self.negatives}`. Check the spelling."
            )


@dataclass
class NegativeConfig(SFTConfig):
    """TRL's `SFTConfig` and the weights of the two paths. `per_device_train_batch_size` counts pairs.

    Args:
        alpha, beta (`float`): Weights of the positive and of the negative path.
        beta_schedule (`str`): `"constant"`; `"linear"`, from 0 at the start of training to `beta` at its end; or
            `"adaptive"`, `beta * clip(1 - gap / margin, 0, 1)` per pair, gap = CE(negative) - CE(positive) without
            gradient: a pair that the model tells apart by `margin` has had enough.
        margin (`float`): Nats per token, for `"adaptive"`.
        max_loss (`float`): Nats per token from which a negative has no gradient.
        negative_gradient (`float`): Factor on the gradient that reaches the logits of negatives; their loss keeps its
            value.
        length_studies (`int`): Evaluation studies whose report is written at every evaluation, to log its length.
    """

    alpha: float = field(default=1.0, metadata={"help": "Weight of the positive path."})
    beta: float = field(default=0.1, metadata={"help": "Weight of the negative path."})
    beta_schedule: str = field(default="constant", metadata={"help": "constant, linear or adaptive."})
    margin: float = field(default=1.0, metadata={"help": "Gap at which the adaptive weight is 0."})
    max_loss: float = field(default=5.0, metadata={"help": "Cap on the loss of a negative."})
    negative_gradient: float = field(default=1.0, metadata={"help": "Factor on gradients of negatives."})
    length_studies: int = field(default=4, metadata={"help": "Reports written at every evaluation."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Items are pairs of rows."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_schedule not in SCHEDULES:
            raise ValueError(
                f"`beta_schedule` must be one of {', '.join(SCHEDULES)}, got `{self.beta_schedule}`. Check the "
                "spelling."
            )
        if self.beta < 0 or self.margin <= 0 or self.max_loss <= 0 or self.negative_gradient < 0:
            raise ValueError(
                "`beta` and `negative_gradient` are not negative, `margin` and `max_loss` are positive, got "
                f"{self.beta}, {self.negative_gradient}, {self.margin} and {self.max_loss}. Change the recipe."
            )
        if self.remove_unused_columns or self.dataloader_persistent_workers:
            raise ValueError(
                "Pairs are drawn anew every epoch and are lists of rows: leave `remove_unused_columns` and "
                "`dataloader_persistent_workers` off."
            )

    @property
    def has_negatives(self) -> bool:
        """Return whether negatives have any weight."""
        return self.beta > 0


@dataclass(frozen=True)
class PairCollator:
    """Let a collator for rows take pairs of rows too: positive, negative, positive, negative."""

    collate_rows: Any

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        rows = [row for item in examples for row in (item if isinstance(item, list) else [item])]
        return self.collate_rows(rows)


class NegativeLossTrainer(StageSFTTrainer):
    """SFT with a second path through negatives; evaluation is SFT's, on the studies' own volumes.

    Args:
        volumes_of (`NegativeVolumes`, *optional*): Finds the volumes of a row's negative. Not called with `beta` 0.

    Logs `loss_positive`, `loss_negative` (before the cap), their difference `loss_gap`, `capped_share` of the negatives
    and the mean `negative_weight`.
    """

    args: NegativeConfig
    train_dataset: Any
    data_collator: Any
    pairs: PairRows

    def __init__(self, *args: Any, volumes_of: NegativeVolumes | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.has_negatives and volumes_of is None:
            raise ValueError(
                f"`beta` {self.args.beta} needs negatives. Pass `volumes_of`, e.g. `GaussianVolumes(rows)`, or beta 0."
            )
        self.rows_per_pair = 2 if self.args.has_negatives else 1
        self.pairs = PairRows(self.train_dataset, volumes_of if self.args.has_negatives else None)
        self.data_collator = PairCollator(self.data_collator)
        # The loss is divided by the pairs of the step, here and not again.
        self.model_accepts_loss_kwargs = True

    def get_train_dataloader(self) -> DataLoader:
        """Load pairs where the stock trainer loads rows."""
        rows, self.train_dataset = self.train_dataset, self.pairs
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = rows

    def report_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items: torch.Tensor | None = None,
    ) -> Any:
        """Return the loss of this batch's pairs as its share of the mean over the pairs of the step."""
        if not model.training:
            return super().report_loss(model, inputs, return_outputs)
        losses = self.answer_losses(model, inputs)
        positive = losses[:: self.rows_per_pair]
        terms = [self.args.alpha * positive]
        if self.rows_per_pair == 2:
            terms.append(self.negative_term(positive, losses[1::2]))
        return self.mean_over_pairs(torch.stack(terms).sum(0), num_items)

    def answer_losses(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the mean cross-entropy of each row's answer tokens, `(rows,)` in fp32, by TRL's fused head."""
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        return -outputs.log_probs.float().sum(1) / outputs.label_mask.sum(1).clamp(min=1)

    def negative_term(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """Return what negatives add to the loss of each pair: less than 0, and constant from `max_loss` on."""
        scale = self.args.negative_gradient
        scaled = scale * negative + (1 - scale) * negative.detach()
        weight = self.negative_weight(positive.detach(), negative.detach())
        self._note_pairs(positive.detach(), negative.detach(), weight)
        return -weight * scaled.clamp(max=self.args.max_loss)

    def negative_weight(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """Return the weight of each pair's negative by the schedule."""
        weight = torch.full_like(negative, self.args.beta)
        if self.args.beta_schedule == "linear":
            weight *= (self.state.global_step + 1) / self.state.max_steps
        elif self.args.beta_schedule == "adaptive":
            weight *= (1 - (negative - positive) / self.args.margin).clamp(0, 1)
        return weight

    def mean_over_pairs(self, losses: torch.Tensor, num_pairs: torch.Tensor | None) -> torch.Tensor:
        """Divide by the pairs of the whole step; processes average gradients, so theirs are summed by the factor."""
        if num_pairs is None:
            return losses.mean()
        return losses.sum() / num_pairs * self.accelerator.num_processes

    def _get_num_items_in_batch(self, batch_samples: list[Mapping[str, Any]], device: torch.device) -> Any:
        """Count pairs over accumulation steps and processes; the stock trainer counts tokens."""
        num_rows = sum(len(batch["labels"]) for batch in batch_samples)
        pairs = torch.tensor(num_rows // self.rows_per_pair, device=device)
        return self.accelerator.gather(pairs).sum()

    def _note_pairs(self, positive: torch.Tensor, negative: torch.Tensor, weight: torch.Tensor) -> None:
        """Keep what the next log tells, means over processes."""
        capped = (negative >= self.args.max_loss).float()
        columns = torch.stack([positive, negative, negative - positive, capped, weight], dim=1)
        names = ("loss_positive", "loss_negative", "loss_gap", "capped_share", "negative_weight")
        for name, value in zip(names, self.accelerator.gather(columns).mean(0).tolist()):
            self._metrics["train"][name].append(value)


class LengthWatch(TrainerCallback):
    """Write a few reports at every evaluation and log their length: too large a `beta` makes reports short.

    Logs `eval_report_words` and `eval_length_ratio`, words written per word of the reference.
    """

    def __init__(self, trainer: NegativeLossTrainer, rows: Dataset) -> None:
        self.trainer = trainer
        self.rows = rows.select(range(min(trainer.args.length_studies, len(rows))))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict | None = None, **kwargs: Any
    ) -> None:
        rows = list(self.rows)
        texts = [generate_text(self.trainer.model, self.trainer.processing_class, row) for row in rows]
        words, expected = (
            sum(len(text.split()) for text in group) for group in (texts, [answer_of(row) for row in rows])
        )
        logs = {"eval_report_words": words / len(rows), "eval_length_ratio": words / max(expected, 1)}
        if metrics is not None:
            metrics.update(logs)
        self.trainer.log(logs)


def make_trainer(arguments: NegativeArguments, train_dataset: Dataset, **options: Any) -> NegativeLossTrainer:
    """Make the trainer of a recipe, choose negatives, and say what they are like."""
    config: NegativeConfig = options["args"]
    volumes = find_volumes(arguments, train_dataset, **options) if config.has_negatives else None
    trainer = NegativeLossTrainer(
        train_dataset=train_dataset,
        volumes_of=volumes,
        evidence_weight=arguments.evidence_weight,
        **options,
    )
    if config.length_studies and options.get("eval_dataset") is not None:
        trainer.add_callback(LengthWatch(trainer, options["eval_dataset"]))
    if isinstance(volumes, DrawnVolumes) and trainer.is_world_process_zero():
        text = json.dumps(describe_draw(volumes.candidates, volumes.draw(0)), indent=1)
        path = Path(config.output_dir) / "negatives.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text + "\n")
        trainer.accelerator.print(f"Negatives: {text}")
    return trainer


def find_volumes(
    arguments: NegativeArguments,
    rows: Dataset,
    *,
    args: NegativeConfig,
    model: nn.Module,
    processing_class: Any,
    **options: Any,
) -> NegativeVolumes:
    """Find the volumes of negatives that a recipe asks for; where the rows are cached features, theirs are too.

    Raises:
        ValueError: as `draw_negatives`.
    """
    if arguments.negatives == "gauss":
        if is_features(rows[0]["images"][0]):
            return cache_noise(arguments, rows, args, model, processing_class)
        return GaussianVolumes(rows, args.seed)
    return DrawnVolumes(
        rows,
        row_candidates(arguments, rows),
        policy=arguments.negatives,
        seed=args.seed,
        min_distance=arguments.min_label_distance,
        max_uses=arguments.max_uses,
        findings=arguments.findings,
    )


def cache_noise(
    arguments: NegativeArguments, rows: Dataset, args: NegativeConfig, model: nn.Module, processor: Any
) -> GivenVolumes:
    """Write noise as large as the volumes of each study, and its features: the same in every epoch.

    Both stay in `<output_dir>/noise`, so that a run that was killed finds them.
    """
    from datasets import Dataset, Features, List, Value

    studies = open_studies(arguments, arguments.train_split, arguments.max_train_studies)
    sources = dict(zip(map(str, studies["study_id"]), studies["images"], strict=True))
    of_rows = [{"study_id": study_id, "images": sources[str(study_id)]} for study_id in rows["study_id"]]
    folder = Path(args.output_dir) / "noise"
    with PartialState().main_process_first():  # which writes; the others find everything there
        paths = list(write_gaussian_volumes(of_rows, folder / "volumes", seed=args.seed))
        noise = Dataset.from_dict({"images": paths}, features=Features(images=List(Value("string"))))
        noise = cache_features(
            model,
            processor,
            noise,
            folder / "features",
            batch_size=args.per_device_eval_batch_size,
            dtype=torch.bfloat16 if args.bf16 else torch.float32,
            device=args.device,
        )
    return GivenVolumes(noise["images"])


def row_candidates(arguments: NegativeArguments, rows: Dataset) -> Candidates:
    """Gather candidates for training rows: labels of their studies, or else what the answers say by the rules."""
    studies = open_studies(arguments, arguments.train_split, arguments.max_train_studies)
    wanted = ("study_id", "patient_id", "labels", "metadata")
    studies = studies.select_columns([name for name in wanted if name in studies.column_names])
    known = {str(study["study_id"]): study for study in studies}
    of_rows = [known[str(study_id)] for study_id in rows["study_id"]]
    labels = None
    if "labels" not in studies.column_names:
        labels = label_reports([answer_of(row) for row in rows.remove_columns("images")])
    return study_candidates(of_rows, labels=labels, embeddings=arguments.embeddings)


OBJECTIVE = Objective(NegativeArguments, NegativeConfig, make_trainer)
