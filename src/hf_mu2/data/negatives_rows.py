"""Rows in pairs for training: a study with its own volume, then the same question and report with a negative's.

Reads: training rows with `images`, and a way to find the volumes of a negative.

A pair is one item of the dataset, so no sampler, batch or process can part it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from .negatives import Candidates, Draw, draw_negatives
from .negatives_noise import gaussian_volume, noise_seed

if TYPE_CHECKING:
    from datasets import Dataset


class NegativeVolumes(Protocol):
    """Finds the volumes of a row's negative; anything with this call will do."""

    def __call__(self, number: int, epoch: int) -> list[Any]: ...


@dataclass(frozen=True)
class GaussianVolumes:
    """Noise as large as the row's own volumes, made when it is read; other noise in every epoch."""

    rows: Dataset
    seed: int = 0

    def __call__(self, number: int, epoch: int) -> list[Any]:
        row = self.rows[number]
        return [
            gaussian_volume(
                source, noise_seed(self.seed, str(row.get("study_id", number)), place), epoch=epoch
            )
            for place, source in enumerate(row["images"])
        ]


@dataclass(frozen=True)
class GivenVolumes:
    """Volumes chosen before, the same in every epoch: e.g. cached features of noise."""

    images: Sequence[list[Any]]

    def __call__(self, number: int, epoch: int) -> list[Any]:
        return self.images[number]


class DrawnVolumes:
    """Volumes of other rows, drawn anew for every epoch (`negatives.py`).

    Args:
        rows (`Dataset`): Training rows.
        candidates (`Candidates`): One per row, in the order of `rows`.
        options: Of `draw_negatives`.
    """

    def __init__(self, rows: Dataset, candidates: Candidates, **options: Any) -> None:
        if len(rows) != len(candidates.study_ids):
            raise ValueError(
                f"Negatives need one candidate per row, got {len(candidates.study_ids)} for {len(rows)} rows. Gather "
                "candidates from the rows that are trained on."
            )
        self.images = rows.select_columns("images")
        self.candidates, self.options = candidates, options
        self.draw(0)  # what cannot be drawn is refused before training begins

    def draw(self, epoch: int) -> Draw:
        return _draw(self, epoch)

    def __call__(self, number: int, epoch: int) -> list[Any]:
        return self.images[int(self.draw(epoch).partner[number])]["images"]


@lru_cache(maxsize=4)
def _draw(volumes: DrawnVolumes, epoch: int) -> Draw:
    return draw_negatives(volumes.candidates, epoch=epoch, **volumes.options)


class PairRows:
    """A dataset whose item is a list: a row, and where there are negatives, the row with its negative's volumes.

    Args:
        rows (`Dataset`): Training rows with `images`.
        volumes_of (`NegativeVolumes`, *optional*): When not given, an item is the row alone.
    """

    def __init__(self, rows: Dataset, volumes_of: NegativeVolumes | None = None) -> None:
        self.rows, self.volumes_of, self.epoch = rows, volumes_of, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> list[dict[str, Any]]:
        row = self.rows[number]
        if self.volumes_of is None:
            return [row]
        # Where the row's own lesion is says nothing of another volume.
        negative = {name: value for name, value in row.items() if name != "lesion_share"}
        return [row, {**negative, "images": self.volumes_of(number, self.epoch)}]
