"""Studies per second and peak memory of a training step at preset `tiny`: forms of the tokenizer, sources of volumes.

    python benchmarks/train_step.py [--studies 8] [--batch 4] [--rounds 8] [--threads 1]

A step is what a trainer does: processor, forward, backward, AdamW. Three forms of the tokenizer, all else equal:

    ours         the default form
    published    the published form in this package's code: refiner, pooling, 1-D bias and shared queries as published
    loop         the published form as its authors wrote it: a Python loop over slots, all scores in memory; without the
                 mask of padded slabs, which it does not know

in stage `full` from prepared volumes, and in stage `tokenizer` (tower and language model frozen) from raw volumes,
prepared ones and cached features in fp32. All cells train on the same rows and take turns, a step each per round.
Studies per second are those of the median step, ratios the median of the ratios within a round, so that a busy machine
counts alike; the last losses tell that the work was the same. Memory: the peak of the resident set over two steps less
what it was before the first, in a process per cell. Linux only.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, List, Nifti, load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "benchmarks")]

from tokenizer import published  # noqa: E402

from hf_mu2.data.phantom import write_phantoms  # noqa: E402
from hf_mu2.data.prepare import PreparedStudies, prepare  # noqa: E402
from hf_mu2.hub.assemble import assemble  # noqa: E402
from hf_mu2.model.configuration_mu2 import PRESETS  # noqa: E402
from hf_mu2.training.features import cache_features  # noqa: E402
from hf_mu2.training.stages import STAGES, freeze  # noqa: E402

FORMS = ("ours", "published", "loop")
CELLS = [("full", form, "prepared") for form in FORMS]
CELLS += [("tokenizer", form, source) for source in ("raw", "prepared", "features") for form in FORMS]
# What makes the published form, but for its sizes.
PUBLISHED = {
    name: value
    for name, value in PRESETS["official"]["tokenizer_config"].items()
    if name not in ("hidden_size", "projection")
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"studies": 8, "batch": 4, "rounds": 8, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cell", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.cell is not None:
        print(measure_memory(arguments, CELLS[arguments.cell]))
        return
    with tempfile.TemporaryDirectory() as name:
        arguments.folder = Path(name)
        write_data(arguments)
        run(arguments)


def write_data(arguments: argparse.Namespace) -> None:
    """Write checkpoints of both forms, studies, and what is prepared and cached of them."""
    folder = arguments.folder
    for form, fields in (("ours", {}), ("published", PUBLISHED)):
        assemble(
            "embedded", folder / form, preset="tiny", vision_tower="embedded", tokenizer_config=dict(fields)
        )
    write_phantoms(folder / "raw", arguments.studies, spacing=(2.5, 1.5, 1.5))
    model, processor = load(folder / "ours")
    prepare(open_rows(folder, "raw"), folder / "prepared", processor.image_processor)
    cached = cache_features(
        model, processor, open_rows(folder, "prepared"), folder / "features", dtype=torch.float32
    )
    cached.to_json(folder / "features.jsonl")


def open_rows(folder: Path, source: str) -> Dataset:
    if source == "features":
        return Dataset.from_json(str(folder / "features.jsonl"))
    if source == "prepared":
        return Dataset.from_list(list(PreparedStudies(folder / "prepared")))
    rows = load_dataset(str(folder / "raw"), split="train")
    return rows.cast_column("images", List(Nifti(decode=False)))


def load(path: Path) -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)


class Cell:
    """A model of its own, its rows, and the step that trains it."""

    def __init__(self, arguments: argparse.Namespace, stage: str, form: str, source: str):
        self.model, processor = load(arguments.folder / ("ours" if form == "ours" else "published"))
        freeze(self.model.train(), STAGES[stage])
        if form == "loop":
            as_published(self.model.model.mu2_tokenizer)
        self.rows = open_rows(arguments.folder, source)
        self.batch, self.number = arguments.batch, 0
        self.collate = DataCollatorForVisionLanguageModeling(
            processor, max_length=1024, completion_only_loss=True
        )
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.seconds: list[float] = []
        self.loss = 0.0

    def step(self) -> None:
        started = time.perf_counter()
        rows = [self.rows[(self.number + i) % len(self.rows)] for i in range(self.batch)]
        loss = self.model(**self.collate(rows)).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss = loss.item()
        self.number += self.batch
        self.seconds.append(time.perf_counter() - started)


def as_published(tokenizer: torch.nn.Module) -> None:
    """Let a tokenizer of the published form compute as its authors wrote it."""

    def aggregate(
        states: torch.Tensor, question: torch.Tensor, slab_mask: torch.Tensor, question_mask: torch.Tensor
    ) -> torch.Tensor:
        question = tokenizer.question_projector(tokenizer.question_norm(question))
        words = [
            row[is_word] for row, is_word in zip(question, question_mask)
        ]  # it is given the question alone
        question = torch.nn.utils.rnn.pad_sequence(words, batch_first=True)
        return published(tokenizer, tokenizer.input_projector(states), question, is_loop=True)

    tokenizer.aggregate = aggregate


def run(arguments: argparse.Namespace) -> None:
    cells = {cell: Cell(arguments, *cell) for cell in CELLS}
    for cell in cells.values():  # warm caches, and make the optimizer's state
        cell.step()
        cell.seconds.clear()
    for _ in range(arguments.rounds):
        for cell in cells.values():
            cell.step()
    rates = {key: arguments.batch / statistics.median(cell.seconds) for key, cell in cells.items()}
    peaks = {}
    for number, key in enumerate(CELLS):
        own = ["--folder", str(arguments.folder), "--cell", str(number)]
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], *own], check=True, capture_output=True
        )
        peaks[key] = float(done.stdout.split()[-1])

    some = cells["full", "ours", "prepared"]
    batch = some.collate([some.rows[i] for i in range(arguments.batch)])
    print(
        f"pixel_values {tuple(batch['pixel_values'].shape)}, {batch['input_ids'].shape[1]} tokens, fp32, "
        f"threads {arguments.threads}, {arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}"
    )
    ratios = f"{'/ loop':>8}{'/ prepared':>12}"
    print(f"{'stage':11}{'source':10}{'form':11}{'studies/s':>10}{ratios}{'MB':>8}{ratios}{'loss':>10}")
    for stage, form, source in CELLS:
        key, loop, prepared = (stage, form, source), (stage, "loop", source), (stage, form, "prepared")
        print(
            f"{stage:11}{source:10}{form:11}{rates[key]:10.2f}{faster(cells[key], cells[loop]):8.2f}"
            f"{faster(cells[key], cells[prepared]):12.2f}{peaks[key]:8.0f}{peaks[key] / peaks[loop]:8.2f}"
            f"{peaks[key] / peaks[prepared]:12.2f}{cells[key].loss:10.5f}"
        )
    print(f"loss: after {1 + arguments.rounds} steps on the same rows")
    print("GPU: not run" if not torch.cuda.is_available() else "GPU: present, not used")


def faster(cell: Cell, other: Cell) -> float:
    """Return how many times as fast a cell is as another, in the median round."""
    return statistics.median(theirs / own for own, theirs in zip(cell.seconds, other.seconds))


def measure_memory(arguments: argparse.Namespace, cell: tuple[str, str, str]) -> float:
    """Return the peak of the resident set over two steps, less what it was before the first, in MB."""
    made = Cell(arguments, *cell)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    for _ in range(2):
        made.step()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


if __name__ == "__main__":
    main()
