"""Put the runs of a grid together: means and spread over seeds, intervals over patients, floors, verdicts.

Reads: `done.json` and `columns.npz` of every run that is done, the lookup and the references.
Writes: `claims.json`; what the page and the figures show is in it and nowhere else.

A verdict compares two rows. It is "higher" or "lower" only where two 95 % intervals of the difference leave out zero:
over seeds (Student's t; of differences seed by seed where both rows start from one checkpoint, else with the pooled
deviation) and over patients (a bootstrap of the test studies, the same draws for both). Else it is "no difference".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from hf_mu2.data.phantom.folder import open_split
from hf_mu2.scoring.floors import floor_reports
from hf_mu2.scoring.labels import LABELS
from hf_mu2.scoring.resampling import bootstrap, interval, total

from .claims import judge_claims
from .ground import Ground
from .measure import MEASURES, UNOPTIMISED, References, pair_columns, pair_scores
from .names import reports_of
from .rows import ROWS, SEEDS, Row
from .run import is_done, run_folder

NUM_RESAMPLES = 1000
LEVEL = 0.95
NORMAL = 1.96  # standard errors to either side, for the same level


class Scored:
    """A row's values per seed and its resamples, mean over seeds."""

    def __init__(self, ground: Ground, row: Row, seeds: list[int], references: References) -> None:
        self.row, self.seeds = row, seeds
        self.facts = [
            json.loads((run_folder(ground, row.name, seed) / "done.json").read_text()) for seed in seeds
        ]
        runs = [score_columns(_load(run_folder(ground, row.name, seed)), references) for seed in seeds]
        self.values = {
            name: np.array([run[0].get(name, math.nan) for run in runs])
            for name in MEASURES
            if name != "image_dependence"
        }
        self.draws = {
            name: np.mean([run[1][name] for run in runs], axis=0)
            for name in runs[0][1]
            if name in self.values
        }
        self.values["image_dependence"] = np.array([fact["image_dependence"] for fact in self.facts])
        # Of the same studies on every seed, so that seeds do not narrow it.
        self.dependence_error = float(np.mean([fact["image_dependence_se"] for fact in self.facts]))

    def over_patients(self, name: str) -> tuple[float, float]:
        """95 % interval of the mean over seeds, over patients."""
        if name == "image_dependence":
            half = NORMAL * self.dependence_error
            return self.values[name].mean() - half, self.values[name].mean() + half
        return interval(self.draws[name], LEVEL)

    def to_dict(self) -> dict[str, Any]:
        """Lay out means, spread and intervals."""
        measures: dict[str, Any] = {}
        for name in MEASURES:
            values = self.values[name]
            if np.isnan(values).any():
                measures[name] = None
                continue
            low, high = self.over_patients(name)
            measures[name] = {
                "values": [round(float(value), 5) for value in values],
                "mean": float(values.mean()),
                "spread": float(values.std(ddof=1)) if len(values) > 1 else None,
                "low": _known(low),
                "high": _known(high),
            }
        row = self.row
        return {
            "claim": row.claim,
            "title": row.title,
            "about": row.about,
            "corpus": row.corpus,
            "against": row.against,
            "seeds": self.seeds,
            "seconds": float(np.mean([fact["seconds"] for fact in self.facts])),
            "not_run": None,
            "measures": measures,
            "differences": {},
            "clears_lookup": {},
            "note": "",
        }


def score_columns(
    columns: dict[str, np.ndarray], references: References
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Score sums per study: values, and resamples over patients (pairs are patients of their own)."""
    of_pairs = {
        name: column for name, column in columns.items() if name in ("paired_change", "changed_finding")
    }
    of_studies = {name: column for name, column in columns.items() if name not in of_pairs}
    values = {name: float(value) for name, value in references.scores(total(of_studies)).items()}
    draws = bootstrap(of_studies, references.patients, references.scores, num_resamples=NUM_RESAMPLES, seed=0)
    if of_pairs:
        values |= {name: float(value) for name, value in pair_scores(total(of_pairs)).items()}
        owners = [str(number) for number in range(len(of_pairs["paired_change"]))]
        draws |= bootstrap(of_pairs, owners, pair_scores, num_resamples=NUM_RESAMPLES, seed=0)
    return values, draws


def compare(first: Scored, second: Scored) -> dict[str, dict[str, Any]]:
    """Say how `first` differs from `second` in every measure both have."""
    is_paired = first.row.start is not None and first.row.start in (second.row.start, second.row.name)
    found = {}
    for name in MEASURES:
        mine, theirs = first.values[name], second.values[name]
        if name == "accuracy_all_negative" or np.isnan(mine).any() or np.isnan(theirs).any():
            continue
        difference = float(mine.mean() - theirs.mean())
        seed_low, seed_high = seed_interval(mine, theirs, is_paired and first.seeds == second.seeds)
        if name == "image_dependence":  # as if of other studies: who depends how far is not kept
            half = NORMAL * math.hypot(first.dependence_error, second.dependence_error)
            low, high = difference - half, difference + half
        else:
            low, high = interval(first.draws[name] - second.draws[name], LEVEL)
        found[name] = describe(difference, seed_low, seed_high, low, high)
    return found


def seed_interval(first: np.ndarray, second: np.ndarray, is_paired: bool) -> tuple[float, float]:
    """95 % t interval of a difference of means over seeds; unbounded where there is one seed."""
    difference = first.mean() - second.mean()
    if is_paired:
        freedom = len(first) - 1
        error = (first - second).std(ddof=1) / math.sqrt(len(first)) if freedom > 0 else math.inf
    else:
        freedom = len(first) + len(second) - 2
        squares = ((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum()
        enough = len(first) > 1 and len(second) > 1
        error = math.sqrt(squares / freedom * (1 / len(first) + 1 / len(second))) if enough else math.inf
    half = student.ppf(0.5 + LEVEL / 2, freedom) * error if freedom > 0 else math.inf
    return float(difference - half), float(difference + half)


def describe(difference: float, seed_low: float, seed_high: float, low: float, high: float) -> dict[str, Any]:
    """Lay out a difference and its verdict."""
    is_higher, is_lower = seed_low > 0 and low > 0, seed_high < 0 and high < 0  # never where one is undefined
    return {
        "difference": difference,
        "seed_low": _known(seed_low),
        "seed_high": _known(seed_high),
        "low": _known(low),
        "high": _known(high),
        "verdict": "higher" if is_higher else "lower" if is_lower else "no difference",
    }


def clears(scored: Scored, bar: tuple[dict[str, float], dict[str, np.ndarray]]) -> dict[str, Any]:
    """Compare a row with the lookup, which has no seed: the row's own spread against a number."""
    found = {}
    for name in ("macro_f1", "crg", "coverage"):
        values, others = scored.values[name], np.full(len(scored.values[name]), bar[0][name])
        seed_low, seed_high = seed_interval(values, others, is_paired=True)
        low, high = interval(scored.draws[name] - bar[1][name], LEVEL)
        found[name] = describe(float(values.mean() - bar[0][name]), seed_low, seed_high, low, high)
    return found


def floors(ground: Ground, corpus: str, references: References) -> dict[str, Any]:
    """Score what is written without a generator: three floors and the lookup."""
    train, test = (open_split(ground.folder(corpus), split) for split in ("train", "test"))
    texts = [completion[0]["content"] for completion in train["completion"]]
    asked = [test, ground.pairs()]
    known = np.array([[row[name] for name in LABELS] for row in train["labels"]], dtype=float)
    truth = np.array(
        [[row[name] for name in LABELS] for rows in asked for row in rows["labels"]], dtype=float
    )
    patients = [patient for rows in asked for patient in rows["patient_id"]]
    written = floor_reports(truth, patients, texts, known, train["patient_id"])
    written["lookup"] = ground.lookup(corpus)
    scored = {}
    for name, answers in written.items():
        columns = references.columns(list(answers[: len(test)])) | pair_columns(ground, answers[len(test) :])
        scored[name] = score_columns(columns, references)
    return scored


def collect(ground: Ground) -> dict[str, Any]:
    """Collect every row of which a run is done."""
    references_of = cache(lambda corpus: References(ground, corpus))
    reported = {name: row for name, row in ROWS.items() if not row.is_choice}
    scored: dict[str, Scored] = {}
    for name, row in reported.items():
        seeds = [seed for seed in row.seeds if is_done(ground, name, seed)]
        if seeds:
            scored[name] = Scored(ground, row, seeds, references_of(reports_of(row.corpus)))
    corpora = sorted({reports_of(each.row.corpus) for each in scored.values()})
    bars = {corpus: floors(ground, corpus, references_of(corpus)) for corpus in corpora}
    rows: dict[str, Any] = {}
    for name, row in reported.items():
        if name not in scored:
            rows[name] = _empty(row)
            continue
        rows[name] = scored[name].to_dict()
        if not row.is_shared:
            rows[name]["clears_lookup"] = clears(scored[name], bars[reports_of(row.corpus)]["lookup"])
        if row.against in scored:
            rows[name]["differences"] = compare(scored[name], scored[row.against])
            rows[name]["note"] = judge_note(row, rows[name]["differences"])
    result = {
        "protocol": ground.protocol.to_dict(),
        "provenance": {
            "command": "make claims ROWS=everything DOCS=docs",
            "runs": sum(len(each.seeds) for each in scored.values()),
            "run_minutes": sum(fact["seconds"] for each in scored.values() for fact in each.facts) / 60,
            **{
                f"{key}s": sorted({fact[key] for each in scored.values() for fact in each.facts})
                for key in ("device", "commit", "date")
            },
            "versions": sorted({fact["versions"] for each in scored.values() for fact in each.facts}),
        },
        "measures": list(MEASURES),
        "floors": {
            corpus: {name: _floor(*found) for name, found in bar.items()} for corpus, bar in bars.items()
        },
        "rows": rows,
        "choices": choices(ground),
    }
    result["claims"] = judge_claims(result)
    return result


def choices(ground: Ground) -> list[dict[str, Any]]:
    """Validation losses on the first seed: of the learning rate that was taken, and of others."""
    found = []
    for name, row in ROWS.items():
        if (row.is_choice or name in ("all", "baseline")) and is_done(ground, name, SEEDS[0]):
            path = run_folder(ground, name, SEEDS[0]) / "done.json"
            rate = row.steps[0].get("learning_rate", ground.protocol.learning_rate)
            loss = json.loads(path.read_text())["validation_loss"]
            found.append({"row": name.split("_")[0], "learning_rate": rate, "validation_loss": loss})
    return sorted(found, key=lambda each: (each["row"], each["learning_rate"]))


def judge_note(row: Row, differences: Mapping[str, Any]) -> str:
    """Say where only the judge that a row was optimised for gained."""
    judge = differences.get(row.judged_by or "")
    if judge is None or judge["verdict"] != "higher":
        return ""
    gained = [name for name in UNOPTIMISED if differences.get(name, {}).get("verdict") == "higher"]
    return "" if gained else "a gain in the optimised judge alone"


def _load(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "columns.npz") as file:
        return {name: file[name] for name in file.files}


def _floor(values: dict[str, float], draws: dict[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in MEASURES:
        if math.isnan(values.get(name, math.nan)):
            found[name] = None
            continue
        low, high = interval(draws[name], LEVEL)
        found[name] = {"value": values[name], "low": _known(low), "high": _known(high)}
    return found


def _empty(row: Row) -> dict[str, Any]:
    keys = ("claim", "title", "about", "corpus", "against")
    return {key: getattr(row, key) for key in keys} | {
        "seeds": [], "seconds": None, "not_run": "not run", "measures": {}, "differences": {}, "clears_lookup": {},
        "note": "",
    }  # fmt: skip


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
