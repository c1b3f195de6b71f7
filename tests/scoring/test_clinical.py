import numpy as np
import pytest

from hf_mu2.scoring.clinical import clinical_columns, clinical_scores, crg, f1_table, shuffled_gap
from hf_mu2.scoring.findings import read_findings
from hf_mu2.scoring.labels import LABELS
from hf_mu2.scoring.resampling import total


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


def test_the_interval_of_the_gap_is_one_over_patients(reference):
    """Ten equal reports of one patient say no more than one of them does."""
    candidate = reference & (np.random.default_rng(1).random(reference.shape) < 0.6)
    first, repeated = (np.tile(array[:20], (10, 1)) for array in (reference, candidate))
    alone = shuffled_gap(first, repeated, num_shuffles=2, num_bootstraps=200)
    clustered = shuffled_gap(
        first, repeated, list(map(str, range(20))) * 10, num_shuffles=2, num_bootstraps=200
    )
    assert clustered["high"] - clustered["low"] > 1.5 * (alone["high"] - alone["low"])


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


def score(references: list[str], candidates: list[str], **options) -> dict[str, float]:
    columns = clinical_columns(
        [read_findings(text) for text in references], [read_findings(text) for text in candidates]
    )
    return {name: float(value) for name, value in clinical_scores(total(columns), **options).items()}


NODULE = "There is an 8 mm nodule in the right upper lobe."
EFFUSION = "There is a left pleural effusion."
NORMAL = "No nodule. No pleural effusion."


def test_macro_f1_over_all_labels_is_a_named_option(reference):
    reference[:, 3] = False
    assert f1_table(reference, reference)["macro_f1"] == 1.0
    table = f1_table(reference, reference, macro_over="all")
    assert table["macro_f1"] == pytest.approx(17 / 18) and table["macro_labels"] == 18


def test_crg_identities():
    cells, positives = 1000, 130
    assert crg(positives, 0, 0, cells) == 1
    assert crg(0, positives, 0, cells) == pytest.approx(1 / 3)
    assert crg(positives, 0, cells - positives, cells) == pytest.approx(1 / 3)
    # s = 0: hits and misses balance, and there is no false alarm
    assert crg(65, 65, 0, cells) == pytest.approx(0.5)
    # all wrong is the worst there is
    assert crg(0, positives, cells - positives, cells) == pytest.approx(1 / 5)


def test_crg_by_hand():
    # A = 2 of T = 8, w = 6 / 4 = 1.5, s = 1.5 - 1.5 - 1 = -1, S = 3, CRG = 3 / 7
    assert crg(1, 1, 1, 8) == pytest.approx(3 / 7)


def test_crg_is_defined_where_the_paper_divides_by_zero():
    assert crg(0, 0, 0, 18) == 1 and crg(0, 0, 18, 18) == pytest.approx(1 / 3)  # nothing to find
    assert crg(18, 0, 0, 18) == 1 and crg(0, 18, 0, 18) == pytest.approx(1 / 3)  # nothing to invent
    assert np.isnan(crg(0, 0, 0, 0))


def test_a_normal_report_of_a_normal_study_is_a_full_success():
    scores = score([NORMAL], [NORMAL])
    assert (
        scores["report_f1"]
        == scores["micro_f1"]
        == scores["macro_f1"]
        == scores["crg"]
        == scores["accuracy"]
        == 1
    )
    assert np.isnan(scores["coverage"])  # there was nothing to cover
    wrong = score([NORMAL], [NODULE])
    assert wrong["report_f1"] == wrong["micro_f1"] == 0 and wrong["exact_match"] == 0


def test_coverage_and_accuracy_by_hand():
    scores = score([f"{NODULE} {EFFUSION}", NORMAL], [NODULE, EFFUSION])
    assert scores["coverage"] == pytest.approx(1 / 2)
    assert scores["accuracy"] == pytest.approx(34 / 36) == scores["accuracy_all_negative"]
    assert scores["micro_f1"] == pytest.approx(1 / 2)
    assert scores["report_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_scores_of_labels_are_those_of_the_table(reference):
    candidate = np.roll(reference, 1, axis=0)
    table = f1_table(reference, candidate)
    sums = {
        "hits": (reference & candidate).sum(0),
        "support": reference.sum(0),
        "predicted": candidate.sum(0),
        "cells": np.full(18, 200),
        "read": np.array([200.0]),
        "report_f1": np.zeros(1),
        "exact": np.zeros(1),
        "sides": np.zeros(2),
        "sizes": np.zeros(2),
        "lesions": np.zeros(8),
    }
    scores = clinical_scores(sums)
    assert scores["macro_f1"] == pytest.approx(table["macro_f1"])
    assert scores["micro_f1"] == pytest.approx(table["micro"]["f1"])
    assert scores["weighted_f1"] == pytest.approx(
        sum(row["f1"] * row["support"] for row in table["labels"].values()) / reference.sum()
    )


@pytest.mark.parametrize(
    ("size", "metric"),
    [
        (2, "under_3mm"),
        (3, "3_to_6mm"),
        (5.9, "3_to_6mm"),
        (6, "6_to_10mm"),
        (10, "6_to_10mm"),
        (11, "over_10mm"),
    ],
)
def test_coverage_is_counted_in_the_bin_of_the_lesion(size, metric):
    text = f"There is a {size} mm nodule in the right upper lobe."
    seen, missed = score([text], [NODULE]), score([text], [NORMAL])
    assert seen[f"coverage_{metric}"] == 1 and missed[f"coverage_{metric}"] == 0
    others = [name for name in seen if name.startswith("coverage_") and name != f"coverage_{metric}"]
    assert len(others) == 3 and all(np.isnan(seen[name]) for name in others)


def test_sides_agree_only_where_both_reports_state_one():
    right, left = "There is a nodule in the right upper lobe.", "There is a nodule in the left upper lobe."
    assert score([right], [right])["side_agreement"] == 1
    assert score([right], [left])["side_agreement"] == 0
    assert np.isnan(score([right], ["There is a nodule."])["side_agreement"])
    assert np.isnan(score([right], [EFFUSION])["side_agreement"])
    assert score([f"{right} {EFFUSION}"], [f"{left} {EFFUSION}"])["side_agreement"] == 0.5


def test_a_side_and_a_size_belong_to_the_nearest_finding():
    findings = read_findings(
        "An 8 mm nodule in the right upper lobe, and a 25 mm thick left pleural effusion."
    )
    assert findings.sides == {"Lung nodule": "right", "Pleural effusion": "left"}
    assert findings.sizes_mm["Lung nodule"] == (8.0,)


def test_a_side_of_a_denied_finding_says_nothing():
    assert read_findings("No nodule in the left lung. There is a nodule on the right.").sides == {
        "Lung nodule": "right"
    }


@pytest.mark.parametrize(("told", "agrees"), [("8", 1), ("10", 1), ("10.5", 0), ("6", 1), ("5", 0)])
def test_sizes_agree_within_two_millimetres_or_a_fifth(told, agrees):
    assert (
        score([NODULE], [f"There is a {told} mm nodule in the right upper lobe."])["size_agreement"] == agrees
    )


def test_a_candidate_in_another_script_misses_every_finding():
    scores = score([NODULE, NORMAL], ["右肺上叶见结节。", "双肺未见明显结节。"])
    assert scores["coverage"] == 0 and scores["coverage_6_to_10mm"] == 0 and scores["micro_f1"] == 0
    assert np.isnan(
        score(["右肺上叶见结节。"], [NODULE])["accuracy"]
    )  # nobody knows what this reference says


def test_unknown_labels_of_the_reference_are_left_out():
    from dataclasses import replace

    known = read_findings(f"{NODULE} {EFFUSION}")
    labels = known.labels.copy()
    labels[LABELS.index("Pleural effusion")] = np.nan
    columns = clinical_columns([replace(known, labels=labels)], [read_findings(NODULE)])
    scores = clinical_scores(total(columns))
    assert scores["coverage"] == 1 and total(columns)["cells"].sum() == 17
