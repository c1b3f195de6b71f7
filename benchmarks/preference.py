"""What encoding each volume once saves: eight candidates per study, and a DPO step, beside the stock ways.

    OMP_NUM_THREADS=1 python benchmarks/preference.py [--studies 4] [--batch 2] [--rounds 12] [--new_tokens 64]

Preset `tiny` with the embedded tower and language model, PhantomCT at 2.5 x 1.5 x 1.5 mm from prepared volumes, fp32.

Sampling, one study: `sample_candidates` (behind `hf-mu2 sample`) beside eight calls of `generate`, and beside one call
with `num_return_sequences=8`. All write the same number of tokens.

DPO, a step of collator, forward, backward and AdamW: ours beside TRL's collator and trainer. With the reference in the
step, and precomputed: the stock trainer refuses that for volumes, so there it is handed numbers, and the rest of its
step is its own. The last column compares with the stock trainer as it comes, which has the reference in the step.

A ceiling is what leaving out vision alone can reach, everything else at the stock trainer's speed: stock seconds over
stock seconds less those of the vision passes left out. Passes of vision (tower and tokenizer) are measured apart, in
the batch sizes and with the backward passes that each trainer runs them in; with a frozen tower our reference runs its
tokenizer alone. Sampling has no such bound against eight calls: decoding eight rows at once is faster too.

Seconds are CPU seconds of the process, which a busy machine leaves alone; run it with one thread. All cells take turns,
ratios are the median of the ratios within a round.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from trl import DPOConfig, DPOTrainer

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "benchmarks")]

from train_step import open_rows  # noqa: E402

from hf_mu2.data.phantom import write_phantoms  # noqa: E402
from hf_mu2.data.prepare import prepare  # noqa: E402
from hf_mu2.hub.assemble import assemble  # noqa: E402
from hf_mu2.reporting.inference import load_reader  # noqa: E402
from hf_mu2.reporting.sampling import sample_candidates, sampling_config  # noqa: E402
from hf_mu2.training.dpo import StageDPOTrainer  # noqa: E402
from hf_mu2.training.reference import LOG_PROB_COLUMNS  # noqa: E402
from hf_mu2.training.stages import STAGES, freeze  # noqa: E402

NUM_CANDIDATES = 8
CHECKPOINT, PAIRS = "checkpoint", "prepared"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"studies": 4, "batch": 2, "rounds": 12, "new_tokens": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assemble("embedded", folder / CHECKPOINT, preset="tiny", vision_tower="embedded")
        write_phantoms(folder / "raw", arguments.studies, view="preference", spacing=(2.5, 1.5, 1.5))
        processor = AutoProcessor.from_pretrained(folder / CHECKPOINT)
        prepare(open_rows(folder, "raw"), folder / PAIRS, processor.image_processor)
        rows = open_rows(folder, PAIRS)
        print(
            f"threads {torch.get_num_threads()}, {arguments.rounds} rounds, batch {arguments.batch}, load "
            f"{os.getloadavg()[0]:.1f}"
        )
        benchmark_sampling(folder, rows, arguments)
        benchmark_dpo(folder, rows, arguments)
    print("GPU: not run" if not torch.cuda.is_available() else "GPU: present, not used")


def in_turns(cells: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Run all cells once, then `rounds` times in turns, and return the CPU seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in cells}
    for number in range(rounds + 1):
        for name, cell in cells.items():
            started = time.process_time()
            cell()
            if number:  # the first warms caches and makes the optimizer's state
                seconds[name].append(time.process_time() - started)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast))


def benchmark_sampling(folder: Path, rows: Dataset, arguments: argparse.Namespace) -> None:
    reader = load_reader(folder / CHECKPOINT)
    row = rows[0]
    inputs = reader.prepare([reader.processor.build_messages(row["images"], row["prompt"][-1]["content"])])
    config = sampling_config(reader, max_new_tokens=arguments.new_tokens)
    config.min_new_tokens = arguments.new_tokens
    model = reader.model

    def generate(**options: Any) -> torch.Tensor:
        own = GenerationConfig.from_dict({**config.to_dict(), **options})
        with torch.inference_mode():
            return model.generate(**inputs, generation_config=own)

    @torch.inference_mode()
    def encode() -> None:
        model.model.embed_inputs(
            **{name: value for name, value in inputs.items() if name != "attention_mask"}
        )

    cells: dict[str, Callable[[], Any]] = {
        "sample_candidates": lambda: sample_candidates(reader, inputs, NUM_CANDIDATES, config),
        "8 calls of generate": lambda: [generate() for _ in range(NUM_CANDIDATES)],
        "num_return_sequences=8": lambda: generate(num_return_sequences=NUM_CANDIDATES),
        "vision, once": encode,
    }
    found = in_turns(cells, arguments.rounds)
    own, calls, vision = (
        found[name] for name in ("sample_candidates", "8 calls of generate", "vision, once")
    )
    saved = (NUM_CANDIDATES - 1) * statistics.median(vision)
    ceiling = statistics.median(calls) / (statistics.median(calls) - saved)
    print(f"\n{NUM_CANDIDATES} candidates of {arguments.new_tokens} tokens, one study, CPU seconds")
    for name, seconds in found.items():
        print(f"{name:24}{statistics.median(seconds):8.3f}{ratio(seconds, own):8.2f} x ours")
    share = NUM_CANDIDATES * statistics.median(vision) / statistics.median(calls)
    print(
        f"vision is {share:.0%} of eight calls; leaving out seven passes alone would be {ceiling:.2f} times as fast"
    )


class HandedReference(DPOTrainer):
    """TRL's trainer, which refuses to precompute for volumes, with numbers for the reference from elsewhere."""

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        self.precompute_ref_logps = True
        sums = {name: torch.zeros(len(inputs["input_ids"]) // 2) for name in LOG_PROB_COLUMNS}
        return super()._compute_loss(model, {**inputs, **sums}, return_outputs)


class Step:
    """A trainer of its own, and the step that it makes."""

    def __init__(
        self,
        folder: Path,
        rows: Dataset,
        batch: int,
        stage: str,
        made: type[DPOTrainer],
        precompute: bool = False,
    ):
        model = AutoModelForImageTextToText.from_pretrained(folder / CHECKPOINT)
        freeze(model, STAGES[stage])
        fields = {
            "max_length": 1024, "per_device_train_batch_size": batch, "use_cpu": True, "bf16": False,
            "report_to": "none", "gradient_checkpointing": False, "precompute_ref_log_probs": precompute,
        }  # fmt: skip
        own = {"stage": STAGES[stage]} if made is StageDPOTrainer else {}
        arguments = DPOConfig(str(folder / "out"), **fields)
        processor = AutoProcessor.from_pretrained(folder / CHECKPOINT)
        self.trainer = made(
            model=model, args=arguments, train_dataset=rows, processing_class=processor, **own
        )
        self.trainer.model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)
        self.rows = [self.trainer.train_dataset[i % len(rows)] for i in range(batch)]

    def collate(self) -> dict[str, Any]:
        return self.trainer.data_collator([dict(row) for row in self.rows])

    def __call__(self) -> None:
        self.trainer.compute_loss(self.trainer.model, self.collate()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def encodes(self, copies: int, *, learns: bool, from_patches: bool = False) -> Callable[[], None]:
        """Return a pass of vision over `copies` of the batch's volumes.

        Args:
            learns (`bool`): With a backward pass through what is trained, as of a policy.
            from_patches (`bool`): The tokenizer alone, on what the tower made before.
        """
        model, batch = self.trainer.model.model, self.collate()
        num_own = len(self.rows)
        ids = torch.cat([batch["input_ids"][:num_own]] * copies)
        pixels, mask = (
            torch.cat([batch[name][:num_own]] * copies) for name in ("pixel_values", "pixel_attention_mask")
        )
        patches = None
        if from_patches:
            with torch.no_grad():
                patches = model.vision_tower(pixels, mask).last_hidden_state
        question = model.find_questions(ids, len(ids))

        def encode() -> None:
            with torch.set_grad_enabled(learns):
                features = model.get_image_features(pixels, mask, *question, patches)
                if learns:
                    features.sum().backward()

        return encode


def benchmark_dpo(folder: Path, rows: Dataset, arguments: argparse.Namespace) -> None:
    for stage in ("full", "tokenizer"):
        stock, handed = (
            Step(folder, rows, arguments.batch, stage, made) for made in (DPOTrainer, HandedReference)
        )
        cells: dict[str, Callable[[], Any]] = {
            "stock in step": stock,
            "ours in step": Step(folder, rows, arguments.batch, stage, StageDPOTrainer),
            "stock handed": handed,
            "ours precomputed": Step(folder, rows, arguments.batch, stage, StageDPOTrainer, precompute=True),
            "policy twice": handed.encodes(2, learns=True),
            "policy once": handed.encodes(1, learns=True),
            "reference twice": handed.encodes(2, learns=False),
            "reference once": handed.encodes(1, learns=False, from_patches=stage == "tokenizer"),
        }
        found = in_turns(cells, arguments.rounds)
        seconds = {name: statistics.median(values) for name, values in found.items()}
        policy = seconds["policy twice"] - seconds["policy once"]
        reference = seconds["reference twice"] - seconds["reference once"]
        share = (seconds["policy twice"] + seconds["reference twice"]) / seconds["stock in step"]
        print(f"\nDPO, stage {stage}, CPU seconds; vision is {share:.0%} of the stock step")
        print(
            f"{'reference':14}{'stock':>8}{'ours':>8}{'faster':>8}{'ceiling':>9}{'of it':>7}{'than stock in step':>20}"
        )
        for name, base, own, saved in (
            ("in step", "stock in step", "ours in step", policy + reference),
            ("precomputed", "stock handed", "ours precomputed", policy),
        ):
            faster, ceiling = ratio(found[base], found[own]), seconds[base] / (seconds[base] - saved)
            print(
                f"{name:14}{seconds[base]:8.3f}{seconds[own]:8.3f}{faster:8.2f}{ceiling:9.2f}{faster / ceiling:7.0%}"
                f"{ratio(found['stock in step'], found[own]):20.2f}"
            )


if __name__ == "__main__":
    main()
