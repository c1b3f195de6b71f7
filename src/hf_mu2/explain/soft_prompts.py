"""What the soft prompts of a volume are to the language model: their nearest words, their size, who looks at them.

The analyses of https://huggingface.co/papers/2312.01504: soft visual prompts against the embeddings of text.

Reads: a checkpoint, a volume, a question, and an answer or none.
Writes: `soft_prompts.json`, `.md` and `.png`, through `SoftPrompts.save`.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hf_mu2.files import replace_file
from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.inference import Reader, to_json

from .forced import ForcedAnswer, force_answer

NUM_NEAREST = 5


@dataclass(frozen=True)
class Spread:
    """A set of vectors in a few numbers.

    Args:
        norm_mean, norm_sd (`float`): Of their Euclidean norms.
        distance (`float`): Mean cosine distance of two different vectors, 0 where all point one way.
        effective_rank (`float`): exp of the entropy of the normalised singular values of the centred vectors (Roy and
            Vetterli 2007): how many directions they use.
    """

    count: int
    norm_mean: float
    norm_sd: float
    distance: float
    effective_rank: float


@dataclass(frozen=True, eq=False)
class SoftPrompts:
    """The soft prompts of one volume under one question.

    Args:
        nearest (`list`): Per soft prompt, the nearest tokens of the vocabulary with their cosine, best first.
        norms (`np.ndarray` of shape `(queries,)`): Euclidean norms of the soft prompts.
        prompts, words (`Spread`): Of the soft prompts, and of the embeddings of the answer's different tokens.
        word_norms (`np.ndarray` of shape `(vocabulary,)`): Norms of all text embeddings.
        attention (`np.ndarray` of shape `(layers, heads)`): Share of attention that goes to the soft prompts, the mean
            over the positions that generate the answer.
        even_share (`float`): That share, were attention even over all a position sees.
    """

    notice: str
    nearest: list[list[tuple[str, float]]]
    norms: np.ndarray = field(repr=False)
    word_norms: np.ndarray = field(repr=False)
    prompts: Spread
    words: Spread
    attention: np.ndarray = field(repr=False)
    even_share: float

    def to_dict(self) -> dict[str, Any]:
        """Lay out the machine-readable form, the notice first."""
        return {
            "notice": self.notice,
            "soft_prompts": vars(self.prompts),
            "answer_tokens": vars(self.words),
            "vocabulary_norm": {"mean": float(self.word_norms.mean()), "sd": float(self.word_norms.std())},
            "attention_on_soft_prompts": self.attention.tolist(),
            "attention_if_even": self.even_share,
            "nearest_tokens": [
                {"norm": float(norm), "tokens": [list(pair) for pair in pairs]}
                for norm, pairs in zip(self.norms, self.nearest)
            ],
        }

    def to_markdown(self) -> str:
        """Write the tables."""
        lines = [f"# Soft prompts\n\n{self.notice}\n", "## Norm and spread\n"]
        lines.append("| vectors | count | norm | sd of norms | cosine distance | effective rank |")
        lines.append("|---|---|---|---|---|---|")
        for name, spread in (("soft prompts", self.prompts), ("tokens of the answer", self.words)):
            lines.append(
                f"| {name} | {spread.count} | {spread.norm_mean:.3f} | {spread.norm_sd:.3f} | {spread.distance:.3f} | "
                f"{spread.effective_rank:.1f} |"
            )
        lines.append(
            f"\nThe whole vocabulary has norms of {self.word_norms.mean():.3f} +- {self.word_norms.std():.3f}.\n"
        )
        heads = self.attention.shape[1]
        lines.append("## Share of attention on the soft prompts\n")
        lines.append(f"Even attention would give {self.even_share:.3f}.\n")
        lines.append("| layer | " + " | ".join(f"head {head}" for head in range(heads)) + " | mean |")
        lines.append("|---|" + "---|" * (heads + 1))
        for layer, shares in enumerate(self.attention):
            cells = " | ".join(f"{share:.3f}" for share in shares)
            lines.append(f"| {layer} | {cells} | {shares.mean():.3f} |")
        lines.append("\n## Nearest tokens\n")
        lines.append("| soft prompt | norm | nearest tokens (cosine) |")
        lines.append("|---|---|---|")
        for index, (norm, pairs) in enumerate(zip(self.norms, self.nearest)):
            words = ", ".join(f"`{word.replace('|', '/')}` {cosine:.2f}" for word, cosine in pairs)
            lines.append(f"| {index} | {norm:.3f} | {words} |")
        return "\n".join(lines) + "\n"

    def draw(self) -> bytes:
        """Plot norms and attention as a PNG.

        Raises:
            ImportError: if matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('Plots need matplotlib: pip install "hf_mu2[report]".') from error

        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        bins = np.histogram_bin_edges(np.concatenate([self.norms, self.word_norms]), 40)
        for norms, name in ((self.word_norms, "vocabulary"), (self.norms, "soft prompts")):
            left.hist(norms, bins, weights=np.full(len(norms), 1 / len(norms)), alpha=0.6, label=name)
        left.set(xlabel="norm", ylabel="share", title="Norms")
        left.legend()
        image = right.imshow(self.attention, vmin=0, vmax=1, aspect="auto", cmap="magma")
        right.set(
            xlabel="head", ylabel="layer", title=f"Attention on soft prompts (even: {self.even_share:.2f})"
        )
        right.set(xticks=range(self.attention.shape[1]), yticks=range(self.attention.shape[0]))
        figure.colorbar(image, ax=right)
        figure.suptitle(self.notice, fontsize=8)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110)
        return picture.getvalue()

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write the record, the tables and the plot into a folder."""
        folder = Path(folder)
        files = {name: folder / f"soft_prompts.{name}" for name in ("png", "md", "json")}
        replace_file(files["png"], self.draw())
        replace_file(files["md"], self.to_markdown())
        replace_file(files["json"], to_json(self.to_dict()))
        return files


def analyse_soft_prompts(
    reader: Reader,
    volume: Volume,
    question: str,
    answer: str | None = None,
    *,
    history: Sequence[Mapping[str, Any]] | None = None,
    max_new_tokens: int = 512,
) -> SoftPrompts:
    """Analyse the soft prompts of a volume under a question; arguments as in [`explain_report`].

    The language model runs once with attention of all layers in memory: layers x heads x length^2 numbers.
    """
    return analyse_forced(
        force_answer(reader, volume, question, answer, history=history, max_new_tokens=max_new_tokens)
    )


@torch.no_grad()
def analyse_forced(forced: ForcedAnswer) -> SoftPrompts:
    """Analyse the soft prompts of an answer that is at hand."""
    model, tokenizer = forced.reader.model, forced.reader.processor.tokenizer
    soft_prompts = forced.soft_prompts(forced.vision_hidden_states)[0].float()
    words = model.get_input_embeddings().weight.float()[: len(tokenizer)]
    cosines = F.normalize(soft_prompts, dim=-1) @ F.normalize(words, dim=-1).T
    best = cosines.topk(min(NUM_NEAREST, len(words)), dim=-1)
    nearest = [
        [(tokenizer.decode([token]), round(cosine, 4)) for token, cosine in zip(tokens, values)]
        for tokens, values in zip(best.indices.tolist(), best.values.tolist())
    ]
    attention, even_share = _attention_shares(forced)
    answer_ids = forced.inputs["input_ids"][0, -forced.num_answer_tokens :].unique()
    return SoftPrompts(
        forced.reader.notice,
        nearest,
        soft_prompts.norm(dim=-1).cpu().numpy(),
        words.norm(dim=-1).cpu().numpy(),
        describe_spread(soft_prompts),
        describe_spread(words[answer_ids]),
        attention,
        even_share,
    )


def _attention_shares(forced: ForcedAnswer) -> tuple[np.ndarray, float]:
    """Return the share of attention on the soft prompts per layer and head, and what even attention would give."""
    is_image = forced.is_image[0]
    shares = torch.stack([layer[..., is_image].sum(-1).mean(-1) for layer in forced.answer_attention()])
    seen = len(is_image) - torch.arange(forced.num_answer_tokens, 0, -1, device=is_image.device)
    return shares.cpu().numpy(), float((is_image.sum() / seen).mean())


def describe_spread(vectors: torch.Tensor) -> Spread:
    """Describe vectors `(count, width)` in a few numbers."""
    norms, directions = vectors.norm(dim=-1), F.normalize(vectors, dim=-1)
    count = len(vectors)
    others = max(count * (count - 1), 1)
    cosine = float((directions.sum(0).square().sum() - count) / others)
    singular = torch.linalg.svdvals(vectors - vectors.mean(dim=0))
    weights = singular / singular.sum().clamp(min=1e-12)
    rank = float(torch.special.entr(weights).sum().exp())
    return Spread(count, float(norms.mean()), float(norms.std(correction=0)), 1 - cosine, rank)
