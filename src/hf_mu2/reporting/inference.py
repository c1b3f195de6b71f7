"""Load a checkpoint once and let it answer conversations about volumes: what report, predict and embed share.

Reads: a checkpoint folder or Hub id, conversations with loaded volumes.
Writes: nothing.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import cached_file, logging

import hf_mu2
from hf_mu2.model.volume_mu2 import Volume, load_volume

DEMO_MODEL = "mu2-phantom"


@dataclass(frozen=True)
class Answer:
    """What the model generated for one conversation, why it stopped (`"eos"` or `"length"`), and its length.

    `num_tokens` counts the token that ended it.
    """

    text: str
    finish_reason: str
    num_tokens: int


@dataclass(frozen=True)
class Reader:
    """A loaded checkpoint.

    Args:
        name (`str`): Free of paths.
        digest (`str`): Tells the checkpoint from its namesakes.
        revision (`str`): The commit it was loaded from, of a folder the digest.
        folder (`Path`): Where its files lie, for a Hub id in the cache.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    name: str
    digest: str
    revision: str
    folder: Path

    @property
    def notice(self) -> str:
        return self.model.config.notice

    @property
    def caveats(self) -> list[str]:
        """State what to know of every answer of this checkpoint, whatever the volume."""
        if "conversion" not in self.model.config.to_dict():
            return []
        return [
            f"`{self.name}` was converted from a published checkpoint, whose weights never saw the chat template used "
            "here: unless it was trained further, its own reports are better. For those, prompt it with "
            "`hf_mu2.hub.convert.official_inputs`, see `The published prompt` in docs/convert.md."
        ]

    def load_volume(
        self,
        source: Any,
        *,
        spacing: Sequence[float] | None = None,
        orientation: str | None = None,
        series: str | None = None,
        channel: int | None = None,
    ) -> Volume:
        """Load a volume the way this checkpoint's preprocessing needs it: the published one reads scanner padding."""
        return load_volume(
            source,
            spacing=spacing,
            orientation=orientation,
            series=series,
            channel=channel,
            clamp=self.processor.image_processor.mode != "official",
        )

    def prepare(self, conversations: list[list[dict[str, Any]]]) -> BatchFeature:
        """Turn conversations with loaded volumes into a left-padded batch on the model's device."""
        inputs = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def answer(self, inputs: BatchFeature, max_new_tokens: int) -> list[Answer]:
        """Generate greedily for a prepared batch."""
        return generate_greedily(self.model, self.processor, inputs, max_new_tokens)


@torch.inference_mode()
def generate_greedily(
    model: PreTrainedModel,
    decoder: ProcessorMixin | PreTrainedTokenizerBase,
    inputs: Mapping[str, torch.Tensor],
    max_new_tokens: int,
) -> list[Answer]:
    """Generate for a left-padded batch; `decoder` turns what is new into text."""
    generated = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
    return read_answers(model, decoder, generated[:, inputs["input_ids"].shape[1] :])


def read_answers(
    model: PreTrainedModel, decoder: ProcessorMixin | PreTrainedTokenizerBase, generated: torch.Tensor
) -> list[Answer]:
    """Read generated token ids (answers, longest answer), padded behind the token that ends each."""
    eos = torch.tensor(model.generation_config.eos_token_id, device=generated.device).reshape(-1)
    is_end = torch.isin(generated, eos)
    stopped = is_end.any(dim=1)
    lengths = torch.where(stopped, is_end.int().argmax(dim=1) + 1, generated.shape[1])
    texts = decoder.batch_decode(generated, skip_special_tokens=True)
    return [
        Answer(text.strip(), "eos" if is_stopped else "length", length)
        for text, is_stopped, length in zip(texts, stopped.tolist(), lengths.tolist())
    ]


def process_state() -> PartialState:
    """Join the processes that accelerate or torchrun started; accelerate joins those on a CPU only when told so."""
    return PartialState(cpu=not torch.accelerator.is_available())


def load_reader(model: str | Path | None = None, device: torch.device | str | None = None) -> Reader:
    """Load a checkpoint for inference, float32 on CPU and bfloat16 on an accelerator.

    Args:
        model (`str` or `Path`, *optional*): Checkpoint folder or Hub id; by default the embedded demo checkpoint.
        device (`torch.device` or `str`, *optional*): Where to run; by default the first accelerator, else the CPU.
    """
    is_demo = model is None or str(model) == DEMO_MODEL
    folder = hf_mu2.embedded_checkpoint() if model is None or is_demo else Path(model)
    source = str(folder if folder.exists() or is_demo else model)  # what is no folder may be a Hub id
    device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    processor = AutoProcessor.from_pretrained(source)
    loaded = AutoModelForImageTextToText.from_pretrained(
        source, dtype=torch.float32 if device.type == "cpu" else torch.bfloat16
    )
    name = folder.resolve().name if folder.exists() else source
    files = folder if folder.exists() else Path(cached_file(source, "config.json")).parent
    file_digest = _digest_checkpoint(files)
    revision = file_digest if folder.exists() else files.name  # the Hub's cache names folders by commit
    return Reader(loaded.eval().to(device), processor, name, file_digest, revision, files)


def digest(value: Any) -> str:
    """Hash what JSON can hold."""
    return hashlib.blake2b(json.dumps(value, ensure_ascii=False).encode(), digest_size=8).hexdigest()


def to_json(value: dict[str, Any]) -> str:
    """Serialise a record for people: indented, keys in the given order, numpy scalars as numbers."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=lambda scalar: scalar.item()) + "\n"


def _digest_checkpoint(folder: Path) -> str:
    """Hash a checkpoint: its settings by content, its weights, which may be large, by size and time of writing."""
    facts: list[Any] = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja"):
            facts.append([path.name, path.read_text(encoding="utf-8")])
        elif path.suffix in (".safetensors", ".bin"):
            facts.append([path.name, path.stat().st_size, path.stat().st_mtime_ns])
    return digest(facts)
