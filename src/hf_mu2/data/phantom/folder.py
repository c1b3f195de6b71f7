"""Write PhantomCT studies as a folder that `load_dataset` and `trl sft|dpo --dataset_name` open directly.

Reads: nothing; every study is computed from its seed.
Writes: NIfTI volumes and `metadata.jsonl`; masks beside, in `<out>_masks`.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hf_mu2.files import replace_text, replacing

from ..study import FINDING_LABELS
from .anatomy import stream
from .generate import GENERATOR_VERSION, make_phantom, spoil
from .regions import PROMPTS


def write_phantoms(
    out: str | Path,
    n: int,
    seed: int = 0,
    *,
    view: str = "sft",
    spacing: Sequence[float] | None = None,
    difficulty: str = "standard",
    split: str = "train",
    num_workers: int = 1,
) -> Path:
    """Write studies `seed` to `seed + n - 1` as a folder for `load_dataset` and TRL; return the folder.

    A killed run continues where it stopped. Masks go to `<out>_masks`, outside what `load_dataset(out)` sweeps up.

    Args:
        view (`str`): `"sft"` (prompt, completion) or `"preference"` (prompt, chosen, rejected; the rejected report
            has one finding dropped, added or moved to the other side).
        spacing (`Sequence[float]`, *optional*): mm along (z, y, x); drawn per study when not given.
        num_workers (`int`): Processes.
    """
    if view not in ("sft", "preference"):
        raise ValueError(f'`view` must be "sft" or "preference", got "{view}". Pass one of the two.')
    if n < 1:
        raise ValueError(f"`n` must be at least 1, got {n}. Pass the number of studies to write.")
    out = Path(out)
    folder, masks = out / split, Path(f"{out}_masks") / split
    folder.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    manifest = {
        "dataset": "PhantomCT",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "n": n,
        "view": view,
        "spacing": None if spacing is None else list(spacing),
        "difficulty": difficulty,
        "labels": list(FINDING_LABELS),
        "licence": "CC0-1.0",
        "notice": "Synthetic CT only. Research use, not a medical device.",
    }
    record = out / f"manifest_{split}.json"
    if record.exists() and json.loads(record.read_text()) != manifest:
        raise ValueError(
            f"A folder of phantoms is continued only with the settings it was begun with, `{record}` says otherwise. "
            "Choose an empty folder or pass the same arguments."
        )
    replace_text(record, json.dumps(manifest, indent=2) + "\n")
    jobs = [(seed + i, folder, masks, view, spacing, difficulty) for i in range(n)]
    if num_workers > 1:
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            rows = list(pool.map(_write_study, jobs, chunksize=4))
    else:
        rows = [_write_study(job) for job in jobs]
    replace_text(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    replace_text(out / "README.md", _card(manifest))
    return out


def _write_study(job: tuple) -> dict:
    import nibabel as nib

    seed, folder, masks, view, spacing, difficulty = job
    row_path = masks / f"phantom_{seed:06d}.json"  # written last: its presence means the study is complete
    if row_path.exists():
        return json.loads(row_path.read_text())
    phantom = make_phantom(seed, spacing=spacing, difficulty=difficulty)
    name = f"{phantom.study_id}.nii.gz"
    for place, array in ((folder, phantom.volume), (masks, phantom.masks)):
        with replacing(place / name) as partial:
            nib.save(phantom.nifti(array), partial)
    prompt = str(stream(seed, "prompt").choice(PROMPTS))
    answer = phantom.report.text
    row: dict[str, Any] = {
        "images_file_names": [name],
        "study_id": phantom.study_id,
        "prompt": [{"role": "user", "content": prompt}],
    }
    if view == "sft":
        row["completion"] = [{"role": "assistant", "content": answer}]
    else:
        row["chosen"] = [{"role": "assistant", "content": answer}]
        row["rejected"] = [{"role": "assistant", "content": spoil(phantom, seed).text}]
    row |= {
        "findings": phantom.report.findings,
        "impression": phantom.report.impression,
        "labels": phantom.labels,
    }
    replace_text(row_path, json.dumps(row))
    return row


def _card(manifest: dict) -> str:
    return f"""---
license: cc0-1.0
pretty_name: PhantomCT
tags: [medical, ct, synthetic]
---
# PhantomCT

{manifest["n"]} synthetic chest CT studies with reports that follow from the drawn findings. {manifest["notice"]}

Seed {manifest["seed"]}, {manifest["difficulty"]}, view `{manifest["view"]}`, generator {manifest["generator_version"]}.
"""
