"""What all runs share: studies, pairs, features of the pre-trained tower, and reports written without a generator.

Reads: nothing; every study is computed from its seed. Tower and language model are those of the demo checkpoint.
Writes: `OUT/studies/<corpus>` (folders for `load_dataset`), `OUT/features`, `OUT/towers`, `OUT/lookup`.
Everything there is kept, so that a killed grid continues.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_mu2 import embedded_checkpoint
from hf_mu2.data.phantom import FIRST_SEED, write_benchmark, write_pairs, write_phantoms
from hf_mu2.data.phantom.benchmark import RESOLUTIONS
from hf_mu2.data.phantom.folder import open_split
from hf_mu2.files import new_folder, replace_text
from hf_mu2.hub.assemble import save_checkpoint
from hf_mu2.model.features_mu2 import read_features
from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.modeling_mu2 import Mu2ForConditionalGeneration
from hf_mu2.reporting.pooling import pool_patches
from hf_mu2.scoring.lookup import answer_by_lookup
from hf_mu2.training.features import cache_features

from .rows import Protocol

SPACINGS_MM = (1, 2, 4, 6, 8)  # between slices, of claim f
IN_PLANE_MM = 3.0
SHORTCUTS = {"low": 0.0, "high": 0.7}
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
        self.write_studies(corpora, num_workers)
        self.write_features(corpora)
        for corpus in sorted(corpora):
            self.tower(corpus)
            self.lookup(corpus)

    def folder(self, corpus: str) -> Path:
        """Where the studies of a corpus are; both preprocessings of claim f read the same scans."""
        return self.out / "studies" / corpus.removesuffix("_published")

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
                        (folder / name).unlink(missing_ok=True)
                        (folder / name).hardlink_to(part / name)
                    lines.append(json.dumps(row))
            replace_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")

    def rows(self, corpus: str, split: str) -> Dataset:
        """Open a split with features of its volumes, or with its volumes where the tower is trained along."""
        dataset = open_split(self.folder(corpus), split)
        return dataset if corpus.startswith("scans") else self.with_features(dataset)

    def pairs(self) -> Dataset:
        return open_split(self.out / "studies" / "pairs", "test")

    def with_features(self, dataset: Dataset) -> Dataset:
        model, processor = load_embedded()
        return cache_features(
            model,
            processor,
            dataset,
            self.features_folder,
            batch_size=16,
            device="cuda" if torch.cuda.is_available() else None,
        )

    def write_features(self, corpora: set[str]) -> None:
        """Run the tower over what is read from a cache, before several processes train from it."""
        splits = {
            "ordinary": ("train", "validation", "test"),
            "low": ("train", "test"),
            "high": ("train", "test"),
        }
        for corpus in sorted(corpora & set(splits)):
            for split in splits[corpus]:
                self.rows(corpus, split)
        self.with_features(self.pairs())

    # ------------------------------------------------------------------------------------------------------- claim f

    def tower(self, corpus: str) -> str:
        """Return the checkpoint whose tower and image processor the runs on a corpus start from.

        For claim f both preprocessings give one channel. The pre-trained tower reads two, so both start from it with
        the weights of its channels averaged: none of the two has seen what it will read.
        """
        if not corpus.startswith("scans"):
            return "embedded"
        folder = self.out / "towers" / corpus
        if folder.exists():
            return str(folder)
        model, processor = load_embedded()
        config = type(model.config).from_dict(model.config.to_dict())
        config.vision_config.num_channels = 1
        start = Mu2ForConditionalGeneration(config)
        state = model.state_dict()
        (name,) = (key for key in state if key.endswith("patch_embedding.weight"))
        state[name] = state[name].unflatten(1, (2, -1)).mean(dim=1)  # voxels are channel by channel
        start.load_state_dict(state)
        fields = {"windows": [(-1000, 1000)]}
        if corpus == "scans_published":
            fields["mode"] = "official"
        image_processor = Mu2ImageProcessor(
            **{
                **_fields(processor.image_processor),
                **fields,
                "max_frames": config.tokenizer_config.max_frames,
            }
        )
        processor.image_processor = image_processor
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as partial:
            save_checkpoint(start, processor, partial)
        return str(folder)

    # --------------------------------------------------------------------------------------------------- the lookup

    def lookup(self, corpus: str) -> list[str]:
        """Answer test studies, then pairs, by [`look_up`]."""
        corpus = corpus.removesuffix("_published")
        path = self.out / "lookup" / f"{corpus}.json"
        if not path.exists():
            studies = [open_split(self.folder(corpus), "test")]
            if not corpus.startswith("scans"):
                studies.append(self.pairs())
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
        """Mean and maximum of the patches that hold anatomy, per study."""
        vectors = []
        for images in self.with_features(dataset)["images"]:
            tokens = read_features(images[0]).float()  # (slabs of anatomy, tokens, width)
            vectors.append(pool_patches(tokens[None], torch.ones(1, *tokens.shape[:1], 1))[0].numpy())
        return np.stack(vectors)


def load_embedded() -> tuple[Any, Any]:
    """Load the demo checkpoint, whose tower and language model every run starts from."""
    folder = embedded_checkpoint()
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def _fields(image_processor: Mu2ImageProcessor) -> dict[str, Any]:
    kept = ("spacing", "size", "num_slices", "patch_depth", "antialias")
    return {name: value for name, value in image_processor.to_dict().items() if name in kept}
