"""What of a volume an answer rests on: heat maps per question and per sentence, on the volume's own grid.

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

from hf_mu2.data.nifti import save_nifti
from hf_mu2.files import replace_file
from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.inference import Reader, to_json

from .blocks import BlockGrid, lay_blocks
from .evidence_figure import PLANES, overlay
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


@dataclass(frozen=True, eq=False)
class Explanation:
    """What an answer rests on.

    Args:
        answer (`str`): The answer, as given or as generated.
        sentences (`list[SentenceEvidence]`): Its sentences in reading order.
        question_blocks (`np.ndarray` of shape `grid.shape`): How much more the visual tokens read of each patch under
            this question than under none.
    """

    notice: str
    question: str
    answer: str
    sentences: list[SentenceEvidence]
    volume: Volume = field(repr=False)
    grid: BlockGrid = field(repr=False)
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
    def key_slices(self) -> list[int]:
        """Axial slices of the volume, most evidence first, at least a patch apart."""
        return rank_slices(self.grid, self.blocks)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write `heat.nii.gz`, `question.nii.gz`, three overlays and `evidence.json` into a folder.

        The maps have shape and affine of the file the volume came from.
        """
        folder = Path(folder)
        files = {"heat": folder / "heat.nii.gz", "question": folder / "question.nii.gz"}
        heat = self.heat
        save_nifti(as_nifti(heat, self.volume), files["heat"])
        save_nifti(as_nifti(self.grid.to_volume(self.question_blocks), self.volume), files["question"])
        peak = np.unravel_index(int(heat.argmax()), heat.shape)
        for plane, index in zip(PLANES, peak):
            files[plane] = folder / f"{plane}.png"
            picture = io.BytesIO()
            overlay(self.volume, heat, plane, int(index)).save(picture, "PNG", optimize=True)
            replace_file(files[plane], picture.getvalue())
        files["record"] = folder / "evidence.json"
        replace_file(files["record"], to_json(self.to_dict()))
        return files

    def to_dict(self) -> dict[str, Any]:
        """Lay out the machine-readable form, the notice first."""
        return {
            "notice": self.notice,
            "answer": self.answer,
            "key_slices": self.key_slices,
            "sentences": [
                {
                    "text": sentence.text,
                    "span": list(sentence.span),
                    "log_likelihood": round(sentence.log_likelihood, 4),
                    "share": round(sentence.share, 4),
                    "key_slices": sentence.key_slices,
                    "faithfulness": _facts(sentence.faithfulness),
                }
                for sentence in self.sentences
            ],
            "faithfulness": _facts(self.faithfulness),
        }


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
        num_draws (`int`): Random sets of blocks for the faithfulness check, which takes most of the time; 0 leaves it
            out.

    Raises:
        ValueError: if the checkpoint reads no question, the answer is empty, or `history` holds volumes.
    """
    check_traceable(reader.model.config.tokenizer_config)
    forced = force_answer(reader, volume, question, answer, history=history, max_new_tokens=max_new_tokens)
    return explain_forced(forced, volume, question, num_draws=num_draws)


def explain_forced(
    forced: ForcedAnswer, volume: Volume, question: str, *, num_draws: int = 19
) -> Explanation:
    """Explain an answer that is at hand; arguments as in [`explain_report`]."""
    reader = forced.reader
    grid = lay_blocks(
        volume, reader.processor.image_processor, tuple(reader.model.config.vision_config.patch_size)
    )
    path, visual_tokens = _trace(forced, with_question=True)
    blind, _ = _trace(forced, with_question=False)
    likelihoods, gradients = forced.sentence_gradients(visual_tokens)
    maps = as_blocks(path.patches(path.contributions(gradients)), grid)
    question_weights = path.text_attention.sum(dim=1)
    question_tokens = path.push(question_weights) - blind.push(question_weights)
    weight = np.abs(maps).sum(axis=(1, 2, 3))
    checks, check = [None] * len(maps), None
    if num_draws:
        checks, check = check_faithfulness(forced, grid, maps, num_draws=num_draws)
    sentences = [
        SentenceEvidence(forced.answer[slice(*span)], span, *numbers, blocks, grid, checked)
        for span, *numbers, blocks, checked in zip(
            forced.sentences, likelihoods.tolist(), (weight / max(weight.sum(), 1e-12)).tolist(), maps, checks
        )
    ]
    question_blocks = as_blocks(path.patches(question_tokens), grid)
    return Explanation(
        reader.notice, question, forced.answer, sentences, volume, grid, question_blocks, check
    )


def _facts(check: Faithfulness | None) -> dict[str, Any] | None:
    return None if check is None else check.to_dict()


def _trace(forced: ForcedAnswer, with_question: bool) -> tuple[ValuePath, torch.Tensor]:
    model = forced.reader.model.model
    ids, mask = forced.question
    embeds = model.get_input_embeddings()(ids)
    mask = mask if with_question else torch.zeros_like(mask)
    return trace_values(model.mu2_tokenizer, forced.vision_hidden_states, embeds, forced.slab_mask, mask)


def as_blocks(patches: torch.Tensor, grid: BlockGrid) -> np.ndarray:
    """Lay patches `(..., frames, patches)` out as the blocks of a volume, padding dropped: `(..., *grid.shape)`."""
    flat = patches.reshape(*patches.shape[:-2], -1, *grid.shape[1:])
    return flat[..., : grid.shape[0], :, :].cpu().numpy()


def as_nifti(heat: np.ndarray, volume: Volume) -> "nib.Nifti1Image":
    """Make a NIfTI image of a map on the grid of a volume, in the orientation of the file it came from."""
    import nibabel as nib
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    image = nib.Nifti1Image(heat.transpose(2, 1, 0), volume.affine)
    image.header.set_xyzt_units("mm", "sec")
    on_disk = axcodes2ornt(tuple(volume.provenance["orientation_on_disk"]))
    return image.as_reoriented(ornt_transform(io_orientation(volume.affine), on_disk))


def rank_slices(grid: BlockGrid, blocks: np.ndarray, count: int = NUM_KEY_SLICES) -> list[int]:
    """Rank axial slices of the volume by the positive evidence in them, one per patch depth at most."""
    profile = grid.profile(np.maximum(blocks, 0))
    places = np.asarray(grid.places[0])
    chosen: list[int] = []
    while len(chosen) < count and profile.max(initial=0) > 0:
        best = int(profile.argmax())
        chosen.append(best)
        profile = np.where(np.abs(places - places[best]) < 1, 0, profile)
    return chosen
