"""An auxiliary loss on where the tokenizer looks: lesion masks as supervision, future work of the dual-path paper.

Reads: training rows with `images` and `lesion_masks`, references to the masks of each study.
Writes: nothing; adds the column `lesion_share`.

The visual tokens are a linear mix of patches (`explain/value_path.py`). With p the share of that mix that comes from
each patch, mean over heads and queries, and m the share of each patch that lies inside the mask, over its largest:

    L = evidence_weight * mean over studies with a lesion of -log(sum_i p_i m_i)

It is 0 where all that is read comes from the patches that hold most lesion. m's scale has no gradient: dividing by the
largest only makes studies with small lesions comparable. Studies without a mask, or whose lesion is outside what the
model sees, contribute nothing, and neither do negatives. The mean is over the studies of the whole step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer

from hf_mu2.data.lesion_masks import load_masks, mask_path, phantom_masks, study_masks
from hf_mu2.explain.value_path import watch_reading
from hf_mu2.model.configuration_mu2 import Mu2Config
from hf_mu2.model.features_mu2 import is_features
from hf_mu2.model.resample_mu2 import Grid, resample
from hf_mu2.model.volume_mu2 import Volume, VolumeError, source_path
from hf_mu2.scoring.labels import label_report

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor

    from .recipe import RecipeArguments

LESION_MASKS, LESION_SHARE = "lesion_masks", "lesion_share"


def find_lesion_masks(rows: Dataset, arguments: RecipeArguments, split: str) -> Dataset:
    """Add `lesion_masks` to the rows of a recipe, those of its corpus or folder of phantoms, unless they are there.

    Raises:
        ValueError: if no study has a mask, or the corpus has none.
    """
    from datasets import List, Value

    from .recipe import open_studies

    if LESION_MASKS in rows.column_names:
        return rows
    if arguments.corpus is None:
        masks = [phantom_masks(images[0]) if images else [] for images in rows["images"]]
    else:
        studies = {
            study["study_id"]: study_masks(study, arguments.corpus_root or ".", _present(study))
            for study in open_studies(arguments, split)
        }
        masks = [studies[study_id] for study_id in rows["study_id"]]
    if not any(masks):
        raise ValueError(
            f"`evidence_weight` needs masks of lesions, found none for the {len(rows)} studies of `{split}`. Put them "
            "where the corpus keeps them, give the rows a column `lesion_masks`, or set the weight to 0."
        )
    return rows.add_column(LESION_MASKS, masks, feature=List(Value("string")))


def _present(study: dict[str, Any]) -> list[str]:
    labels = study["labels"]
    if all(value is None for value in labels.values()):
        labels = label_report(f"{study['findings']}\n{study['impression']}")
    return [label for label, value in labels.items() if value == 1]


def add_lesion_shares(
    rows: Dataset, image_processor: Mu2ImageProcessor, patch_size: Sequence[int], num_workers: int = 0
) -> Dataset:
    """Lay each study's masks on its patches, once: `lesion_masks` becomes `lesion_share`, indices and shares above 0.

    Volumes are read for their geometry, so this comes before they are replaced by cached features. `datasets` keeps the
    result until a mask, a volume or the processor changes.

    Args:
        patch_size (`Sequence[int]`): Voxels per patch (slices, rows, columns) on the processor's grid.

    Raises:
        ValueError: as `lesion_blocks`, and for a study with masks and not exactly one volume.
    """
    from datasets import Features, List, Value

    files = {mask_path(reference) for masks in rows[LESION_MASKS] for reference in masks}
    files |= {Path(name) for images in rows["images"] if (name := source_path(images[0] if images else None))}
    times = [(str(path), path.stat().st_mtime_ns) for path in sorted(files) if path.is_file()]
    shares = {"index": List(Value("int32")), "share": List(Value("float32"))}
    return rows.map(
        partial(_share_row, image_processor=image_processor, patch_size=tuple(patch_size)),
        fn_kwargs={"stamp": sha256(repr(times).encode()).hexdigest()},
        remove_columns=[LESION_MASKS],
        features=Features(
            {name: feature for name, feature in rows.features.items() if name != LESION_MASKS}
            | {LESION_SHARE: shares}
        ),
        num_proc=num_workers or None,
        desc="lesion masks",
    )


def _share_row(
    row: dict[str, Any], *, image_processor: Mu2ImageProcessor, patch_size: tuple[int, ...], stamp: str
) -> dict[str, Any]:
    if not row[LESION_MASKS]:
        return {LESION_SHARE: {"index": [], "share": []}}
    if len(row["images"]) != 1:
        raise ValueError(
            f"Masks belong to one volume, got {len(row['images'])} in study `{row.get('study_id')}`. Keep the volume "
            "that was outlined, or leave its masks out."
        )
    blocks = lesion_blocks(row["images"][0], row[LESION_MASKS], image_processor, patch_size).ravel()
    (index,) = blocks.nonzero()
    return {LESION_SHARE: {"index": index, "share": blocks[index]}}


def lesion_blocks(
    source: Any, references: Sequence[str], image_processor: Mu2ImageProcessor, patch_size: Sequence[int]
) -> np.ndarray:
    """Say how much of each patch lies inside the masks of a volume, by the very resampling that the volume gets.

    Masks follow orientation, spacing, crop, padding and frames of the processor without augmentation, which would turn
    the anatomy; the trainers never augment.

    Args:
        source: The volume, any source of `load_volume`, also a prepared one.
        references (`Sequence[str]`): Its masks, see `data/lesion_masks.py`.
        patch_size (`Sequence[int]`): Voxels per patch on the processor's grid.

    Returns:
        `np.ndarray` of shape `(slabs, rows, columns)`, 0 to 1; padding counts as outside.

    Raises:
        ValueError: for cached features, for `mode="official"`, or for a mask that does not lie on the volume's grid.
    """
    if is_features(source):
        raise ValueError(
            "Masks are laid over volumes, got cached features, which know no geometry. Lay the masks first and cache "
            "then, as `cache_features` in a recipe does."
        )
    if image_processor.mode == "official":
        raise ValueError(
            "Masks are laid on a grid in mm, `mode='official'` squeezes each volume to its own. Use a processor in "
            "default mode, or `evidence_weight: 0`."
        )
    volume = image_processor.load(source)
    mask, affine = load_masks(references)
    grid = image_processor.grid(volume)
    inside = resample(
        mask.astype(np.float32),
        _grid_in_mask(volume, grid, mask, affine, references[0]),
        image_processor.antialias,
        fill=0.0,
    )
    depth, height, width = patch_size
    inside = np.pad(inside, ((0, -len(inside) % image_processor.num_slices), (0, 0), (0, 0)))
    slabs, rows, columns = (size // patch for size, patch in zip(inside.shape, (depth, height, width)))
    return inside.reshape(slabs, depth, rows, height, columns, width).mean(axis=(1, 3, 5))


def _grid_in_mask(volume: Volume, grid: Grid, mask: np.ndarray, affine: np.ndarray, name: str) -> Grid:
    """Place the processor's grid in voxels of the mask, which must be those of the volume as it was stored."""
    to_mask = np.linalg.inv(affine) @ grid.affine(volume)  # grid (x, y, z) to mask (x, y, z)
    step = np.diag(to_mask)[:3]
    is_turned = np.abs(to_mask[:3, :3] - np.diag(step)).max() > 1e-3
    # A prepared volume lies on the processor's grid already; its file did not.
    is_moved = "prepared" not in volume.provenance and not np.allclose(
        affine, volume.affine, atol=0.01 * min(volume.spacing)
    )
    if list(mask.shape) != list(volume.provenance["shape"]) or is_turned or is_moved:
        own, its = tuple(volume.provenance["shape"]), _text(affine[:3, 3])
        raise VolumeError(
            f"A mask lies on the grid of its volume, `{mask_path(name).name}` has the shape {mask.shape} and the "
            f"origin {its} mm, the volume {own} and {_text(volume.affine[:3, 3])} mm. Resample the mask to the "
            "volume's grid, or take the reconstruction that was outlined."
        )
    return Grid(tuple(to_mask[2::-1, 3].tolist()), tuple(step[::-1].tolist()), grid.shape)


def _text(numbers: np.ndarray) -> str:
    return "(" + ", ".join(f"{number:g}" for number in numbers.round(2)) + ")"


@dataclass(frozen=True)
class EvidenceCollator:
    """Let a collator for rows add `lesion_share` `(volumes, frames, patches)`, 0 for volumes without a lesion."""

    collate_rows: Any
    patches_per_frame: int

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        found: list[dict[str, Any] | None] = []
        for example in examples:
            num_volumes = len(example.get("images", ["image"]))
            found += [example.get(LESION_SHARE), *[None] * num_volumes][:num_volumes]
        batch = self.collate_rows(
            [{k: v for k, v in example.items() if k != LESION_SHARE} for example in examples]
        )
        if any(share is not None for share in found):
            volumes, frames, _ = batch["pixel_attention_mask"].shape
            shares = torch.zeros(volumes, frames * self.patches_per_frame)
            for row, share in zip(shares, found):
                if share is not None:
                    row[torch.as_tensor(share["index"], dtype=torch.long)] = torch.tensor(share["share"])
            batch[LESION_SHARE] = shares.unflatten(1, (frames, -1))
        return batch


def evidence_losses(reading: torch.Tensor, lesions: torch.Tensor) -> torch.Tensor:
    """Compute -log of what is read inside the lesion, `(volumes with a lesion,)`, each at least 0.

    Args:
        reading (`torch.Tensor` of shape `(volumes, frames, patches)`): Shares of what is read, sum 1 per volume.
        lesions (`torch.Tensor` of shape `(volumes, frames, patches)`): Share of each patch inside the mask.
    """
    reading, lesions = reading.flatten(1), lesions.flatten(1)
    peak = lesions.amax(dim=1)
    has_lesion = peak > 0
    inside = (reading * lesions).sum(dim=1)[has_lesion] / peak[has_lesion]
    return -inside.clamp(min=torch.finfo(torch.float32).tiny).log()


class EvidenceLossTrainer(Trainer):
    """Stands before a trainer of reports in the bases of a class, and adds the evidence loss to its loss.

    Args:
        evidence_weight (`float`): 0 adds, reads and computes nothing. Otherwise rows have a column `lesion_share`
            ([`add_lesion_shares`]); evaluation rows may.

    Logs `evidence_loss` and `evidence_mass`, what is read inside the lesion, geometric mean over studies with one; in
    evaluation too, whose own loss stays that of the reports.

    Raises:
        ValueError: if training rows have no `lesion_share`, or the model is not mu2 with a tokenizer that reads a
            question.
    """

    data_collator: Any

    def __init__(self, *args: Any, evidence_weight: float = 0.0, **kwargs: Any) -> None:
        self.evidence_weight, self._num_lesions = evidence_weight, 0
        super().__init__(*args, **kwargs)
        if not evidence_weight:
            return
        model = self.accelerator.unwrap_model(self.model)
        columns = self.train_dataset.column_names
        if not isinstance(model.config, Mu2Config) or LESION_SHARE not in columns:
            raise ValueError(
                f"`evidence_weight` needs a mu2 model and a column `{LESION_SHARE}`, got a {type(model).__name__} and "
                f"columns {columns}. Add it with `add_lesion_shares`, or set the weight to 0."
            )
        with watch_reading(model):  # refuses a tokenizer without a value path
            patches = math.prod(model.config.tokenizer_config.frame_grid)
        self.data_collator = EvidenceCollator(self.data_collator, patches)

    def report_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items: Any = None,
    ) -> Any:
        """Return the loss of the reports alone."""
        return super().compute_loss(model, inputs, return_outputs, num_items)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Add this batch's share of the evidence loss to that of the reports."""
        if not self.evidence_weight:
            return self.report_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        lesions = inputs.pop(LESION_SHARE, None)
        with watch_reading(model) as readings:
            found = self.report_loss(model, inputs, return_outputs, num_items_in_batch)
        losses = torch.zeros(0, device=self.args.device)
        if lesions is not None:
            losses = evidence_losses(torch.cat(readings), lesions)
        self._note_evidence(losses.detach(), "train" if model.training else "eval")
        if not model.training:
            return found
        added = self.evidence_weight * losses.sum() / max(self._num_lesions, 1)
        added = added * self.accelerator.num_processes  # which average their gradients
        if num_items_in_batch is None:  # the trainer divides by the accumulation steps
            added = added * self.current_gradient_accumulation_steps
        return (found[0] + added, found[1]) if return_outputs else found + added

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Count the studies with a lesion of the whole step: accumulation steps and processes."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self.evidence_weight:
            counts = [
                (batch[LESION_SHARE].flatten(1).amax(1) > 0).sum()
                for batch in batches
                if LESION_SHARE in batch
            ]
            own = torch.tensor(sum(map(int, counts)), device=self.args.device)
            self._num_lesions = int(self.accelerator.gather(own).sum())
        return batches, num_items

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.evidence_weight and LESION_SHARE not in self._signature_columns:
            self._signature_columns.append(LESION_SHARE)

    def _note_evidence(self, losses: torch.Tensor, mode: str) -> None:
        facts = torch.tensor([[losses.sum(), len(losses)]], device=losses.device)
        total, count = self.accelerator.gather(facts).sum(0).tolist()
        if count:
            self._metrics[mode]["evidence_loss"].append(total / count)
            self._metrics[mode]["evidence_mass"].append(math.exp(-total / count))
