import numpy as np
import pytest

from hf_mu2.scoring.floors import (
    NORMAL_REPORT,
    constant_normal,
    nearest_by_labels,
    nearest_reports,
    normal_reports,
    random_reports,
)
from hf_mu2.scoring.labels import label_reports

LABELS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
TEXTS = ["a strange text", "heart is large", "heart is large and so on", "heart is normal in size"]
OWNERS = ["p0", "p1", "p2", "p3"]


def test_the_built_in_normal_report_reports_nothing():
    assert not label_reports([NORMAL_REPORT]).any()


def test_the_normal_report_is_the_most_typical_one_without_findings():
    assert normal_reports(TEXTS, LABELS) == [3, 0]
    assert constant_normal(TEXTS, LABELS, OWNERS, ["x", "p3"]) == [TEXTS[3], TEXTS[0]]


def test_without_a_normal_report_the_one_with_fewest_findings_stands_in():
    assert normal_reports(TEXTS[1:3], LABELS[1:3]) == [0]


def test_random_reports_are_of_other_patients_and_repeatable():
    drawn = random_reports(TEXTS, OWNERS, OWNERS * 20, seed=1)
    assert all(text != TEXTS[OWNERS.index(owner)] for text, owner in zip(drawn, OWNERS * 20))
    assert drawn == random_reports(TEXTS, OWNERS, OWNERS * 20, seed=1) and set(drawn) == set(TEXTS)


def test_the_nearest_report_has_the_same_labels_where_one_has():
    rng = np.random.default_rng(0)
    training = rng.random((500, 6)) < 0.3
    chosen = nearest_by_labels(training[:50], training)
    assert (training[chosen] == training[:50]).all()
    apart = nearest_by_labels(training[:50], training, patients=range(50), training_patients=list(range(500)))
    assert all(row != chosen for row, chosen in enumerate(apart))


def test_probabilities_choose_the_report_with_the_smallest_expected_error():
    probabilities = np.array([[0.9, 0.4, 0.1], [0.6, 0.9, 0.0], [0.1, 0.1, 0.2]])
    expected = [np.argmin([(p * (1 - y) + (1 - p) * y).sum() for y in LABELS[:3]]) for p in probabilities]
    assert nearest_by_labels(probabilities, LABELS[:3]).tolist() == expected == [1, 2, 0]
    assert nearest_reports(probabilities, TEXTS[:3], LABELS[:3]) == [TEXTS[1], TEXTS[2], TEXTS[0]]


def test_unknown_labels_decide_nothing():
    wanted = np.array([[1, np.nan, np.nan]])
    assert nearest_by_labels(wanted, np.array([[0, 1, 1], [1, 0, 1]])).tolist() == [1]


def test_ties_are_drawn_by_the_seed():
    training = np.zeros((30, 3))
    drawn = {int(nearest_by_labels(np.zeros((1, 3)), training, seed=seed)[0]) for seed in range(10)}
    assert len(drawn) > 3


def test_logits_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        nearest_by_labels(np.array([[2.0, 0, 0]]), LABELS)
    with pytest.raises(ValueError, match="same labels"):
        nearest_by_labels(np.zeros((1, 2)), LABELS)
