import numpy as np
import pytest

from hf_mu2.scoring.clinical import f1_table, shuffled_gap
from hf_mu2.scoring.labels import LABELS


@pytest.fixture
def reference() -> np.ndarray:
    return np.random.default_rng(0).random((200, 18)) < 0.3


def test_a_perfect_candidate_scores_one(reference):
    table = f1_table(reference, reference)
    assert table["micro"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert table["macro_f1"] == 1.0 and table["macro_labels"] == 18 and table["reports"] == 200
    assert tuple(table["labels"]) == LABELS


def test_the_counts_of_a_small_table_are_right():
    table = f1_table(np.array([[1, 0], [1, 0], [0, 0]]), np.array([[1, 1], [0, 0], [1, 0]]))
    assert table["labels"]["0"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2, "predicted": 2}
    assert table["labels"]["1"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "predicted": 1}
    assert table["micro"]["f1"] == pytest.approx(2 / 5)


def test_macro_f1_averages_only_labels_that_occur():
    table = f1_table(np.array([[1, 0], [1, 0]]), np.array([[1, 1], [1, 0]]))
    assert table["macro_f1"] == 1.0 and table["macro_labels"] == 1
    assert f1_table(np.zeros((2, 3)), np.ones((2, 3)))["macro_f1"] == 0.0


def test_a_perfect_candidate_stands_far_above_its_shuffled_self(reference):
    gap = shuffled_gap(reference, reference, num_shuffles=20, num_bootstraps=200, seed=1)
    assert gap["macro_f1"] == 1.0 and gap["floor"] < 0.4
    assert 0 < gap["low"] <= gap["gap"] <= gap["high"]
    assert gap == shuffled_gap(reference, reference, num_shuffles=20, num_bootstraps=200, seed=1)


def test_a_candidate_that_looked_at_nothing_has_no_gap(reference):
    guesses = np.random.default_rng(1).random(reference.shape) < 0.3
    gap = shuffled_gap(reference, guesses, num_shuffles=20, num_bootstraps=200, seed=1)
    assert gap["low"] < 0 < gap["high"] and abs(gap["gap"]) < 0.05


def test_a_constant_candidate_has_a_gap_of_exactly_zero(reference):
    gap = shuffled_gap(reference, np.ones_like(reference), num_shuffles=5, num_bootstraps=20)
    assert gap["gap"] == pytest.approx(0) and gap["low"] == gap["high"] == 0


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [(np.zeros((2, 3)), np.zeros((3, 3))), (np.zeros(3), np.zeros(3)), (np.zeros((0, 3)), np.zeros((0, 3)))],
)
def test_arrays_that_do_not_match_are_refused(reference, candidate):
    with pytest.raises(ValueError, match="one shape"):
        f1_table(reference, candidate)


def test_undecided_labels_are_refused():
    with pytest.raises(ValueError, match="0 or 1"):
        f1_table(np.full((2, 3), -1), np.zeros((2, 3)))


def test_shuffling_one_report_is_refused():
    with pytest.raises(ValueError, match="at least 2 reports"):
        shuffled_gap(np.ones((1, 3)), np.ones((1, 3)))
