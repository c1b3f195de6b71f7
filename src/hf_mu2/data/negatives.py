"""Whose volume may stand in for whose: the negatives of the dual-path constraint.

Reads: patients and labels of studies, and how they look where that is known (`negatives_pool.py`).
Writes: on request, a JSONL table of who takes whose volume; a draw is computed from its seed and epoch.

A negative keeps a study's question and report and takes another volume. Four policies say which:

- `"paper"`: any study of another patient whose labels differ in at least `min_distance`, uniformly; the distance is
  relaxed step by step where there is none (Gao and Zhao, "heterogeneous case"). Chosen so, negatives are far sicker
  than studies are, and few of them serve again and again: that a volume is very sick gives it away without the report.
- `"balanced"` (ours, the default): no volume stands in more than `max_uses` times. With 1, each does exactly once, so
  volumes of negatives have the findings, and the number of findings, that volumes have: alone they tell nothing. The
  draw exchanges volumes so long as squared shortfalls of the distance below `min_distance` become smaller.
- `"hard"` (ours; future work of the paper): of another patient, as few labels apart as can be, at least one of them
  among the findings that matter, and of those one of the few that look most alike.
- `"pairs"`: the other study of a PhantomCT pair, one finding apart. The synthetic patient is the same on purpose.

Labels are compared where both studies know them. A Gaussian negative needs no draw: `negatives_noise.py`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_mu2.files import replace_text

from .study import FINDING_LABELS

POLICIES = ("paper", "balanced", "hard", "pairs")
MIN_DISTANCE = 10  # labels, of 18: the paper's
_BLOCK = 512  # rows of the table of distances at a time: 512 x 25,000 bytes are 13 MB
_ROUNDS = 200  # of exchanges; on 24,128 scans the shortfall hardly moves after them
_LOOKALIKES = 8  # from which a hard negative is drawn, so that epochs differ


@dataclass(frozen=True)
class Candidates:
    """Studies to draw from and for, of one split.

    Args:
        study_ids, patient_ids (`Sequence[str]`): One per study.
        labels (`np.ndarray` of shape `(studies, labels)`): 1 present, 0 absent, -1 unknown.
        label_names (`Sequence[str]`): The columns.
        appearance (`np.ndarray` of shape `(studies, width)`, *optional*): Vectors whose cosine says how alike studies
            look.
        pair_of (`Sequence[str]`, *optional*): The other study of a PhantomCT pair.
    """

    study_ids: Sequence[str]
    patient_ids: Sequence[str]
    labels: np.ndarray
    label_names: Sequence[str] = FINDING_LABELS
    appearance: np.ndarray | None = None
    pair_of: Sequence[str] | None = None

    def __post_init__(self) -> None:
        expected = (len(self.study_ids), len(self.label_names))
        if self.labels.shape != expected or len(self.patient_ids) != expected[0]:
            raise ValueError(
                f"Candidates have a patient and a row of labels per study, got {len(self.patient_ids)} patients and "
                f"labels of shape {self.labels.shape} for {expected[0]} studies and {expected[1]} labels. Join the "
                "tables by study id first."
            )


@dataclass(frozen=True)
class Draw:
    """Whose volume stands in for whose.

    Args:
        policy (`str`): One of `POLICIES`.
        partner (`np.ndarray` of shape `(studies,)`): Index of the study whose volume is taken.
        distance (`np.ndarray` of shape `(studies,)`): Labels that differ.
        relaxed (`np.ndarray` of shape `(studies,)`): Steps by which the wanted distance was missed.
    """

    policy: str
    partner: np.ndarray
    distance: np.ndarray
    relaxed: np.ndarray


def draw_negatives(
    candidates: Candidates,
    policy: str = "balanced",
    *,
    seed: int = 0,
    epoch: int = 0,
    min_distance: int = MIN_DISTANCE,
    max_uses: int = 1,
    findings: Sequence[str] | None = None,
) -> Draw:
    """Draw a negative for every study. The same seed and epoch draw the same.

    Args:
        policy (`str`): One of `POLICIES`, see the top of this module.
        min_distance (`int`): Labels that differ, of `"paper"` and `"balanced"`. A hard negative has 1 or, where there
            is none, the fewest above.
        max_uses (`int`): How often one volume may stand in, for `"balanced"`: larger is further apart and sicker.
        findings (`Sequence[str]`, *optional*): The findings that matter for `"hard"`; all labels when not given.

    Raises:
        ValueError: for an unknown policy or finding, and if a study has no other patient to take a volume from.
    """
    if policy not in POLICIES:
        raise ValueError(
            f"`policy` must be one of {', '.join(POLICIES)}, got `{policy}`. Check the spelling."
        )
    if max_uses < 1:
        raise ValueError(f"`max_uses` must be at least 1, got {max_uses}. Each study needs a volume.")
    if policy == "pairs":
        return _finish(candidates, policy, _other_of_pair(candidates), 1)
    _, patients = np.unique(np.asarray(candidates.patient_ids), return_inverse=True)
    if len(patients) == 0 or patients.max() == 0:
        raise ValueError(
            f"A negative is of another patient, all {len(patients)} studies are of one. Add studies, or use Gaussian "
            "negatives."
        )
    bits = _LabelBits.of(candidates.labels)
    rng = np.random.default_rng([seed, epoch, zlib.crc32(policy.encode())])
    if policy == "paper":
        return _finish(candidates, policy, _uniform(bits, patients, min_distance, rng), min_distance)
    if policy == "balanced":
        partner = _exchange(bits, patients, min_distance, max_uses, rng)
        return _finish(candidates, policy, partner, min_distance)
    matters = _mask_of(candidates.label_names, findings)
    return _finish(candidates, policy, _nearest(candidates, bits, patients, matters, rng), 1)


def describe_draw(candidates: Candidates, draw: Draw) -> dict[str, Any]:
    """Say what a draw is like.

    Returns:
        `dict`: `studies`; `distance_mean`, `distance_min`, `distances` (number of pairs per distance); `relaxed_pairs`
        and `relaxed_steps_max`; `positives_per_study` and `positives_per_negative` (mean labels present of a volume);
        `same_patient` (0, but for `"pairs"`); `used_volumes` (different ones), `most_uses`, `half_from` (how many
        volumes make half of the negatives) and `effective_pool`, 1 / sum of squared shares.
    """
    positives = (candidates.labels == 1).sum(axis=1)
    patients = np.asarray(candidates.patient_ids)
    uses = np.sort(np.bincount(draw.partner, minlength=len(patients)))[::-1]
    counts = np.bincount(draw.distance)
    return {
        "policy": draw.policy,
        "studies": len(patients),
        "patients": len(set(candidates.patient_ids)),
        "distance_mean": float(draw.distance.mean()),
        "distance_min": int(draw.distance.min()),
        "distances": {str(distance): int(count) for distance, count in enumerate(counts) if count},
        "relaxed_pairs": int((draw.relaxed > 0).sum()),
        "relaxed_steps_max": int(draw.relaxed.max()),
        "positives_per_study": float(positives.mean()),
        "positives_per_negative": float(positives[draw.partner].mean()),
        "same_patient": int((patients == patients[draw.partner]).sum()),
        "used_volumes": int((uses > 0).sum()),
        "most_uses": int(uses[0]),
        "half_from": int(np.searchsorted(uses.cumsum(), uses.sum() / 2) + 1),
        "effective_pool": float(uses.sum() ** 2 / (uses.astype(float) ** 2).sum()),
    }


def write_draw(
    out: str | Path, candidates: Candidates, draw: Draw, manifest: Mapping[str, Any] | None = None
) -> None:
    """Write one line per study, the study whose volume is taken and how far it is; a manifest goes beside."""
    out = Path(out)
    lines = (
        {
            "study_id": study_id,
            "negative_study_id": candidates.study_ids[partner],
            "distance": int(distance),
            "relaxed": int(relaxed),
        }
        for study_id, partner, distance, relaxed in zip(
            candidates.study_ids, draw.partner, draw.distance, draw.relaxed
        )
    )
    replace_text(out, "".join(json.dumps(line) + "\n" for line in lines))
    if manifest is not None:
        replace_text(out.with_name(f"{out.stem}.manifest.json"), json.dumps(dict(manifest), indent=2) + "\n")


@dataclass(frozen=True)
class _LabelBits:
    """Labels as bits of one integer per study: a distance is then one XOR and one count."""

    present: np.ndarray
    known: np.ndarray
    all_known: bool

    @classmethod
    def of(cls, labels: np.ndarray) -> _LabelBits:
        if labels.shape[1] > 32:
            raise ValueError(f"At most 32 labels are compared, got {labels.shape[1]}. Leave some out.")
        weights = np.uint32(1) << np.arange(labels.shape[1], dtype=np.uint32)
        return cls((labels == 1) @ weights, (labels >= 0) @ weights, bool((labels >= 0).all()))

    def differing(self, first: Any, second: Any) -> np.ndarray:
        """Return the bits in which studies differ and which both know; indices or slices, broadcast."""
        differing = self.present[first] ^ self.present[second]
        return differing if self.all_known else differing & self.known[first] & self.known[second]

    def distance(self, first: Any, second: Any) -> np.ndarray:
        return np.bitwise_count(self.differing(first, second))


def _finish(candidates: Candidates, policy: str, partner: np.ndarray, wanted: int) -> Draw:
    bits = _LabelBits.of(candidates.labels)
    distance = bits.distance(np.arange(len(partner)), partner).astype(np.int64)
    relaxed = np.maximum(distance - wanted if policy == "hard" else wanted - distance, 0)
    return Draw(policy, partner, distance, relaxed)


def _uniform(
    bits: _LabelBits, patients: np.ndarray, min_distance: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw uniformly among the studies of other patients that are far enough, or as far as any is."""
    partner = np.empty(len(patients), dtype=np.int64)
    for rows in _blocks(len(patients)):
        distance = bits.distance(rows[:, None], slice(None)).astype(np.int8)
        distance[patients[rows, None] == patients] = -1
        wanted = np.minimum(distance.max(axis=1), min_distance)  # relaxed step by step until one is found
        for row, own, needed in zip(rows, distance, wanted):
            partner[row] = rng.choice(np.flatnonzero(own >= needed))
    return partner


def _exchange(
    bits: _LabelBits, patients: np.ndarray, min_distance: int, max_uses: int, rng: np.random.Generator
) -> np.ndarray:
    """Start from any assignment that keeps the cap, and swap volumes while that lowers the cost.

    The cost of a pair is its squared shortfall, and more than any shortfall where patient is the same.
    """
    num_studies = len(patients)
    slots = rng.permutation(np.repeat(np.arange(num_studies), max_uses))  # of the first, each study takes one

    def cost(places: np.ndarray, volumes: np.ndarray) -> np.ndarray:
        is_taken = places < num_studies
        studies = np.where(is_taken, places, 0)
        shortfall = np.maximum(min_distance - bits.distance(studies, volumes).astype(np.int64), 0)
        own_patient = patients[studies] == patients[volumes]
        return np.where(is_taken, shortfall**2 + 10_000 * own_patient, 0)

    # Small sets have few swaps per round, and may need an unlikely one.
    rounds = max(_ROUNDS, 20_000 // len(slots))
    for _ in range(rounds):
        places = rng.permutation(len(slots))
        first, second = places[: len(places) // 2], places[len(places) // 2 :][: len(places) // 2]
        own, other = slots[first], slots[second]
        gain = cost(first, own) + cost(second, other) - cost(first, other) - cost(second, own)
        swap = gain > 0
        slots[first[swap]], slots[second[swap]] = other[swap], own[swap]
    partner = slots[:num_studies]
    if (patients[partner] == patients).any():
        raise ValueError(
            f"With `max_uses` {max_uses} some studies are left with volumes of their own patient alone, because one "
            f"patient has {np.bincount(patients).max()} of the {num_studies} studies. Raise `max_uses`."
        )
    return partner


def _nearest(
    candidates: Candidates,
    bits: _LabelBits,
    patients: np.ndarray,
    matters: np.uint32,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw among the most alike of the studies that are fewest labels apart, one of which matters."""
    partner = np.empty(len(patients), dtype=np.int64)
    looks = None if candidates.appearance is None else _unit(candidates.appearance)
    for rows in _blocks(len(patients)):
        differing = bits.differing(rows[:, None], slice(None))
        distance = np.bitwise_count(differing)
        distance[differing & matters == 0] = 255
        distance[patients[rows, None] == patients] = 255
        nearest = distance.min(axis=1)
        if (nearest == 255).any():
            raise ValueError(
                "A hard negative is of another patient and differs in a finding that matters, study "
                f"`{candidates.study_ids[rows[nearest == 255][0]]}` has none. Add studies, or name other findings."
            )
        alike = None if looks is None else looks[rows] @ looks.T
        for number, row in enumerate(rows):
            found = np.flatnonzero(distance[number] == nearest[number])
            if alike is not None and len(found) > _LOOKALIKES:
                found = found[np.argpartition(-alike[number, found], _LOOKALIKES)[:_LOOKALIKES]]
            partner[row] = rng.choice(found)
    return partner


def _other_of_pair(candidates: Candidates) -> np.ndarray:
    index = {study_id: number for number, study_id in enumerate(candidates.study_ids)}
    others = [index.get(other, -1) for other in candidates.pair_of or ()]
    if not others or min(others) < 0:
        raise ValueError(
            "The policy `pairs` needs the two studies of every pair, as `hf-mu2 phantom --pairs` writes them; "
            f"{others.count(-1) if others else 'all'} of {len(candidates.study_ids)} studies are without the other. "
            "Use all studies of such a folder, or another policy."
        )
    return np.array(others)


def _mask_of(label_names: Sequence[str], findings: Sequence[str] | None) -> np.uint32:
    unknown = sorted(set(findings or ()) - set(label_names))
    if unknown or findings == []:
        raise ValueError(
            f"`findings` are some of {', '.join(label_names)}, got {unknown or 'none'}. Check the spelling."
        )
    chosen = label_names if findings is None else findings
    return np.uint32(sum(1 << label_names.index(name) for name in chosen))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    centred = vectors - vectors.mean(axis=0)  # soft prompts share a large mean; a cosine would see it alone
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def _blocks(size: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]
