"""While it trains: does the model look at the volume, what does its tokenizer select, what does it write.

Every evaluation logs, beside the trainer's own numbers:

- `image_dependence`: loss with the volume of another study less the loss with the right one, nats per answer token. The
  other study has as many findings where there is one, so that "very sick" does not give it away. At 0 the model writes
  from habit.
- `effective_tokens`, `gate_<scale>`, `gate_spread`: of mu2's tokenizer, see [`watch_tokenizer`].

Every log holds studies and tokens per second ([`SpeedMeter`]), and on a GPU whose speed is known the FLOP utilisation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from hf_mu2.files import replace_text
from hf_mu2.model.modeling_mu2_tokenizer import Mu2Tokenizer
from hf_mu2.scoring.labels import label_reports

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import Trainer

VOLUME_TENSORS = ("pixel_values", "pixel_attention_mask", "vision_hidden_states")


class VolumeMonitor(TrainerCallback):
    """Measure image dependence and watch the tokenizer at every evaluation; write a sample report every so often.

    Args:
        trainer (`Trainer`): Gives model and processor. Add the callback to it after it is made.
        rows (`Dataset`): Evaluation rows of any objective, see [`as_answered`]; the first `num_studies` are used.
        sample_steps (`int`): Write the report of a fixed study every so many steps, 0 for never.
    """

    def __init__(self, trainer: Trainer, rows: Dataset, num_studies: int = 32, sample_steps: int = 0):
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

        self.trainer, self.sample_steps = trainer, sample_steps
        self.rows = rows.select(range(min(num_studies, len(rows))))
        self.order = order_by_findings([answer_of(row) for row in self.rows.remove_columns("images")])
        # Of its own: what the trainer's collator makes of a row depends on the objective.
        self.collator = DataCollatorForVisionLanguageModeling(
            trainer.processing_class, completion_only_loss=True
        )

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict | None = None, **kwargs: Any
    ) -> None:
        model, size = self.trainer.model, max(2, args.per_device_eval_batch_size)
        with watch_tokenizer(model) as seen:
            rows = [as_answered(self.rows[i]) for i in self.order]
            measured = measure_image_dependence(model, self.collator, rows, size)
        measured |= seen.summary()
        logs = {f"eval_{name}": value for name, value in measured.items()}
        if metrics is not None:
            metrics.update(logs)
        self.trainer.log(logs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.sample_steps and state.global_step % self.sample_steps == 0:
            self._write_sample(Path(args.output_dir), state.global_step)

    def _write_sample(self, folder: Path, step: int) -> None:
        """Append the report of the first study and its reference to `samples.md`."""
        if not self.trainer.is_world_process_zero():
            return
        row = as_answered(self.rows[0])
        text = generate_text(self.trainer.model, self.trainer.processing_class, row)
        path = folder / "samples.md"
        study_id = self.rows[0]["study_id"]
        before = path.read_text(encoding="utf-8") if path.exists() else f"# Reports of `{study_id}`\n"
        entry = f"\n## Step {step}\n\n{text}\n\n> {answer_of(row)}\n"
        replace_text(path, before + entry)


class SpeedMeter:
    """Measure studies and tokens per second from log to log, and the FLOP utilisation where the GPU is known."""

    def __init__(self) -> None:
        self.start: float | None = None
        self.studies = self.tokens = 0
        self.flops = 0.0

    def saw(self, studies: int, tokens: int, flops: float = 0.0) -> None:
        """Count a batch of this process; `flops` of forward and backward, without recomputation."""
        self.start = time.perf_counter() if self.start is None else self.start
        self.studies, self.tokens, self.flops = (
            self.studies + studies,
            self.tokens + tokens,
            self.flops + flops,
        )

    def read(self, num_processes: int) -> dict[str, float]:
        """Return the speed of all processes since the last reading, and begin anew."""
        if self.start is None:
            return {}
        seconds = time.perf_counter() - self.start
        found = {
            "studies_per_second": round(num_processes * self.studies / seconds, 3),
            "tokens_per_second": round(num_processes * self.tokens / seconds, 1),
        }
        peak = peak_flops()
        if self.flops and peak:
            found["mfu"] = round(self.flops / seconds / peak, 4)
        self.start, self.studies, self.tokens, self.flops = None, 0, 0, 0.0
        return found


# Dense bf16 FLOP/s from the makers' data sheets; a GPU that is not here gets no MFU rather than a wrong one.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


def peak_flops() -> float | None:
    """Return the dense bf16 FLOP/s of the current GPU, `None` where unknown."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)


def answer_of(row: dict[str, Any]) -> str:
    """Return the answer of a training row: completion, chosen completion, last assistant turn or reference."""
    for column in ("completion", "chosen", "messages"):
        if column in row:
            return row[column][-1]["content"]
    if "reference" in row:
        return row["reference"]
    raise ValueError(
        f"A training row holds `completion`, `chosen`, `messages` or `reference`, got {sorted(row)}. Rename the column "
        "of the answer."
    )


def as_answered(row: dict[str, Any]) -> dict[str, Any]:
    """Write the row of any objective as one for SFT: volumes, prompt, and the answer as its completion."""
    prompt = row["prompt"] if "prompt" in row else row["messages"][:-1]
    completion = [{"role": "assistant", "content": answer_of(row)}]
    return {"images": row["images"], "prompt": prompt, "completion": completion}


def order_by_findings(answers: Sequence[str]) -> list[int]:
    """Order studies so that neighbours have about as many findings: a neighbour's volume is then a fair stand-in."""
    counts = label_reports(list(answers)).sum(axis=1)
    return sorted(range(len(answers)), key=lambda index: (counts[index], index))


@torch.no_grad()
def measure_image_dependence(
    model: nn.Module, collator: Any, rows: Sequence[dict[str, Any]], batch_size: int
) -> dict[str, float]:
    """Compare the loss of answers under the right volume with that under a neighbour's.

    Args:
        rows: Training rows with one volume each, neighbours alike; each batch passes its volumes on by one place.

    Returns:
        `dict`: `loss_right`, `loss_other` (means over studies of the token mean, in nats), `image_dependence` (their
        difference) and `image_dependence_se` (its standard error over studies).
    """
    if len(rows) < 2:
        return {}
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    differences, rights = [], []
    starts = [
        start for start in range(0, len(rows), batch_size) if len(rows) - start > 1
    ]  # one alone has no neighbour
    for start in starts:
        chosen = list(rows[start : start + batch_size])
        batch = _collate(collator, chosen, device)
        if any(name in batch for name in VOLUME_TENSORS):
            moved = {name: batch[name].roll(1, dims=0) for name in VOLUME_TENSORS if name in batch}
            swapped = {**batch, **moved}
        else:  # a model whose placeholders follow from the volume
            images = [row["images"] for row in chosen]
            others = [{**row, "images": image} for row, image in zip(chosen, images[-1:] + images[:-1])]
            swapped = _collate(collator, others, device)
        right, other = (
            answer_losses(model(**{**inputs, "labels": None}).logits, inputs["labels"])
            for inputs in (batch, swapped)
        )
        rights.append(right)
        differences.append(other - right)
    model.train(was_training)
    right, difference = torch.cat(rights), torch.cat(differences)
    return {
        "loss_right": right.mean().item(),
        "loss_other": (right + difference).mean().item(),
        "image_dependence": difference.mean().item(),
        "image_dependence_se": (difference.std() / len(difference) ** 0.5).item(),
    }


def _collate(collator: Any, rows: Sequence[dict[str, Any]], device: torch.device) -> dict[str, torch.Tensor]:
    batch = collator([dict(row) for row in rows])  # TRL's collators write into the rows
    return {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}


def answer_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each row's labelled tokens, `(batch,)`, in fp32."""
    targets = labels[:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=-100, reduction="none"
    )
    return losses.sum(1) / (targets != -100).sum(1).clamp(min=1)


class TokenizerView:
    """What forward passes under [`watch_tokenizer`] showed; `summary` averages it over studies."""

    def __init__(self) -> None:
        self.effective: list[torch.Tensor] = []
        self.gates: list[torch.Tensor] = []

    def summary(self) -> dict[str, float]:
        """Return `effective_tokens` (exp of the entropy of each slot's weights, mean over slots), the mean gate of each
        scale, and `gate_spread`, the largest standard deviation of a gate between studies."""
        found: dict[str, float] = {}
        if self.effective:
            found["effective_tokens"] = torch.cat(self.effective).mean().item()
        if self.gates:
            gates = torch.cat(self.gates)
            found |= {f"gate_{index}": value.item() for index, value in enumerate(gates.mean(0))}
            found["gate_spread"] = gates.std(0, correction=0).max().item()
        return found


@contextmanager
def watch_tokenizer(model: nn.Module) -> Iterator[TokenizerView]:
    """Look into the selection (DTS) and the gates (DMTP) of a mu2 tokenizer during forward passes.

    Models without one, and forms without soft selection or gates, show nothing.
    """
    seen, handles = TokenizerView(), []

    def on_selection(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        refined, _, mask = inputs
        weights = module.weights(refined, mask).float()  # (B, T*N, R)
        entropy = -(weights * weights.clamp(min=1e-30).log()).sum(1)
        seen.effective.append(entropy.exp().mean(1).cpu())

    def on_pooling(module: nn.Module, inputs: tuple, output: list[torch.Tensor]) -> None:
        selected = inputs[0]
        slots = selected.transpose(1, 2)
        pooled = [F.avg_pool1d(slots, scale).transpose(1, 2) for scale in module.scales]
        seen.gates.append(module.gates(selected, pooled).float().cpu())

    for module in model.modules():
        if isinstance(module, Mu2Tokenizer) and module.config.connector != "spatial_pooling":
            if module.selection.is_soft:
                handles.append(module.selection.register_forward_hook(on_selection))
            if module.pooling.gate is not None:
                handles.append(module.pooling.register_forward_hook(on_pooling))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def generate_text(model: nn.Module, processor: Any, row: dict[str, Any], max_new_tokens: int = 256) -> str:
    """Write the answer to a training row's question, greedily."""
    was_training = model.training
    model.eval()
    content = [*[{"type": "image", "image": image} for image in row["images"]]]
    content.append({"type": "text", "text": row["prompt"][-1]["content"]})
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(next(model.parameters()).device)
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    model.train(was_training)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
