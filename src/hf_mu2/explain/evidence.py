"""What of a volume an answer rests on: heat maps per question and per sentence, on the volume's own grid.

Two kinds of map:

- of a **sentence**: what each patch adds to its log-likelihood, by integrated gradients from the language model down to
  the vision tower's output. Patches with a negative part speak against the sentence. This follows both what the
  tokenizer passes on and what it makes the tokenizer look at; `path_maps` follows the first alone, exactly, and finds
  lesions less often (docs/evidence.md).
- of the **question**: for each of its tokens, attention of the queries to that token times the exact path of values
  (`value_path.py`) from these queries to the patches, minus the same with the path that an empty question leads to
  (figure 4 of https://huggingface.co/papers/2507.00316, which gives no formula).

Reads: a checkpoint, a volume, a question, and an answer or none.
Writes: heat maps as NIfTI, overlays as PNG, key slices and figures as JSON, through `Explanation.save`.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from hf_mu2.data.nifti import save_nifti
from hf_mu2.files import replace_file
from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.inference import Reader, to_json

from .blocks import BlockGrid, lay_blocks
from .evidence_figure import draw_planes, draw_slices
from .faithfulness import Faithfulness, check_faithfulness
from .forced import ForcedAnswer, force_answer
from .value_path import ValuePath, check_traceable, trace_values

if TYPE_CHECKING:
    import nibabel as nib

NUM_KEY_SLICES = 5


@dataclass(frozen=True, eq=False)
class SentenceEvidence:
    """What one sentence of the answer rests on.

    Args:
        text (`str`), span (`tuple[int, int]`): The sentence, and where it stands in the answer.
        log_likelihood (`float`): In nats, given the volume, the question and the answer before it.
        share (`float`): Its part of what the whole answer draws from the volume, 0 to 1.
        blocks (`np.ndarray` of shape `grid.shape`): What each patch adds to the log-likelihood, in nats.
        grid (`BlockGrid`): Where the patches lie.
        faithfulness (`Faithfulness`, *optional*): Whether hiding what the map points at matters.
    """

    text: str
    span: tuple[int, int]
    log_likelihood: float
    share: float
    blocks: np.ndarray = field(repr=False)
    grid: BlockGrid = field(repr=False)
    faithfulness: Faithfulness | None = None

    @property
    def heat(self) -> np.ndarray:
        """The map on the grid of the volume (depth, height, width), float32, computed at each access."""
        return self.grid.to_volume(self.blocks)

    @property
    def key_slices(self) -> list[int]:
        """Axial slices of the volume, most evidence first, at least a patch apart."""
        return rank_slices(self.grid, self.blocks)

    def describe(self) -> str:
        """Say in one line what the map is worth."""
        facts = f"{self.share:.0%} of what the answer draws from the volume"
        return facts if self.faithfulness is None else f"{facts}; {self.faithfulness.describe()}"

    def to_dict(self) -> dict[str, Any]:
        """Lay out the machine-readable form."""
        return {
            "text": self.text,
            "span": list(self.span),
            "log_likelihood": round(self.log_likelihood, 4),
            "share": round(self.share, 4),
            "key_slices": self.key_slices,
            "faithfulness": None if self.faithfulness is None else self.faithfulness.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Explanation:
    """What an answer rests on.

    Args:
        answer (`str`): The answer, as given or as generated.
        sentences (`list[SentenceEvidence]`): Its sentences in reading order.
        question_tokens (`list[str]`): The tokens of the question.
        question_blocks (`np.ndarray` of shape `(question tokens, *grid.shape)`): How much more the queries that attend
            to a token read of each patch under this question than under none. Without a unit; sums to 0 per token.
        faithfulness (`Faithfulness`, *optional*): That of the map of the whole answer.
    """

    notice: str
    question: str
    answer: str
    sentences: list[SentenceEvidence]
    volume: Volume = field(repr=False)
    grid: BlockGrid = field(repr=False)
    question_tokens: list[str] = field(repr=False)
    question_blocks: np.ndarray = field(repr=False)
    faithfulness: Faithfulness | None = None

    @property
    def blocks(self) -> np.ndarray:
        """What each patch adds to the log-likelihood of the answer: the sum over its sentences."""
        return np.sum([sentence.blocks for sentence in self.sentences], axis=0)

    @property
    def heat(self) -> np.ndarray:
        """The map of the whole answer on the grid of the volume (depth, height, width), float32."""
        return self.grid.to_volume(self.blocks)

    @property
    def question_heat(self) -> np.ndarray:
        """The map of the whole question on the grid of the volume (depth, height, width), float32."""
        return self.grid.to_volume(self.question_blocks.sum(axis=0))

    @property
    def key_slices(self) -> list[int]:
        """Axial slices of the volume, most evidence first, at least a patch apart."""
        return rank_slices(self.grid, self.blocks)

    def to_dict(self) -> dict[str, Any]:
        """Lay out the machine-readable form, the notice first; the question stays out, it may name a patient."""
        return {
            "notice": self.notice,
            "answer": self.answer,
            "key_slices": self.key_slices,
            "faithfulness": None if self.faithfulness is None else self.faithfulness.to_dict(),
            "sentences": [sentence.to_dict() for sentence in self.sentences],
        }

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write all of it into a folder; `evidence.json` comes last and marks it complete.

        `answer`, `question` and one `sentence_NN` per sentence, each as `.nii.gz` (shape and affine of the file that
        the volume came from; 16 bits, in nats) and as `.png` through its peak, and `key_slices.png`.
        """
        folder = Path(folder)
        maps = [("answer", self.blocks, ["The whole answer", _line(self.faithfulness)])]
        maps += [
            ("question", self.question_blocks.sum(axis=0), ["What the question made the tokenizer read"])
        ]
        maps += [
            (f"sentence_{number:02d}", sentence.blocks, [sentence.text, sentence.describe()])
            for number, sentence in enumerate(self.sentences, 1)
        ]
        files = {}
        for name, blocks, lines in maps:
            heat = self.grid.to_volume(blocks)
            files[f"{name}.nii.gz"] = folder / f"{name}.nii.gz"
            save_nifti(as_nifti(heat, self.volume), files[f"{name}.nii.gz"])
            files[f"{name}.png"] = folder / f"{name}.png"
            _save_png(draw_planes(self.volume, heat, self.notice, lines), files[f"{name}.png"])
        files["key_slices.png"] = folder / "key_slices.png"
        slices = draw_slices(
            self.volume, self.heat, self.key_slices, self.notice, ["Key slices, most evidence first"]
        )
        _save_png(slices, files["key_slices.png"])
        files["evidence.json"] = folder / "evidence.json"
        replace_file(files["evidence.json"], to_json(self.to_dict()))
        return files


def check_explainable(reader: Reader) -> None:
    """Refuse a checkpoint whose evidence cannot be traced.

    Raises:
        ValueError: if it is no mu2 model, or its connector reads no question.
    """
    config = reader.model.config
    if not isinstance(config, Mu2Config):
        raise ValueError(
            f"What a sentence rests on is traced through mu2's tokenizer, `{reader.name}` is a {config.model_type} "
            "model. Use a mu2 checkpoint."
        )
    check_traceable(reader.model.config.tokenizer_config)


def explain_report(
    reader: Reader,
    volume: Volume,
    question: str,
    answer: str | None = None,
    *,
    history: Sequence[Mapping[str, Any]] | None = None,
    max_new_tokens: int = 512,
    num_draws: int = 19,
) -> Explanation:
    """Say what of a volume an answer rests on.

    Args:
        reader (`Reader`): The checkpoint.
        volume (`Volume`): Loaded by `reader.load_volume`.
        question (`str`): What was asked.
        answer (`str`, *optional*): What was answered, by anyone; generated greedily if absent.
        history (`Sequence[Mapping]`, *optional*): Earlier turns, `{"role", "content"}` with text alone.
        num_draws (`int`): Random sets of blocks for the faithfulness check, which takes most of the time: at least 9,
            or 0 to leave it out.

    Raises:
        ValueError: if the checkpoint reads no question, the answer is empty, `history` holds volumes, or the draws are
            too few.
    """
    check_explainable(reader)
    forced = force_answer(reader, volume, question, answer, history=history, max_new_tokens=max_new_tokens)
    return explain_forced(forced, num_draws=num_draws)


def explain_forced(forced: ForcedAnswer, *, num_draws: int = 19) -> Explanation:
    """Explain an answer that is at hand; see [`explain_report`]."""
    reader = forced.reader
    check_traceable(reader.model.config.tokenizer_config)
    grid = lay_blocks(
        forced.volume, reader.processor.image_processor, reader.model.config.vision_config.patch_size
    )
    likelihoods = forced.sentence_likelihoods(forced.vision_hidden_states)[0]
    maps = as_blocks(forced.integrated_gradients(), grid)
    checks: list[Faithfulness | None] = [None] * (len(maps) + 1)
    if num_draws:
        checks = [*check_faithfulness(forced, grid, maps, num_draws=num_draws)]
    weights = np.abs(maps).sum(axis=(1, 2, 3))
    sentences = [
        SentenceEvidence(forced.answer[slice(*span)], span, likelihood, float(share), blocks, grid, checked)
        for span, likelihood, share, blocks, checked in zip(
            forced.sentences, likelihoods.tolist(), weights / max(weights.sum(), 1e-12), maps, checks
        )
    ]
    path, _ = trace_forced(forced)
    blind, _ = trace_forced(forced, with_question=False)
    asks = path.text_attention.T
    ids, mask = forced.question_ids
    return Explanation(
        reader.notice,
        forced.question,
        forced.answer,
        sentences,
        forced.volume,
        grid,
        [reader.processor.tokenizer.decode([token]) for token in ids[mask].tolist()],
        as_blocks(path.patches(path.push(asks) - blind.push(asks)), grid),
        checks[-1],
    )


def path_maps(forced: ForcedAnswer, grid: BlockGrid) -> np.ndarray:
    """Split <gradient, V'> of each sentence over the blocks, along the exact path of values.

    Gradient x input (https://huggingface.co/papers/1704.02685) at V', the weights of the tokenizer held. The projector
    begins with a LayerNorm, so the parts of a map sum to about 0.

    Returns:
        `np.ndarray` of shape `(sentences, *grid.shape)`, in nats.
    """
    path, visual_tokens = trace_forced(forced)
    return as_blocks(path.patches(path.contributions(forced.sentence_gradients(visual_tokens))), grid)


def trace_forced(forced: ForcedAnswer, *, with_question: bool = True) -> tuple[ValuePath, torch.Tensor]:
    """Trace the values of an answer's volume, under its question or under none: the path, and V'."""
    model = forced.reader.model.model
    ids, mask = forced.question_ids
    return trace_values(
        model.mu2_tokenizer,
        forced.vision_hidden_states,
        model.get_input_embeddings()(ids),
        forced.slab_mask,
        mask if with_question else torch.zeros_like(mask),
    )


def as_blocks(patches: torch.Tensor, grid: BlockGrid) -> np.ndarray:
    """Lay patches `(..., frames, patches)` out as the blocks of a volume, padding dropped: `(..., *grid.shape)`."""
    flat = patches.reshape(*patches.shape[:-2], -1, *grid.shape[1:])
    return flat[..., : grid.shape[0], :, :].cpu().numpy()


def as_nifti(heat: np.ndarray, volume: Volume) -> "nib.Nifti1Image":
    """Make a NIfTI image of a map on the grid of a volume, in the orientation of the file it came from.

    Stored in 16 bits with a scale: exact to 1/32,000 of the largest value.
    """
    import nibabel as nib
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    image = nib.Nifti1Image(heat.transpose(2, 1, 0), volume.affine)
    image.header.set_xyzt_units("mm", "sec")
    on_disk = axcodes2ornt(tuple(volume.provenance["orientation_on_disk"]))
    image = image.as_reoriented(ornt_transform(io_orientation(volume.affine), on_disk))
    image.set_data_dtype(np.int16)
    return image


def rank_slices(grid: BlockGrid, blocks: np.ndarray, count: int = NUM_KEY_SLICES) -> list[int]:
    """Rank axial slices of the volume by the positive evidence in them, at least a patch apart."""
    profile = grid.profile(np.maximum(blocks, 0))
    places = grid.places[0]
    chosen: list[int] = []
    while len(chosen) < count and profile.max(initial=0) > 0:
        best = int(profile.argmax())
        chosen.append(best)
        profile = np.where(np.abs(places - places[best]) < 1, 0, profile)
    return chosen


def _line(check: Faithfulness | None) -> str:
    return "" if check is None else check.describe()


def _save_png(picture: Image.Image, path: Path) -> None:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    replace_file(path, content.getvalue())
