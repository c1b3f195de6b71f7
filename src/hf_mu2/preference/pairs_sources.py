"""Rejected reports that need no sampling: what the model writes of noise, and the report of another patient.

Reads: rows of candidates (see the head of `sample.py`), a checkpoint.
Writes: a JSONL file with the report of a noise volume per study.

Both are easy to tell from a report of the study, so they teach that the volume matters and little else: pairs carry
their `source`, to be counted and weighed apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hf_mu2.data.corpus import share_of
from hf_mu2.data.negatives_noise import gaussian_volume, noise_seed
from hf_mu2.reporting.inference import Reader
from hf_mu2.reporting.journal import Journal
from hf_mu2.reporting.studies import place_volumes
from hf_mu2.scoring.findings import read_findings
from hf_mu2.scoring.hygiene import clean_reference, patient_of
from hf_mu2.tables import in_batches, read_rows


def write_noise_reports(
    candidates: str | Path,
    out: str | Path,
    reader: Reader,
    *,
    seed: int = 0,
    batch_size: int = 4,
    max_new_tokens: int = 512,
    show_progress: bool = False,
) -> Path:
    """Let the model report, greedily, a noise volume in the place of each study's own; return `out`.

    A killed run continues at the next batch. Studies whose volumes are not named or cannot be read have no row.

    Args:
        candidates (`str` or `Path`): Rows of `hf-mu2 sample` or `hf-mu2 score`.
        out (`str` or `Path`): JSONL with `study_id` and `candidate`, in the order of the studies.
        reader (`Reader`): From `load_reader`: the model that wrote the candidates.
        seed (`int`): Of the noise.
    """
    candidates, out = Path(candidates), Path(out)
    with candidates.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settings = {"model_digest": reader.digest, "candidates": digest, "seed": seed, "tokens": max_new_tokens}
    journal = Journal(out, settings)
    rows = [row for row in read_rows(candidates, ("study_id", "prompt", "images")) if row["images"]]
    todo = [row for row in rows if row["study_id"] not in journal.finished]
    with tqdm(total=len(todo), unit="study", disable=None if show_progress else True) as bar:
        for batch in in_batches(todo, batch_size):
            shown: dict[str, Any] = {}
            failed: dict[str, dict[str, Any]] = {}
            for row in batch:
                try:
                    volumes = [
                        gaussian_volume(reader.load_volume(image), noise_seed(seed, row["study_id"], number))
                        for number, image in enumerate(row["images"])
                    ]
                    shown[row["study_id"]] = place_volumes(row["prompt"], volumes)
                except (ValueError, OSError) as error:
                    failed[row["study_id"]] = {"error": str(error)}
            answers = reader.answer(reader.prepare(list(shown.values())), max_new_tokens) if shown else []
            texts = {name: {"candidate": answer.text} for name, answer in zip(shown, answers)}
            journal.add({row["study_id"]: (failed | texts)[row["study_id"]] for row in batch})
            bar.update(len(batch))
    for name, answer in journal.finished.items():
        answer["study_id"] = name
    journal.close(row["study_id"] for row in rows if "candidate" in journal.finished[row["study_id"]])
    return out


def read_noise_reports(path: str | Path) -> dict[str, str]:
    """Read the report of noise of each study, from rows with `study_id` and `candidate`."""
    return {row["study_id"]: row["candidate"] for row in read_rows(Path(path), ("study_id", "candidate"))}


class OtherPatients:
    """References of other patients that say something else.

    Args:
        rows (`Iterable[Mapping]`): Scored rows; references are read once and held.
        min_differences (`int`): In how many of the 18 labels the two must differ.
        seed (`int`): Decides whose report is taken.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], min_differences: int, seed: int = 0):
        if min_differences < 1:
            raise ValueError(
                f"Reports must differ in at least 1 label to be told apart, got {min_differences}. E.g. 3."
            )
        self.min_differences, self.seed = min_differences, seed
        self.texts: list[str] = []
        self.patients: list[str] = []
        self.places: dict[str, int] = {}
        labels = []
        for row in rows:
            text = clean_reference(row["reference"])
            if text:
                self.places[row["study_id"]] = len(self.texts)
                self.texts.append(text)
                self.patients.append(row["patient_id"] or patient_of(row["study_id"]))
                labels.append(read_findings(text).labels)
        self.labels = np.array(labels)

    def report_for(self, row: Mapping[str, Any]) -> str | None:
        """Return the reference of another patient who differs enough, `None` where nobody does."""
        own = self.places.get(row["study_id"])
        if own is None:
            return None
        count = len(self.texts)
        start = int(share_of(f"other:{row['study_id']}", self.seed) * count)
        for step in range(count):
            place = (start + step) % count
            # A label that could not be read differs from nothing.
            differences = np.abs(self.labels[place] - self.labels[own])
            if self.patients[place] != self.patients[own] and np.nansum(differences) >= self.min_differences:
                return self.texts[place]
        return None
