"""The papers' claims as comparisons of rows, and the answer that their verdicts give.

Reads: the collected rows. Every answer follows from their verdicts by the rule of `judge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .names import MEASURE_TITLES, reports_of
from .page import number

MU2 = "[mu2](https://huggingface.co/papers/2507.00316)"
NEGATIVE = "dual-path negative constraint, Gao and Zhao"
TWO_STAGE = "[two-stage fine-tuning](https://huggingface.co/papers/2312.01504)"
OURS = "ours"


@dataclass(frozen=True)
class Prediction:
    """A difference that a claim predicts: `row` is `direction` than `against` in `measure`."""

    row: str
    against: str
    measure: str
    direction: str = "higher"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, or one of ours.

    Args:
        tests (`tuple[Prediction, ...]`): What it predicts.
        changed (`str`): What we changed because of the answer.
        untestable (`str`, *optional*): Why nothing here can test it.
    """

    id: str
    paper: str
    claim: str
    tests: tuple[Prediction, ...] = ()
    changed: str = "Nothing."
    untestable: str = ""


def _higher(row: str, against: str, *measures: str) -> tuple[Prediction, ...]:
    return tuple(Prediction(row, against, measure) for measure in measures)


CLAIMS = (
    Claim(
        "a1", MU2, "All parts together are better than the LinVT baseline (Table 2).",
        _higher("all", "baseline", "macro_f1", "image_dependence"),
        "Nothing: it is the default.",
    ),
    Claim(
        "a2", MU2, "The relative positional bias helps.",
        _higher("rpe", "baseline", "macro_f1", "side_agreement"),
        "It stays, over three axes: positions cost little. We claim no gain for it.",
    ),
    Claim(
        "a3", MU2, "Differentiable token selection helps.",
        _higher("dts", "baseline", "macro_f1"),
        "Soft selection is the default, initialised to select; top-k is for comparisons.",
    ),
    Claim(
        "a4", MU2, "Dynamic multi-scale pooling helps.",
        _higher("dmtp", "baseline", "macro_f1"),
        "It stays: scales cost little. We claim no gain for it.",
    ),
    Claim(
        "a5", OURS, "The published refiner, without residual, costs quality.",
        (Prediction("published_refiner", "all", "macro_f1", "lower"),),
        "Our default refiner has residuals and norms. The collapse needs several layers; the preset `tiny` has one.",
    ),
    Claim(
        "a6", OURS, "A bias over three axes is better than one over the token index.",
        (Prediction("bias_1d", "all", "macro_f1", "lower"),),
        "Three axes stay the default, since neighbours in a volume are neighbours there.",
    ),
    Claim(
        "a7", OURS, "A gate that can vary is better than the published one, which cannot.",
        (Prediction("published_gate", "all", "macro_f1", "lower"),),
        "The gate that can vary stays the default; we claim no gain for it.",
    ),
    Claim(
        "a8", OURS, "Soft prompts that are kept apart are better than copies of one.",
        (Prediction("not_kept_apart", "all", "macro_f1", "lower"),),
        "The default keeps them apart: of 32 soft prompts 2 differed in the published form after training.",
    ),
    Claim(
        "b1", MU2, "mu2 keeps its lead with limited data.",
        tuple(Prediction(f"all_{n}", f"baseline_{n}", "macro_f1") for n in (1, 5, 10, 25)),
    ),
    Claim(
        "c1", MU2, "DPO on reports ranked by a judge lifts the judge's score over SFT.",
        (Prediction("dpo", "all", "report_f1"),),
        "GREEN needs a model of 7B: label-F1 stands in for it.",
    ),
    Claim(
        "c2", MU2, "What DPO gains is seen by measures that nobody optimised.",
        _higher("dpo", "all", "image_dependence", "changed_finding"),
    ),
    Claim("c3", OURS, "GRPO from the same start lifts the judge's score.", (Prediction("grpo", "all", "report_f1"),)),
    Claim(
        "d1", NEGATIVE, "Gaussian negatives raise Coverage and cost Accuracy.",
        (
            *(Prediction(f"{c}_gauss", f"{c}_origin", "coverage") for c in ("low", "high")),
            *(Prediction(f"{c}_gauss", f"{c}_origin", "accuracy", "lower") for c in ("low", "high")),
        ),
    ),
    Claim(
        "d2", NEGATIVE, "Negatives of heterogeneous cases raise Coverage and Accuracy.",
        tuple(Prediction(f"{c}_heter", f"{c}_origin", m) for c in ("low", "high") for m in ("coverage", "accuracy")),
    ),
    Claim(
        "d3", NEGATIVE, "Negatives make the model look at the image where reports can be written without.",
        tuple(
            Prediction(f"high_{arm}", "high_origin", "image_dependence")
            for arm in ("gauss", "heter", "heter_balanced", "hard")
        ),
        "The balanced draw is our default: the paper's draw uses few volumes as negatives of almost all.",
    ),
    Claim(
        "d4", NEGATIVE, "Too large a beta makes reports short.",
        tuple(Prediction(f"{c}_gauss_0.2", f"{c}_origin", "words", "lower") for c in ("low", "high")),
    ),
    Claim(
        "e1", TWO_STAGE, "Aligning first, then tuning, is better than one stage of the same length.",
        _higher("two_stage", "all", "macro_f1"),
    ),
    Claim(
        "f1", OURS, "HU windows at a fixed spacing beat the published preprocessing on studies of 1 to 8 mm.",
        _higher("scans_ours", "scans_published", "macro_f1", "image_dependence"),
        "Our default resamples, keeps HU and masks what is empty; `official` is for converted weights.",
    ),
    Claim(
        "g1", MU2, "DPO lifts GREEN by about 20 % on AMOS-MM.",
        untestable="Neither the judge nor real weights run here.",
    ),
    Claim(
        "g2", NEGATIVE, "Nodules under 3 mm gain least.",
        untestable="PhantomCT draws no lesion under 3 mm, and voxels of 4.5 mm would not show one.",
    ),
)  # fmt: skip


def judge_claims(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Answer every claim from the differences of the rows it names."""
    return [
        {"id": claim.id, "paper": claim.paper, "claim": claim.claim, "changed": claim.changed}
        | judge(claim, result)
        for claim in CLAIMS
    ]


def judge(claim: Claim, result: Mapping[str, Any]) -> dict[str, str]:
    """Answer one claim: it holds where every test comes out as predicted, and fails where one comes out opposite.

    Where two rows do not differ because neither has learned anything, nothing can be told.
    """
    if not claim.tests:
        return {"answer": "cannot be tested here", "measured": claim.untestable}
    outcomes, measured = [], []
    for test in claim.tests:
        row = result["rows"][test.row]
        found = row["differences"].get(test.measure) if row["against"] == test.against else None
        if found is None:
            continue
        outcome = "as predicted" if found["verdict"] == test.direction else found["verdict"]
        sentence = describe(result, test, found)
        if outcome == "no difference" and is_unlearned(result, test):
            outcome, sentence = "unlearned", f"{sentence} Neither beats a random report."
        outcomes.append(outcome)
        measured.append(sentence)
    if not outcomes:
        return {"answer": "not run", "measured": ""}
    agreeing = outcomes.count("as predicted")
    if set(outcomes) == {"unlearned"}:
        return {"answer": "cannot be told at this size", "measured": " ".join(measured)}
    if agreeing == len(claim.tests):
        answer = "holds"
    elif any(outcome not in ("as predicted", "no difference", "unlearned") for outcome in outcomes):
        answer = "does not hold" if not agreeing else "partly"
    else:
        answer = "partly" if agreeing else "no difference"
    return {"answer": answer, "measured": " ".join(measured)}


def is_unlearned(result: Mapping[str, Any], test: Prediction) -> bool:
    """Whether both rows know no more than a report that was written without looking.

    That is a score no higher than that of random reports, or image dependence whose interval reaches zero.
    """
    if test.measure == "words":  # no number of them is better
        return False
    rows = [result["rows"][name] for name in (test.row, test.against)]
    scores = [row["measures"][test.measure] for row in rows]
    if test.measure == "image_dependence":
        return all(score["low"] <= 0 for score in scores)
    floors = result["floors"].get(reports_of(rows[0]["corpus"]), {})
    floor = floors.get("random", {}).get(test.measure)
    return floor is not None and all(score["mean"] <= floor["high"] for score in scores)


def describe(result: Mapping[str, Any], test: Prediction, found: Mapping[str, Any]) -> str:
    """Say one difference in a sentence."""
    rows = result["rows"]
    mine, theirs = (rows[name]["measures"][test.measure]["mean"] for name in (test.row, test.against))
    title, other = rows[test.row]["title"], rows[test.against]["title"]
    return (
        f"{MEASURE_TITLES[test.measure]}: {title} {number(mine, test.measure)}, {other} "
        f"{number(theirs, test.measure)}, {found['verdict']} ({number(found['difference'], test.measure, sign=True)})."
    )
