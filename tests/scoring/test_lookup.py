import sys

import numpy as np
import pytest

from hf_mu2.scoring.floors import nearest_reports
from hf_mu2.scoring.lookup import LabelProbe, fit_label_probe


def planted(studies: int, width: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make features of odd scales, and labels: two that the features tell, one of chance, one always and one never."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(studies, width))
    chance = rng.random(studies) < 0.3
    told = [features[:, 0] > 0.5, features[:, 1] + 0.2 * rng.normal(size=studies) < 0]
    labels = np.stack([*told, chance, np.ones(studies), np.zeros(studies)], axis=1).astype(float)
    return 5 + features * np.logspace(-2, 2, width), labels


def area(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the area under the ROC curve: how often a study with the label is ranked above one without."""
    return float((probabilities[labels == 1][:, None] > probabilities[labels == 0][None, :]).mean())


@pytest.fixture(scope="module")
def probe() -> LabelProbe:
    return fit_label_probe(*planted(300))


def test_planted_findings_are_found_in_studies_never_seen(probe):
    features, labels = planted(300, seed=1)
    probabilities = probe.probabilities(features)
    assert probabilities.shape == labels.shape and ((probabilities >= 0) & (probabilities <= 1)).all()
    assert area(probabilities[:, 0], labels[:, 0]) > 0.95 and area(probabilities[:, 1], labels[:, 1]) > 0.95
    assert (probe.strengths[:2] > 0).all()


def test_what_nothing_predicts_gets_its_base_rate(probe):
    _, labels = planted(300)
    probabilities = probe.probabilities(planted(50, seed=2)[0])
    np.testing.assert_allclose(probabilities[:, 2], labels[:, 2].mean(), atol=0.1)
    np.testing.assert_array_equal(probabilities[:, 3:], np.tile([1.0, 0.0], (50, 1)))
    assert (probe.strengths[3:] == 0).all()


def test_probabilities_are_calibrated_on_average(probe):
    features, labels = planted(2000, seed=3)
    np.testing.assert_allclose(probe.probabilities(features).mean(0), labels.mean(0), atol=0.06)


def test_units_of_the_features_do_not_matter():
    features, labels = planted(120)
    other = fit_label_probe(features * 1000 - 3, labels).probabilities(features * 1000 - 3)
    np.testing.assert_allclose(fit_label_probe(features, labels).probabilities(features), other, atol=1e-4)


def test_more_features_than_studies_give_what_all_of_them_give():
    """Few studies are fitted in the directions in which they differ: repeated features must add nothing but weight."""
    features, labels = planted(60, width=50)
    wide = np.hstack([features, features])
    assert fit_label_probe(features, labels).weights.shape == (50, 5)
    found = fit_label_probe(wide, labels)
    assert found.weights.shape == (100, 5)
    np.testing.assert_allclose(found.weights[:50], found.weights[50:], atol=1e-9)
    assert area(found.probabilities(wide)[:, 0], labels[:, 0]) > 0.95


def test_unknown_labels_are_left_out_and_labels_never_known_stay_unknown():
    features, labels = planted(200)
    labels[:, 4] = np.nan
    labels[100:, 0] = np.nan
    probabilities = fit_label_probe(features, labels).probabilities(features)
    assert np.isnan(probabilities[:, 4]).all() and not np.isnan(probabilities[:, :4]).any()
    alone = fit_label_probe(features[:100], labels[:100, :1])
    assert alone.strengths[0] > 0
    assert area(probabilities[:100, 0], labels[:100, 0]) > 0.95


@pytest.mark.parametrize("positives", range(9))
def test_eight_training_studies_are_enough_to_answer(positives):
    features = np.random.default_rng(positives).normal(size=(8, 768))
    labels = (np.arange(8) < positives).astype(float)[:, None]
    probe = fit_label_probe(features, labels)
    probabilities = probe.probabilities(features)
    assert np.isfinite(probabilities).all() and ((probabilities >= 0) & (probabilities <= 1)).all()
    if positives in (0, 1, 7, 8):  # of one study nothing can be held out
        np.testing.assert_allclose(probabilities, positives / 8)


def test_studies_of_a_patient_are_held_out_together():
    """Features that name the patient and nothing else predict a held-out study only if its patient was seen."""
    rng = np.random.default_rng(0)
    looks, has = rng.normal(size=(40, 60)), rng.random(40) < 0.5
    patients = [f"p{index}" for index in range(40) for _ in range(4)]
    features, labels = np.repeat(looks, 4, axis=0), np.repeat(has, 4)[:, None].astype(float)
    apart, together = fit_label_probe(features, labels), fit_label_probe(features, labels, patients=patients)
    assert apart.strengths[0] > 100 * together.strengths[0]


def test_the_seed_decides_the_folds_alone():
    features, labels = planted(100)
    first, again = (fit_label_probe(features, labels, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.weights, again.weights)


def test_the_lookup_gives_every_study_a_report_with_its_findings(probe):
    features, labels = planted(200, seed=4)
    texts = [f"report {index}" for index in range(300)]
    given = nearest_reports(probe.probabilities(features), texts, planted(300)[1])
    found = planted(300)[1][[texts.index(text) for text in given]]
    assert (found[:, :2] == labels[:, :2]).mean() > 0.9


@pytest.mark.parametrize(
    ("features", "labels", "what"),
    [
        (np.zeros((1, 4)), np.zeros((1, 18)), "at least two training studies"),
        (np.zeros((3, 4)), np.zeros((4, 18)), "same studies"),
        (np.zeros((3, 4)), np.full((3, 18), 0.4), "0, 1 or nan"),
        (np.full((3, 4), np.nan), np.zeros((3, 18)), "finite"),
    ],
)
def test_what_no_probe_can_learn_from_is_refused(features, labels, what):
    with pytest.raises(ValueError, match=what):
        fit_label_probe(features, labels)


def test_features_of_another_width_are_refused(probe):
    with pytest.raises(ValueError, match="24, got 25"):
        probe.probabilities(np.zeros((2, 25)))


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"hf_mu2\[score\]"):
        fit_label_probe(*planted(20))
