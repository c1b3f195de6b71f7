"""The folder of preference pairs: its columns, its Parquet files and its card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Nifti, Value
from huggingface_hub import DatasetCardData

from hf_mu2.scoring.hygiene import patient_of

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Couple:
    """A candidate and a worse one of the same study, before they are written as a row.

    Args:
        row (`Mapping`): The scored study.
        source (`str`): `"sampled"`, `"noise"` or `"other_patient"`.
        chosen, rejected (`Mapping`): Candidates of the study; or `text` alone, where nothing was scored.
    """

    row: Row
    source: str
    chosen: Row
    rejected: Row

    @property
    def patient_id(self) -> str:
        return self.row["patient_id"] or patient_of(self.row["study_id"])

    def to_row(self) -> dict[str, Any]:
        """Write the columns of [`pair_features`], `images` as text."""
        chosen_score, rejected_score = total_of(self.chosen), total_of(self.rejected)
        return {
            "study_id": self.row["study_id"],
            "patient_id": self.patient_id,
            "egress": self.row["egress"],
            "prompt": _plain_prompt(self.row),
            "chosen": [{"role": "assistant", "content": self.chosen["text"]}],
            "rejected": [{"role": "assistant", "content": self.rejected["text"]}],
            "images": list(self.row["images"]),
            "chosen_score": chosen_score,
            "rejected_score": rejected_score,
            "margin": None
            if chosen_score is None or rejected_score is None
            else chosen_score - rejected_score,
            "chosen_label_f1": label_f1_of(self.chosen),
            "rejected_label_f1": label_f1_of(self.rejected),
            "signature": self.row["signature"],
            "source": self.source,
        }


def total_of(candidate: Row) -> float | None:
    """Return the total score of a candidate, `None` for a text that was not scored."""
    return candidate["scores"]["total"] if "scores" in candidate else None


def label_f1_of(candidate: Row) -> float | None:
    return candidate["scores"]["label_f1"] if "scores" in candidate else None


def pair_features(lazy_nifti: bool) -> Features:
    """Return the columns of a pair; `images` as `List(Nifti())` or as text."""
    text, number = Value("string"), Value("float64")
    messages = List({"role": text, "content": text})
    return Features(
        {
            "study_id": text,
            "patient_id": text,
            "egress": Value("bool"),
            "prompt": messages,
            "chosen": messages,
            "rejected": messages,
            "images": List(Nifti()) if lazy_nifti else List(text),
            "chosen_score": number,
            "rejected_score": number,
            "margin": number,
            "chosen_label_f1": number,
            "rejected_label_f1": number,
            "signature": text,
            "source": text,
        }
    )


class PairFile:
    """One split being written, row group by row group; no file without a pair.

    Not by `to_parquet` of `datasets`, which would copy volumes into the file.
    """

    def __init__(self, path: Path, lazy_nifti: bool):
        self.path, self.lazy_nifti, self.waiting = path, lazy_nifti, list[dict[str, Any]]()
        self.schema = pair_features(lazy_nifti).arrow_schema
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> PairFile:
        return self

    def add(self, couple: Couple) -> None:
        """Take a pair; it is written with the next thousand."""
        pair = couple.to_row()
        if self.lazy_nifti:
            pair = pair | {"images": [{"bytes": None, "path": path} for path in pair["images"]]}
        self.waiting.append(pair)
        if len(self.waiting) == 1024:
            self._flush()

    def __exit__(self, *error: object) -> None:
        if self.waiting:
            self._flush()
        if self.writer is not None:
            self.writer.close()

    def _flush(self) -> None:
        if self.writer is None:
            self.path.parent.mkdir(exist_ok=True)
            self.writer = pq.ParquetWriter(self.path, self.schema)
        self.writer.write_table(pa.Table.from_pylist(self.waiting, schema=self.schema))
        self.waiting = []


def _plain_prompt(row: Row) -> list[dict[str, str]]:
    """Write the prompt with texts as contents: TRL puts a place for each volume before the first of the user's."""
    prompt = []
    for message in row["prompt"]:
        content = message["content"]
        if not isinstance(content, str):
            blocks = [block for block in content if block["type"] != "image"]
            if any(block["type"] == "image" for block in content[len(content) - len(blocks) :]):
                raise ValueError(
                    f"A prompt shows its volumes before its text, that of study `{row['study_id']}` shows one after "
                    "some text. Ask with a text alone."
                )
            content = "\n".join(block["text"] for block in blocks)
        prompt.append({"role": message["role"], "content": content})
    return prompt


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_card(folder: Path, counts: Mapping[str, int], signature: str, account: str) -> str:
    """Return the README that names the files of each split. The digest tells `datasets` these rows from others."""
    digest = "".join(digest_file(path) for path in sorted(folder.glob("data/*.parquet")))
    splits = [{"split": split, "path": f"data/{split}-*.parquet"} for split in counts]
    config = {"config_name": "default", "description": f"Rows {digest}.", "data_files": splits}
    data = DatasetCardData(configs=[config], tags=["preference", "dpo", "trl", "hf_mu2"])
    lines = "\n".join(f"- `{split}`: {count:,} pairs" for split, count in counts.items())
    return (
        f"---\n{data.to_yaml()}\n---\n\n# Preference pairs\n\nMade by `hf-mu2 pairs`; scores: `{signature}`. Volumes "
        "are named, not held: this folder serves where their paths do. The terms of the corpus hold for its texts. "
        f"Research use, not a medical device.\n\n{lines}\n\n{account}\n"
    )
