"""What a corpus builder is made of: facts about the corpus, rows, and an account of what was left out.

A builder is a module of this folder with two names:

- `INFO`, a [`CorpusInfo`];
- `read_studies(root, drops, **options)`, which yields rows of [`~hf_mu2.data.study.make_study`] in a stable order,
  opens no volume, holds no more than an index in memory, and tells `drops` about everything it leaves out.
"""

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any


class CorpusError(ValueError):
    """The tree on disk is not what the corpus's layout says."""


@dataclass(frozen=True)
class CorpusInfo:
    """What is known of a corpus before any file is opened.

    Args:
        name (`str`): The builder's name, that of its module.
        title (`str`): What people call it.
        licence (`str`): Licence identifier as the Hub writes it, e.g. `"cc-by-nc-sa-4.0"`; `"other"` with `terms`.
        terms (`str`): What one must do or may not do, in a sentence.
        egress (`bool`): Whether report text may be sent to another machine.
        redistributable (`bool`): Whether `publish dataset` may upload it.
        regions (`tuple[str, ...]`): Parts of the body it shows.
        split_policy (`str`): Who is in which split, in a sentence.
    """

    name: str
    title: str
    licence: str
    terms: str
    url: str
    citation: str
    egress: bool
    redistributable: bool
    regions: tuple[str, ...]
    split_policy: str


@dataclass
class Drops:
    """An account of the studies that were left out: nothing is ever dropped without being counted.

    `reasons` counts, `examples` holds the first few ids of each reason, `notes` counts what was mended and kept.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, study_id: str) -> None:
        """Count a study that is left out. `reason` is a phrase shared by all such studies."""
        self.reasons[reason] += 1
        self._remember(reason, study_id)

    def note(self, remark: str, study_id: str) -> None:
        """Count a study that is kept although something about it is unusual."""
        self.notes[remark] += 1
        self._remember(remark, study_id)

    def summary(self) -> str:
        """Say in a line how many were left out and why, the most frequent reason first."""
        return ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())

    def to_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return counts and examples, as JSON holds them."""

        def account(counts: Counter[str]) -> dict[str, dict[str, Any]]:
            return {
                key: {"count": count, "examples": self.examples[key]} for key, count in counts.most_common()
            }

        return {"drops": account(self.reasons), "notes": account(self.notes)}

    def _remember(self, reason: str, study_id: str, limit: int = 5) -> None:
        examples = self.examples.setdefault(reason, [])
        if len(examples) < limit:
            examples.append(study_id)


def share_of(key: str, seed: int = 0) -> float:
    """Map a name to a number in [0, 1) that looks random and never changes."""
    return int.from_bytes(sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64


def cut_validation(patient_id: str, share: float, seed: int = 0) -> str:
    """Put a patient of an official training part in `"validation"` or `"train"`, by a hash of the patient.

    A patient's part depends on nothing but the patient, `share` and `seed`: it stays when studies are added, and a
    larger share keeps everyone who was in a smaller one.
    """
    return "validation" if share_of(patient_id, seed) < share else "train"


def cut_parts(key: str, validation_share: float, test_share: float, seed: int = 0) -> str:
    """Cut a corpus without official parts into `"test"`, `"validation"` and `"train"`, by a hash of `key`."""
    share = share_of(key, seed)
    if share < test_share:
        return "test"
    return "validation" if share < test_share + validation_share else "train"


def inside(root: Path, path: str | Path) -> Path:
    """Resolve `path` under `root`.

    Raises:
        CorpusError: if it leaves `root`, by `..`, as an absolute path or through a symbolic link.
    """
    resolved = (root / path).resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise CorpusError(
            f"Paths of a corpus stay inside its folder, got `{path}`, which leaves `{root}`. "
            "Copy the file into the folder, or pass the folder that holds everything as the root."
        )
    return resolved


def required(root: Path, *names: str) -> Path:
    """Return the first of `names` that exists under `root`.

    Raises:
        CorpusError: if none does; names what was looked for and what is there.
    """
    for name in names:
        if (root / name).exists():
            return inside(root, name)
    there = (
        sorted(entry.name for entry in root.iterdir())[:12] if root.is_dir() else "nothing: no such folder"
    )
    raise CorpusError(
        f"The corpus needs {' or '.join(f'`{name}`' for name in names)} under `{root}`, found {there}. "
        "Pass the folder that holds it as the root, or download the missing part."
    )
