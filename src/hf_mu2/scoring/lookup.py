"""The bar a report generator has to beat: a linear probe for the findings, and the training report nearest by them.

The probe is a logistic regression per label on features of a study, e.g. of a frozen vision tower; `floors` looks up
the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .floors import nearest_reports
from .hygiene import is_chinese, patient_of, study_of
from .labels import label_reports
from .rows import Report, Rows, read_patients, read_references

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# Inverse strengths of the L2 penalty, the strongest first: features are standardised, so one grid serves all widths.
STRENGTHS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class LabelProbe:
    """A logistic regression per label.

    Args:
        mean, scale (`np.ndarray` of shape `(width,)`): What features are standardised by.
        weights (`np.ndarray` of shape `(width, labels)`): Of standardised features; zeros where nothing is predicted.
        intercepts (`np.ndarray` of shape `(labels,)`): Infinite for labels that training always or never has.
        strengths (`np.ndarray` of shape `(labels,)`): One of `STRENGTHS`, 0 where the base rate stands in.
        thresholds (`np.ndarray` of shape `(labels,)`): The probability above which as many held-out training studies
            lie as have the label; 0.5 where the base rate stands in.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercepts: np.ndarray
    strengths: np.ndarray
    thresholds: np.ndarray

    def labels(self, features: np.ndarray) -> np.ndarray:
        """Predict the labels of studies, each about as often as training studies have it.

        A weak probe gives a rare label less than 0.5 even where it is the likeliest. Judged by 0.5, or looked up by the
        probabilities themselves, a study with less for every label is nearest to a normal report.

        Args:
            features (`np.ndarray` of shape `(studies, width)`): Made as those of training.

        Returns:
            `np.ndarray` of shape `(studies, labels)`: 1 above `thresholds`, else 0; `nan` for labels that training
            never knew. The majority, where the base rate stands in.
        """
        probabilities = self.probabilities(features)
        return np.where(np.isnan(probabilities), np.nan, probabilities > self.thresholds)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Predict how likely the labels of studies are.

        Args:
            features (`np.ndarray` of shape `(studies, width)`): Made as those of training.

        Returns:
            `np.ndarray` of shape `(studies, labels)`, from 0 to 1; `nan` for labels that training never knew.
        """
        features = _check_features(features)
        if features.shape[1] != len(self.mean):
            raise ValueError(
                f"Features must be as wide as those the probe was fitted on, {len(self.mean)}, got "
                f"{features.shape[1]}. Embed both with the same checkpoint and layer."
            )
        return _sigmoid((features - self.mean) / self.scale @ self.weights + self.intercepts)


def fit_label_probe(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    patients: Sequence[str] | None = None,
    num_folds: int = 5,
    seed: int = 0,
) -> LabelProbe:
    """Fit a logistic regression per label, each with the penalty that cross-validation likes best.

    The measure is the log loss of held-out training studies. The base rate competes too, and stands in for labels
    that nothing predicts better, or that fewer than two patients have or lack. The same held-out studies decide the
    thresholds.

    Args:
        features (`np.ndarray` of shape `(studies, width)`): Of the training studies.
        labels (`np.ndarray` of shape `(studies, labels)`): 0 and 1, `nan` where unknown.
        patients (`Sequence[str]`, *optional*): Whose the studies are: those of a patient are held out together. Every
            study is another patient, by default.
        num_folds (`int`): Parts that the patients are held out in; fewer for labels that fewer patients have.
        seed (`int`): Decides the folds.

    Raises:
        ValueError: if the arrays do not fit each other, there are fewer than two studies, features are not finite, or
            labels are not 0, 1 or `nan`.
        ImportError: if scikit-learn is not installed.
    """
    features, labels = _check_features(features), np.asarray(labels, dtype=float)
    owners = np.arange(len(features)) if patients is None else np.unique(patients, return_inverse=True)[1]
    if labels.ndim != 2 or len(labels) != len(features) or len(owners) != len(features):
        raise ValueError(
            "Features (studies, width), labels (studies, labels) and patients must be of the same studies, got "
            f"{features.shape}, {labels.shape} and {len(owners)}. Order them by study."
        )
    if len(features) < 2:
        raise ValueError(
            f"A probe learns from at least two training studies, got {len(features)}. Embed more studies with a "
            "report."
        )
    if not np.isin(labels[~np.isnan(labels)], (0, 1)).all() or num_folds < 2:
        raise ValueError(
            f"Labels must be 0, 1 or nan, in at least two folds, got {np.unique(labels)[:5]} in {num_folds}. "
            "Threshold probabilities first."
        )
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 1e-6, spread, 1.0)
    rows = (features - mean) / scale
    # An L2 penalty does not see rotations: of few studies, the directions in which they differ are all that counts.
    basis = None
    if len(rows) < rows.shape[1]:
        rotated, lengths, basis = np.linalg.svd(rows, full_matrices=False)
        rows = rotated * lengths
    rng = np.random.default_rng(seed)
    fitted = []
    for column in labels.T:
        known = ~np.isnan(column)
        fitted.append(_fit_label(rows[known], column[known], owners[known], num_folds, rng))
    weights, intercepts, strengths, thresholds = (np.stack(values, axis=-1) for values in zip(*fitted))
    return LabelProbe(
        mean=mean,
        scale=scale,
        weights=weights if basis is None else basis.T @ weights,
        intercepts=intercepts,
        strengths=strengths,
        thresholds=thresholds,
    )


def answer_by_lookup(
    study_ids: Sequence[str],
    features: np.ndarray,
    training_ids: Sequence[str],
    training_features: np.ndarray,
    training_references: Rows,
    *,
    patients: Rows | None = None,
    use_given_labels: bool = True,
    seed: int = 0,
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Answer every study with the training report nearest by the labels that a probe predicts.

    Each label is predicted about as often as training studies have it; see [`LabelProbe.labels`].

    Nobody is given a report of their own patient. Vectors of CT-RATE's reconstructions of a study are averaged.

    Args:
        study_ids (`Sequence[str]`), features (`np.ndarray` of shape `(studies, width)`): What is answered.
        training_ids (`Sequence[str]`), training_features (`np.ndarray` of shape `(studies, width)`): What is learned
            from, as far as it has a report.
        training_references (`Rows`): File or rows with `study_id`, the report and, where known, `patient_id` and the 18
            labels; see `rows`.
        patients (`Rows`, *optional*): `study_id` and `patient_id` of the studies that are answered. CT-RATE's names
            tell the patient; a study of another name that is not here stands for itself.
        use_given_labels (`bool`): Take labels from the rows where they have them, else by rules.
        seed (`int`): Decides the folds of the probe and ties.

    Returns:
        Predictions, rows of `study_id` and `candidate`, and what they rest on: `studies`, `training_studies`,
        `training_patients`, `studies_of_training_patients`, `references_without_vector`, `vectors_without_reference`,
        and `labels_predicted`, the number of labels that the probe predicts better than their base rate.

    Raises:
        ValueError: if references and vectors share fewer than two patients, or a study to answer is a training study.
        ImportError: if scikit-learn is not installed.
    """
    references, _ = read_references(training_references)
    offered, wanted = _by_study(training_ids, training_features), _by_study(study_ids, features)
    training = [report for report in references if report.study_id in offered]
    owners = [report.patient_id for report in training]
    if len(set(owners)) < 2:
        raise ValueError(
            f"A lookup learns from reports of at least two patients, got {len(training)} training studies of "
            f"{len(set(owners))} that have both a report and a vector: reports start with "
            f"`{references[0].study_id if references else 'nothing'}`, vectors with `{next(iter(offered))}`. Write the "
            "same `study_id` in both, and embed more studies."
        )
    seen = [report.study_id for report in training if report.study_id in wanted]
    if seen:
        raise ValueError(
            f"A study to answer is none that the probe has learned from, {len(seen)} of {len(wanted)} are, e.g. "
            f"`{seen[0]}`. Embed the split to answer by itself, or leave its rows out of the training references."
        )
    known = {} if patients is None else read_patients(patients)
    asking = [known.get(study_id) or patient_of(study_id) for study_id in wanted]
    labels = _training_labels(training, use_given_labels)
    probe = fit_label_probe(
        np.stack([offered[report.study_id] for report in training]), labels, patients=owners, seed=seed
    )
    texts = nearest_reports(
        probe.labels(np.stack(list(wanted.values()))),
        [report.text for report in training],
        labels,
        patients=asking,
        training_patients=owners,
        seed=seed,
    )
    facts = {
        "studies": len(wanted),
        "training_studies": len(training),
        "training_patients": len(set(owners)),
        "studies_of_training_patients": sum(patient in set(owners) for patient in asking),
        "references_without_vector": len(references) - len(training),
        "vectors_without_reference": len(offered) - len(training),
        "labels_predicted": int((probe.strengths > 0).sum()),
    }
    return [{"study_id": study_id, "candidate": text} for study_id, text in zip(wanted, texts)], facts


def _by_study(ids: Sequence[str], features: np.ndarray) -> dict[str, np.ndarray]:
    """Average the vectors of each study, in the order in which studies come."""
    features = _check_features(features)
    if len(ids) != len(features):
        raise ValueError(
            f"Every study has one vector, got {len(features)} for {len(ids)}. Order them by study."
        )
    found: dict[str, list[np.ndarray]] = {}
    for name, vector in zip(ids, features):
        found.setdefault(study_of(name), []).append(vector)
    return {study_id: np.mean(vectors, axis=0) for study_id, vectors in found.items()}


def _training_labels(training: Sequence[Report], use_given_labels: bool) -> np.ndarray:
    """Return the labels of training reports, `(studies, 18)`: those given, else by rules, which read no Chinese."""
    labels = label_reports(report.text for report in training).astype(float)
    for row, report in enumerate(training):
        if use_given_labels and report.labels is not None:
            labels[row] = report.labels
        elif is_chinese(report.text):
            labels[row] = np.nan
    return labels


def _fit_label(
    rows: np.ndarray, wanted: np.ndarray, owners: np.ndarray, num_folds: int, rng: np.random.Generator
) -> tuple[np.ndarray, float, float, float]:
    """Return weights, intercept, strength and threshold of one label."""
    folds = _deal(wanted, owners, num_folds, rng)
    splits = [folds != fold for fold in range(folds.max(initial=0) + 1)]
    splits = [kept for kept in splits if not kept.all() and len(np.unique(wanted[kept])) == 2]
    best, threshold = 0.0, 0.5
    if splits:
        least = sum(
            _log_loss(np.full((~kept).sum(), _logit(wanted[kept].mean())), wanted[~kept]) for kept in splits
        )
        models = [_regression() for _ in splits]
        worse = 0
        for strength in STRENGTHS:  # from the strongest penalty, each from where the one before ended
            logits = np.empty(len(wanted))  # each study is held out once
            for kept, model in zip(splits, models):
                model.set_params(C=strength).fit(rows[kept], wanted[kept])
                logits[~kept] = model.decision_function(rows[~kept])
            loss = _log_loss(logits, wanted)
            worse = 0 if loss < least else worse + 1
            if loss < least:
                best, least, threshold = strength, loss, _exceeded_by(_sigmoid(logits), int(wanted.sum()))
            elif best and worse == 2:  # weaker penalties only overfit more, and take the longest
                break
    if best == 0.0:
        return np.zeros(rows.shape[1]), _logit(wanted.mean()) if len(wanted) else float("nan"), 0.0, threshold
    final = _regression().set_params(C=best).fit(rows, wanted)
    return final.coef_[0], float(final.intercept_[0]), best, threshold


def _exceeded_by(values: np.ndarray, number: int) -> float:
    """Return the value that `number` of the values exceed, midway between the two that it parts."""
    return float(np.sort(values)[-number - 1 :][:2].mean())


def _deal(wanted: np.ndarray, owners: np.ndarray, num_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Deal studies to folds, patient by patient, so that each fold gets its share of patients with the label.

    All in fold 0 where fewer than two patients have the label, or fewer than two lack it.
    """
    patients, rows = np.unique(owners, return_inverse=True)
    having = np.zeros(len(patients), dtype=bool)
    np.logical_or.at(having, rows, wanted == 1)
    num_folds = min(num_folds, int(having.sum()), int((~having).sum()))
    if num_folds < 2:
        return np.zeros(len(wanted), dtype=int)
    fold = np.zeros(len(patients), dtype=int)
    dealt = np.concatenate(
        [rng.permutation(np.flatnonzero(having)), rng.permutation(np.flatnonzero(~having))]
    )
    fold[dealt] = np.arange(len(patients)) % num_folds
    return fold[rows]


def _regression() -> LogisticRegression:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError(
            'A probe for labels needs scikit-learn, which is not installed. Run `pip install "hf_mu2[score]"`.'
        ) from error
    return LogisticRegression(warm_start=True, max_iter=1000)


def _check_features(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=float)
    if features.ndim != 2 or not features.size or not np.isfinite(features).all():
        raise ValueError(
            f"Features must be finite numbers (studies, width), got shape {features.shape}"
            f"{'' if np.isfinite(features).all() else ' with values that are not'}. Embed the studies again."
        )
    return features


def _log_loss(logits: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.logaddexp(0.0, np.where(wanted == 1, -logits, logits)).sum())


def _logit(rate: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(rate) - np.log1p(-rate))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))  # takes infinities
