"""Write PhantomCT studies as an AMOS-MM archive: the same file names, keys and ids, with synthetic contents.

Writes: `report_generation_train_val.json` and `vqa_train_val.json`, or `dataset.json`; `imagesTr`, `imagesVa`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_mu2.files import replace_text

from ..amos_mm import FUSED, QUESTIONS, REGIONS, REPORTS
from ..nifti import save_nifti
from .anatomy import stream
from .generate import Phantom

LICENCE = "CC0-1.0 (synthetic)"
FIRST_ID = 5000


def write_amos_mm_tree(
    root: str | Path,
    studies: Sequence[Phantom],
    *,
    num_validation: int = 1,
    is_fused: bool = False,
) -> Path:
    """Write studies in the layout of AMOS-MM and return `root`.

    A study has findings in its own region; the others are empty, as they often are in AMOS-MM.

    Args:
        num_validation (`int`): How many of the last studies go to the official validation part.
        is_fused (`bool`): Write one `dataset.json` with reports and questions instead of two files.
    """
    root = Path(root)
    reports: dict[str, Any] = {"licence": LICENCE, "training": [], "validation": []}
    questions: dict[str, Any] = {"licence": LICENCE, "training": [], "validation": []}
    for index, phantom in enumerate(studies):
        is_training = index < len(studies) - num_validation
        part, folder = ("training", "imagesTr") if is_training else ("validation", "imagesVa")
        image = f"./{folder}/amos_{FIRST_ID + index:04d}.nii.gz"
        write_volume(phantom, root / image)
        meta = {"spacing": [round(mm, 4) for mm in phantom.spacing[::-1]]}
        findings = {name: phantom.report.findings if name == phantom.region else "" for name in REGIONS}
        report, qa = {"findings": findings}, _questions(phantom, index)
        labels = {"report": report, "qa": qa} if is_fused else {"report": report}
        reports[part].append({"image": image, "meta": meta, "labels": labels})
        questions[part].append({"image": image, "meta": meta, "labels": {"qa": qa}})
    replace_text(root / (FUSED if is_fused else REPORTS), json.dumps(reports, indent=1))
    if not is_fused:
        replace_text(root / QUESTIONS, json.dumps(questions, indent=1))
    return root


def write_volume(phantom: Phantom, path: Path) -> None:
    """Write the volume of a study as NIfTI, in the orientation it asks for."""
    save_nifti(phantom.nifti(), path)


def _questions(phantom: Phantom, seed: int) -> list[dict[str, Any]]:
    """Ask which of four findings is present, where there is one."""
    rng = stream(seed, "question")
    present = [label for label, value in phantom.labels.items() if value]
    absent = [label for label, value in phantom.labels.items() if not value]
    if not present or len(absent) < 3:
        return []
    choices = [str(rng.choice(present)), *(str(label) for label in rng.choice(absent, 3, replace=False))]
    order = rng.permutation(4)
    options = {letter: choices[place] for letter, place in zip("ABCD", order, strict=True)}
    return [
        {
            "question": "Which of these does the CT show?",
            "options": options,
            "answer": "ABCD"[list(order).index(0)],
            "type": "perception",
            "reasoning": f"{choices[0]} was drawn, the others were not.",
        }
    ]
