"""What all runs share: studies, pairs, features of the pre-trained tower, and reports written without a generator.

Reads: nothing; every study is computed from its seed. Tower and language model are those of the demo checkpoint, the
towers of claim f are tuned from it.
Writes: `OUT/studies/<corpus>` (folders for `load_dataset`), `OUT/features`, `OUT/towers`, `OUT/lookup`.
Everything there is kept, so that a killed grid continues.
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_mu2 import embedded_checkpoint
from hf_mu2.data.phantom import FIRST_SEED, write_benchmark, write_pairs, write_phantoms
from hf_mu2.data.phantom.benchmark import RESOLUTIONS
from hf_mu2.data.phantom.folder import open_split
from hf_mu2.files import replace_text
from hf_mu2.hub.assemble import assemble
from hf_mu2.model.features_mu2 import read_features
from hf_mu2.model.volume_mu2 import OutOfDomainWarning
from hf_mu2.reporting.pooling import pool_patches
from hf_mu2.scoring.lookup import answer_by_lookup
from hf_mu2.training.features import cache_features
from hf_mu2.training.recipe import train_recipe

from .names import reports_of
from .rows import Protocol
from .towers import tower_recipe, write_one_channel

SPACINGS_MM = (1, 2, 4, 6, 8)  # between slices, of claim f
IN_PLANE_MM = 3.0
# `text_shortcut` of the negative rows. At .3 more than half of the words are template, in reports of 230 tokens.
SHORTCUTS = {"low": 0.0, "high": 0.3}
SPLITS = {
    "ordinary": ("train", "validation", "test"),
    "low": ("train", "test"),
    "high": ("train", "test"),
    "scans": ("train", "test"),
    "scans_published": ("train", "test"),
}
PAIR_SEED = FIRST_SEED["test"] + 10_000  # patients that no test split shows


@dataclass(frozen=True)
class Ground:
    """Studies, features and towers of a grid in one folder.

    Args:
        out (`Path`): Folder of the grid, absolute.
        protocol (`Protocol`): How many of everything.
        commit (`str`): What the code of the runner is, for the record of each run.
    """

    out: Path
    protocol: Protocol
    commit: str = "unknown"

    @property
    def features_folder(self) -> Path:
        return self.out / "features"

    def prepare(self, corpora: set[str], num_workers: int = 1) -> None:
        """Make what runs on these corpora share, before several processes read it."""
        warnings.simplefilter("ignore", OutOfDomainWarning)  # 8 mm slices, large hearts
        self.write_studies(corpora, num_workers)
        for corpus in sorted(corpora):
            if corpus.startswith("scans"):
                self.make_tower(corpus)
            for split in SPLITS[corpus]:
                self.rows(corpus, split)  # runs the tower, before several processes train from its output
            self.with_features(self.pairs(), corpus)
            self.lookup(corpus)

    def folder(self, corpus: str) -> Path:
        """Where the studies of a corpus are; both preprocessings of claim f read the same scans."""
        return self.out / "studies" / reports_of(corpus)

    def write_studies(self, corpora: set[str], num_workers: int) -> None:
        """Write what is missing of the studies of these corpora."""
        sizes = self.protocol
        if "ordinary" in corpora:
            counts = {"train": sizes.train, "validation": sizes.validation, "test": sizes.test}
            folder = self.folder("ordinary")
            write_benchmark(folder, counts, resolution="coarse", num_workers=num_workers)
        for corpus in sorted(corpora & set(SHORTCUTS)):
            write_benchmark(
                self.folder(corpus),
                {"train": sizes.negative_train, "test": sizes.negative_test},
                resolution="coarse",
                text_shortcut=SHORTCUTS[corpus],
                num_workers=num_workers,
            )
        if corpora & {"scans", "scans_published"}:
            for number, spacing in enumerate(SPACINGS_MM):
                for split, total in (("train", sizes.scan_train), ("test", sizes.scan_test)):
                    count = total // len(SPACINGS_MM)
                    write_phantoms(
                        self.out / "studies" / f"scans_{spacing}mm",
                        count,
                        FIRST_SEED[split] + number * count,
                        split=split,
                        spacing=(spacing, IN_PLANE_MM, IN_PLANE_MM),
                        num_workers=num_workers,
                    )
            self.join_scans()
        write_pairs(self.out / "studies" / "pairs", sizes.pairs, PAIR_SEED, spacing=RESOLUTIONS["coarse"])

    def join_scans(self) -> None:
        """Put scans of all spacings into one folder, so that training mixes them; files are linked, not copied."""
        for split in ("train", "test"):
            folder, lines = self.folder("scans") / split, []
            folder.mkdir(parents=True, exist_ok=True)
            for spacing in SPACINGS_MM:
                part = self.out / "studies" / f"scans_{spacing}mm" / split
                for line in (part / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
                    row = json.loads(line)
                    for name in row["images_file_names"]:
                        if not (folder / name).exists():
                            (folder / name).hardlink_to(part / name)
                    lines.append(json.dumps(row))
            replace_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")

    def rows(self, corpus: str, split: str) -> Dataset:
        """Open a split with features of its volumes."""
        return self.with_features(open_split(self.folder(corpus), split), corpus)

    def pairs(self) -> Dataset:
        return open_split(self.out / "studies" / "pairs", "test")

    def with_features(self, dataset: Dataset, corpus: str) -> Dataset:
        """Put what the tower of a corpus makes of volumes in their place."""
        model, processor = load(self.tower_folder(corpus))
        return cache_features(
            model,
            processor,
            dataset,
            self.features_folder,
            batch_size=16,
            device="cuda" if torch.cuda.is_available() else None,
        )

    def tower_folder(self, corpus: str) -> Path:
        """Where the checkpoint is whose tower and image processor the runs on a corpus start from."""
        return self.out / "towers" / corpus if corpus.startswith("scans") else embedded_checkpoint()

    def make_tower(self, corpus: str) -> None:
        """Tune the pre-trained tower to what a preprocessing of claim f hands on."""
        folder = self.tower_folder(corpus)
        if folder.exists():
            return
        start, tuned = (self.out / "towers" / f"{corpus}_{name}" for name in ("start", "tuned"))
        shutil.rmtree(tuned, ignore_errors=True)
        write_one_channel(start, "official" if corpus == "scans_published" else "default")
        path = start / "recipe.yaml"
        text = tower_recipe(start, self.folder(corpus), self.protocol.scan_train, tuned)
        replace_text(path, yaml.safe_dump(text, sort_keys=False))
        assemble("embedded", folder, preset="tiny", vision_tower=train_recipe(path))

    # --------------------------------------------------------------------------------------------------- the lookup

    def lookup(self, corpus: str) -> list[str]:
        """Answer test studies, then pairs, by [`look_up`]."""
        corpus = reports_of(corpus)
        path = self.out / "lookup" / f"{corpus}.json"
        if not path.exists():
            studies = [open_split(self.folder(corpus), "test"), self.pairs()]
            asked = [rows.select_columns(["images", "study_id", "patient_id"]) for rows in studies]
            texts = self.look_up(corpus, concatenate_datasets(asked))
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps(texts))
        found: list[str] = json.loads(path.read_text())
        return found

    def look_up(self, corpus: str, studies: Dataset) -> list[str]:
        """Answer studies with training reports: a linear probe on the frozen tower, then the nearest by its labels."""
        train = open_split(self.folder(corpus), "train")
        rows, _ = answer_by_lookup(
            studies["study_id"],
            self.pooled(studies),
            train["study_id"],
            self.pooled(train),
            list(train.remove_columns("images")),
            patients=list(studies.select_columns(["study_id", "patient_id"])),
        )
        return [row["candidate"] for row in rows]

    def pooled(self, dataset: Dataset) -> np.ndarray:
        """Mean and maximum of the pre-trained tower's patches that hold anatomy, per study."""
        vectors = []
        for images in self.with_features(dataset, "ordinary")["images"]:
            tokens = read_features(images[0]).float()  # (slabs of anatomy, tokens, width)
            vectors.append(pool_patches(tokens[None], torch.ones(1, *tokens.shape[:1], 1))[0].numpy())
        return np.stack(vectors)


def load(folder: Path) -> tuple[Any, Any]:
    """Load a model and its processor."""
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
