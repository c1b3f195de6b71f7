"""Write PhantomCT studies as a folder that `load_dataset` and `trl sft|dpo --dataset_name` open directly.

Reads: nothing; every study is computed from its seed.
Writes: NIfTI volumes and `metadata.jsonl`; masks beside, in `<out>_masks`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mu2.files import replace_text

from ..nifti import save_nifti
from .anatomy import stream
from .generate import GENERATOR_VERSION, Phantom, check_spacing, make_phantom, spoil
from .regions import BODY_REGIONS, body_region

if TYPE_CHECKING:
    from datasets import Dataset

NOTICE = "Synthetic CT only. Research use, not a medical device."
VIEWS = ("sft", "preference")


@dataclass(frozen=True)
class PhantomFolder:
    """One split of a folder of phantoms being written; opening it records the settings, or compares them.

    Args:
        settings (`Mapping`): What the manifest says beside versions and licence: at least `seed`, `n`, `view`, `region`
            and `difficulty`.

    Raises:
        ValueError: if the folder was begun with other settings.
    """

    out: Path
    split: str
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+(\.\w+)*", self.split):
            raise ValueError(
                f"A split is named with letters, digits, `_` and `.`, got `{self.split}`. E.g. `train`."
            )
        if self.settings["spacing"] is not None:
            check_spacing(self.settings["spacing"])  # before the folder is claimed for these settings
        record = self.out / f"manifest_{self.split}.json"
        if record.exists() and _settings_of(record) != self.manifest:
            raise ValueError(
                "A folder of phantoms is continued only with the settings it was begun with, "
                f"`{record}` says otherwise. Choose an empty folder or pass the same arguments."
            )
        self.images.mkdir(parents=True, exist_ok=True)
        self.masks.mkdir(parents=True, exist_ok=True)
        replace_text(record, json.dumps(self.manifest, indent=2) + "\n")

    @property
    def manifest(self) -> dict[str, Any]:
        labels = list(BODY_REGIONS[self.settings["region"]].labels)
        versions = {"dataset": "PhantomCT", "generator_version": GENERATOR_VERSION}
        return versions | dict(self.settings) | {"labels": labels, "licence": "CC0-1.0", "notice": NOTICE}

    @property
    def images(self) -> Path:
        return self.out / self.split

    @property
    def masks(self) -> Path:
        return Path(f"{self.out}_masks") / self.split

    def finished(self, study_id: str) -> dict[str, Any] | None:
        """Return the row of a study that is complete."""
        path = self.masks / f"{study_id}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, phantom: Phantom, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write volume, masks and row of a study; `facts` are added to its metadata."""

        name = f"{phantom.study_id}.nii.gz"
        for place, array in ((self.images, phantom.volume), (self.masks, phantom.masks)):
            save_nifti(phantom.nifti(array), place / name)
        prompt = str(stream(phantom.seed, "prompt").choice(BODY_REGIONS[phantom.region].prompts))
        answer = phantom.report.text
        row: dict[str, Any] = {
            "images_file_names": [name],
            "study_id": phantom.study_id,
            "prompt": [{"role": "user", "content": prompt}],
        }
        if self.settings["view"] == "sft":
            row["completion"] = [{"role": "assistant", "content": answer}]
        else:
            row["chosen"] = [{"role": "assistant", "content": answer}]
            rejected = spoil(phantom, phantom.seed).text
            row["rejected"] = [{"role": "assistant", "content": rejected}]
        row |= {
            "findings": phantom.report.findings,
            "impression": phantom.report.impression,
            "labels": phantom.labels,
            "patient_id": f"phantom_{phantom.seed:06d}",
            "region": BODY_REGIONS[phantom.region].parts,
            "metadata": json.dumps(phantom.truth() | dict(facts or {}), sort_keys=True),
        }
        # Written last: its presence means the study is complete.
        replace_text(self.masks / f"{phantom.study_id}.json", json.dumps(row))
        return row

    def close(self, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write the rows of the split and the card; return the folder."""
        replace_text(self.images / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        replace_text(self.out / "README.md", _card(self.out))
        return self.out


def write_phantoms(
    out: str | Path,
    n: int,
    seed: int = 0,
    *,
    view: str = "sft",
    spacing: Sequence[float] | None = None,
    difficulty: str = "standard",
    region: str = "chest",
    text_shortcut: float | None = None,
    split: str = "train",
    num_workers: int = 1,
) -> Path:
    """Write studies `seed` to `seed + n - 1` as a folder for `load_dataset` and TRL; return the folder.

    A killed run continues where it stopped. Masks go to `<out>_masks`, outside what `load_dataset(out)` sweeps up.

    Args:
        view (`str`): `"sft"` (prompt, completion) or `"preference"` (prompt, chosen, rejected; the rejected report
            has one finding dropped, added or moved to the other side).
        spacing (`Sequence[float]`, *optional*): mm along (z, y, x); drawn per study when not given.
        difficulty, region, text_shortcut: As in [`make_phantom`].
        num_workers (`int`): Processes.
    """
    if view not in VIEWS:
        raise ValueError(f'`view` must be "sft" or "preference", got "{view}". Pass one of the two.')
    if n < 1:
        raise ValueError(f"`n` must be at least 1, got {n}. Pass the number of studies to write.")
    settings = {
        "seed": seed,
        "n": n,
        "view": view,
        "spacing": None if spacing is None else list(spacing),
        "difficulty": difficulty,
        "region": body_region(region).name,
        "text_shortcut": text_shortcut,
    }
    folder = PhantomFolder(Path(out), split, settings)
    jobs = [(folder, seed + number) for number in range(n)]
    if num_workers > 1:
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            rows = list(pool.map(_write_study, jobs, chunksize=4))
    else:
        rows = [_write_study(job) for job in jobs]
    return folder.close(rows)


def open_split(folder: str | Path, split: str) -> "Dataset":
    """Open a split of a folder of phantoms with the paths of the volumes in `images`."""
    from datasets import Dataset

    folder, rows = Path(folder) / split, []
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        row["images"] = [str(folder / name) for name in row.pop("images_file_names")]
        rows.append(row)
    return Dataset.from_list(rows)


def _write_study(job: tuple[PhantomFolder, int]) -> dict[str, Any]:
    folder, seed = job
    wanted = {name: folder.settings[name] for name in ("spacing", "difficulty", "region", "text_shortcut")}
    row = folder.finished(f"{BODY_REGIONS[wanted['region']].prefix}_{seed:06d}")
    return row or folder.write(make_phantom(seed, **wanted))


def _settings_of(record: Path) -> Any:
    """Read a manifest; one that is damaged says nothing."""
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _card(out: Path) -> str:
    """Describe every split of a folder, from the manifests."""
    manifests = {
        path.stem.removeprefix("manifest_"): json.loads(path.read_text()) for path in out.glob("manifest_*")
    }
    lines = [
        f"| {split} | {kept['n']} | {kept['seed']} | {kept['region']} | {kept['difficulty']} | {kept['view']} |"
        for split, kept in sorted(manifests.items())
    ]
    table = "\n".join(
        ["| split | n | first seed | region | difficulty | view |", "|---|---|---|---|---|---|", *lines]
    )
    return f"""---
license: cc0-1.0
pretty_name: PhantomCT
tags: [medical, ct, synthetic]
---
# PhantomCT

Synthetic CT studies with reports that follow from the drawn findings. {NOTICE}

{table}

Generator {GENERATOR_VERSION}. A patient is a seed; `metadata` has what was drawn: label, side, place, size and mask of
each finding.
"""
