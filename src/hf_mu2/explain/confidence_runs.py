"""Collect sentences with their features over a dataset, fit a calibration on them, and measure one.

Reads: studies (see `reporting/studies.py`), references, a checkpoint; then the sentences of `collect`.
Writes: one row per study with its sentences; `confidence.json`; `confidence_measured.json`, `reliability.png`.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hf_mu2.files import replace_file
from hf_mu2.reporting.environment import describe_command
from hf_mu2.reporting.inference import Reader, process_state, to_json
from hf_mu2.reporting.journal import Finished, SharedJournal
from hf_mu2.reporting.studies import Studies, read_batches
from hf_mu2.scoring.resampling import interval
from hf_mu2.scoring.rows import Rows, read_references
from hf_mu2.scoring.rows import read_rows as read_reports

from .confidence import (
    FEATURES,
    Calibration,
    answer_with_features,
    digest_weights,
    feature_row,
    is_right,
    read_statements,
)
from .evidence import check_explainable

NUM_BINS = 10


def collect_sentences(
    studies: Studies,
    references: Rows,
    out: str | Path,
    reader: Reader,
    *,
    num_samples: int = 8,
    seed: int = 0,
    max_new_tokens: int = 512,
    show_progress: bool = False,
) -> Finished:
    """Write the sentences of the report of every study, their features, and whether each is right.

    A killed run continues, on any number of processes.

    Raises:
        ValueError: if the checkpoint is no mu2 model, a study has no reference, or `out` exists or was begun with other
            settings.
    """
    check_explainable(reader)
    state = process_state()
    known = {report.study_id: report.text for report in read_references(references)[0]}
    if missing := [study_id for study_id in studies.ids if study_id not in known]:
        raise ValueError(
            f"Right and wrong need a reference for every study, {len(missing)} of {len(studies.ids)} have none, e.g. "
            f"`{missing[0]}`. Pass the references of this dataset."
        )
    settings = {
        "model": reader.name,
        "weights_digest": digest_weights(reader),
        "dataset_digest": studies.digest,
        "split": studies.split,
        "num_samples": num_samples,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
    }
    journal = SharedJournal(Path(out), settings, studies.ids, state)
    region = reader.model.config.body_region or ""
    mine = range(state.process_index, len(studies.ids), state.num_processes)
    indices = [index for index in mine if studies.ids[index] not in journal.finished]
    batches = read_batches(studies, indices, reader, None, 1)
    for index, batch in tqdm(
        zip(indices, batches),
        total=len(indices),
        unit="study",
        disable=not (show_progress and state.is_main_process),
    ):
        study_id = studies.ids[index]
        if batch.inputs is None:
            journal.add([{"study_id": study_id, "error": batch.refused[study_id]}])
            continue
        answer, sentences = answer_with_features(
            reader, batch.inputs, num_samples=num_samples, seed=seed + index, max_new_tokens=max_new_tokens
        )
        truth = [statement for _, statement in read_statements(known[study_id], region)]
        journal.add(
            [
                {
                    "study_id": study_id,
                    "patient_id": studies.describe(index).get("patient_id"),
                    "candidate": answer.text,
                    "sentences": [s.to_dict() | {"right": is_right(s.statements, truth)} for s in sentences],
                }
            ]
        )
    options = {"model": reader.name, "num_samples": num_samples, "seed": seed, "split": studies.split}
    return journal.close(
        {
            "notice": reader.notice,
            "command": describe_command(
                "hf-mu2 confidence collect DATASET --references FILE --out FILE", options
            ),
        }
    )


def fit_calibration(sentences: str | Path) -> Calibration:
    """Fit the logistic regression on a file of `collect_sentences`.

    Raises:
        ValueError: if all sentences are right or all are wrong.
        ImportError: if scikit-learn is not installed.
    """
    from sklearn.linear_model import LogisticRegression

    rows, manifest = _read(sentences)
    judged = [sentence for row in rows for sentence in row["sentences"] if sentence["right"] is not None]
    right = np.array([sentence["right"] for sentence in judged])
    if right.size == 0 or right.all() or not right.any():
        raise ValueError(
            f"A calibration needs right and wrong sentences, `{sentences}` has {int(right.sum())} right ones of "
            f"{right.size}. Collect more studies."
        )
    features = np.array([feature_row(sentence) for sentence in judged])
    spread = features.std(axis=0)
    scale = np.where(spread > 1e-6, spread, 1.0)  # one penalty for features of all units
    model = LogisticRegression(C=1.0, max_iter=1000).fit(features / scale, right)
    return Calibration(
        weights=tuple(round(float(weight), 6) for weight in model.coef_[0] / scale),
        intercept=round(float(model.intercept_[0]), 6),
        weights_digest=manifest["weights_digest"],
        num_samples=manifest["num_samples"],
        fitted_on={
            "studies": len(rows),
            "sentences": int(right.size),
            "dataset_digest": manifest["dataset_digest"],
        },
    )


def measure_calibration(
    sentences: str | Path, calibration: Calibration, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Measure how well confidence separates right from wrong, and how honest it is.

    Beside the calibrated confidence stand its parts and a floor, which knows only whether a sentence affirms a finding:
    denials are mostly right. AUROC is the probability that a right sentence has the higher confidence, ECE the mean gap
    between confidence and share of right sentences over ten bins of equal width, weighted by their sentences
    (https://huggingface.co/papers/1706.04599). Intervals are percentiles over studies drawn with replacement.

    Raises:
        ValueError: if the sentences are of another checkpoint than the calibration, or of the data it was fitted on.
    """
    rows, manifest = _read(sentences)
    if manifest["weights_digest"] != calibration.weights_digest:
        raise ValueError(
            f"A calibration holds for its checkpoint, `{sentences}` is of another one. Fit one for it."
        )
    if manifest["dataset_digest"] == calibration.fitted_on["dataset_digest"]:
        raise ValueError(
            f"A calibration is measured on studies it has not seen, it was fitted on those of `{sentences}`. Collect "
            "another split."
        )
    studies = [[s for s in row["sentences"] if s["right"] is not None] for row in rows]
    judged = [sentence for study in studies for sentence in study]
    owner = np.repeat(np.arange(len(studies)), [len(study) for study in studies])
    right = np.array([sentence["right"] for sentence in judged], float)
    features = np.array([feature_row(sentence) for sentence in judged])
    logit = calibration.intercept + features @ np.array(calibration.weights)
    confidence = 1 / (1 + np.exp(-logit))
    columns = dict(zip(FEATURES, features.T))
    scores = {"confidence": confidence, **columns, "floor: affirms or denies": -columns["affirms"]}
    del scores["affirms"]
    groups = {
        "all": np.ones(len(right), bool),
        "affirming": columns["affirms"] > 0,
        "denying": columns["affirms"] == 0,
    }
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(studies), np.full(len(studies), 1 / len(studies)), num_resamples)[:, owner]

    def with_interval(measure: Any, *values: np.ndarray) -> dict[str, float]:
        found = np.array([measure(*values, weight) for weight in draws])
        low, high = interval(found)
        return {"value": float(measure(*values, np.ones(len(values[0])))), "low": low, "high": high}

    auroc: dict[str, dict[str, Any]] = {}
    for group, chosen in groups.items():
        auroc[group] = {"sentences": int(chosen.sum()), "right": int(right[chosen].sum())}
        for name, score in scores.items():
            if group == "all" or not name.startswith("floor"):
                auroc[group][name] = with_interval(
                    lambda r, s, w, chosen=chosen: weighted_auroc(r[chosen], s[chosen], w[chosen]),
                    right,
                    score,
                )
    return {
        "notice": manifest["notice"],
        "model": manifest["model"],
        "studies": len(rows),
        "sentences": len(judged),
        "unjudged": sum(s["right"] is None for row in rows for s in row["sentences"]),
        "share_right": float(right.mean()),
        "num_samples": manifest["num_samples"],
        "auroc": auroc,
        "ece": with_interval(expected_calibration_error, right, confidence),
        "bins": reliability(right, confidence),
        "fitted_on": calibration.fitted_on,
        "num_resamples": num_resamples,
        "seed": seed,
    }


def weighted_auroc(right: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    """Return the weighted probability that a right sentence scores above a wrong one, ties half; `nan` if undefined."""
    from sklearn.metrics import roc_auc_score

    drawn = weight > 0
    if len(np.unique(right[drawn])) < 2:
        return float("nan")
    return float(roc_auc_score(right[drawn], score[drawn], sample_weight=weight[drawn]))


def reliability(
    right: np.ndarray, confidence: np.ndarray, weight: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Compare confidence with the share of right sentences in ten bins of equal width; empty ones are left out."""
    weight = np.ones(len(right)) if weight is None else weight
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    counts, sums, hits = (
        np.bincount(bins, weights=values, minlength=NUM_BINS)
        for values in (weight, weight * confidence, weight * right)
    )
    return [
        {"from": index / NUM_BINS, "sentences": float(n), "confidence": float(s / n), "right": float(h / n)}
        for index, (n, s, h) in enumerate(zip(counts, sums, hits))
        if n
    ]


def expected_calibration_error(right: np.ndarray, confidence: np.ndarray, weight: np.ndarray) -> float:
    """Average the gap between confidence and share of right sentences over bins."""
    bins = reliability(right, confidence, weight)
    gaps = [part["sentences"] * abs(part["confidence"] - part["right"]) for part in bins]
    return float(sum(gaps) / sum(part["sentences"] for part in bins))


def write_measured(measured: dict[str, Any], out: str | Path) -> dict[str, Path]:
    """Write the numbers, and the reliability diagram beside them."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = {"numbers": out / "confidence_measured.json", "figure": out / "reliability.png"}
    replace_file(files["numbers"], to_json(measured))
    draw_reliability(measured, files["figure"])
    return files


def draw_reliability(measured: dict[str, Any], path: Path) -> None:
    """Draw share of right sentences over confidence, with the number of sentences below."""
    from matplotlib.figure import Figure

    bins = measured["bins"]
    centers = [part["from"] + 0.5 / NUM_BINS for part in bins]
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    top.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="honest")
    sizes = [20 + 180 * part["sentences"] / measured["sentences"] for part in bins]
    top.plot([p["confidence"] for p in bins], [p["right"] for p in bins], color="#1f5fa8", linewidth=1)
    top.scatter(
        [p["confidence"] for p in bins], [p["right"] for p in bins], s=sizes, color="#1f5fa8", zorder=3
    )
    auroc, ece = measured["auroc"]["all"]["confidence"], measured["ece"]
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right sentences", aspect="equal")
    top.set_title(
        f"{measured['model']}: {measured['sentences']} sentences of {measured['studies']} studies\n"
        f"AUROC {auroc['value']:.3f} ({auroc['low']:.3f}-{auroc['high']:.3f}), "
        f"ECE {ece['value']:.3f} ({ece['low']:.3f}-{ece['high']:.3f})",
        fontsize=10,
    )
    top.legend(loc="upper left", frameon=False)
    bottom.bar(centers, [part["sentences"] for part in bins], width=0.9 / NUM_BINS, color="0.75")
    bottom.set(xlabel="confidence", ylabel="sentences")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    replace_file(path, picture.getvalue())


def _read(sentences: str | Path) -> tuple[Sequence[Any], dict[str, Any]]:
    path = Path(sentences)
    manifest = path.with_name(f"{path.stem}.manifest.json")
    if not path.is_file() or not manifest.is_file():
        raise ValueError(
            f"Sentences are a file of `hf-mu2 confidence collect` with its manifest beside it, `{path}` has none. "
            "Collect them first."
        )
    return read_reports(path), json.loads(manifest.read_text(encoding="utf-8"))
