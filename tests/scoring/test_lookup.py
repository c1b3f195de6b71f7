import sys

import numpy as np
import pytest

from hf_mu2.scoring.floors import nearest_reports
from hf_mu2.scoring.labels import LABELS, label_reports
from hf_mu2.scoring.lookup import LabelProbe, answer_by_lookup, fit_label_probe
from tests.scoring.synthetic import FINDINGS, make_references


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


def weakly_told(studies: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make labels of several rates that the features tell to some degree."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(studies, 20))
    latent = features[:, :5] + 1.5 * rng.normal(size=(studies, 5))
    return features, (latent > np.sqrt(3.25) * np.array([1.6, 1.2, 0.7, 0.0, -1.0])).astype(float)


def test_new_studies_are_given_each_label_as_often_as_training_studies_have_it():
    """At 0.5, a label that features tell weakly is given to hardly anyone, or to nearly all."""
    features, labels = weakly_told(600, seed=5)
    probe = fit_label_probe(features, labels)
    new, true = weakly_told(4000, seed=6)
    given, share = probe.labels(new), labels.mean(0)
    assert np.isin(given, (0, 1)).all() and (probe.strengths > 0).all()
    np.testing.assert_allclose(given.mean(0), share, atol=0.05)
    halved = (probe.probabilities(new) > 0.5).mean(0)
    assert halved[0] < share[0] / 3 and halved[4] > share[4] + 0.05
    assert (true * given).sum(0)[0] > 3 * (true * (probe.probabilities(new) > 0.5)).sum(0)[0]


def test_a_rare_label_that_stands_apart_is_given_below_even_odds():
    """Among many features and few studies the penalty keeps probabilities low, though the ranking is right."""
    rng = np.random.default_rng(8)

    def draw(studies: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (np.arange(studies) % 20 == 0).astype(float)[:, None]
        return rng.normal(size=(studies, 300)) + 0.4 * labels, labels

    probe, (features, labels) = fit_label_probe(*draw(120)), draw(400)
    rare, given = labels[:, 0] == 1, probe.labels(features)[:, 0] == 1
    assert (probe.probabilities(features)[rare] < 0.5).all()
    assert given[rare].mean() > 0.8 and given[~rare].mean() < 0.05


@pytest.mark.parametrize("rate", (0.3, 0.7))
def test_the_majority_is_given_where_the_base_rate_stands_in(rate):
    labels = (np.arange(40) < 40 * rate).astype(float)[:, None]
    patients = [
        f"p{int(has)}" for has in labels[:, 0]
    ]  # one has the label, one lacks it: nobody can be held out
    probe = fit_label_probe(
        np.ones((40, 3)), np.hstack([labels, 0 * labels, 0 * labels + 1]), patients=patients
    )
    assert (probe.strengths == 0).all()
    np.testing.assert_array_equal(probe.labels(np.ones((2, 3))), np.tile([rate > 0.5, 0, 1], (2, 1)))


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
    found = fit_label_probe(features, labels)
    probabilities = found.probabilities(features)
    assert np.isnan(probabilities[:, 4]).all() and not np.isnan(probabilities[:, :4]).any()
    np.testing.assert_array_equal(np.isnan(found.labels(features)), np.isnan(probabilities))
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
    given = nearest_reports(probe.labels(features), texts, planted(300)[1])
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


def told_by(references: list[dict], seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Make features that tell the findings of reports, beside noise."""
    labels = label_reports(row["reference"] for row in references).astype(float)
    noise = np.random.default_rng(seed).normal(size=(len(labels), 40))
    return [row["study_id"] for row in references], np.hstack([labels + 0.3 * noise[:, :18], noise])


@pytest.fixture(scope="module")
def split() -> tuple[list[dict], list[dict]]:
    rows = make_references(120)
    return rows[:80], rows[80:]


def test_a_lookup_answers_with_reports_that_name_the_right_findings(split):
    train, test = split
    rows, facts = answer_by_lookup(*told_by(test, 1), *told_by(train), train)
    assert [row["study_id"] for row in rows] == [row["study_id"] for row in test]
    assert {row["candidate"] for row in rows} <= {row["reference"] for row in train}
    columns = [LABELS.index(label) for label in FINDINGS]
    given, true = (label_reports(texts)[:, columns] for texts in zip(*_texts(rows, test)))
    assert (given == true).mean() > 0.9
    assert facts["training_studies"] == 80 and facts["training_patients"] == 40
    assert facts["labels_predicted"] >= len(FINDINGS) and facts["studies_of_training_patients"] == 0


def _texts(rows: list[dict], references: list[dict]) -> list[tuple[str, str]]:
    return [(row["candidate"], reference["reference"]) for row, reference in zip(rows, references)]


def test_a_patient_never_gets_a_report_of_their_own(split):
    """The second study of every training patient asks, with the vector of the first: that report would be nearest."""
    train = [row | {"reference": f"{row['reference']} Study of {row['patient_id']}."} for row in split[0]]
    first, second = train[0::2], train[1::2]
    ids, vectors = told_by(first)
    asking = [row["study_id"] for row in second]
    alone, _ = answer_by_lookup(asking, vectors, ids, vectors, first)
    apart, facts = answer_by_lookup(asking, vectors, ids, vectors, first, patients=second)
    own = [f"Study of {row['patient_id']}." for row in second]
    assert any(text in row["candidate"] for row, text in zip(alone, own))
    assert not any(text in row["candidate"] for row, text in zip(apart, own))
    assert facts["studies_of_training_patients"] == len(second)


def test_the_name_of_a_ct_rate_volume_tells_study_and_patient(split):
    train = [
        {"study_id": f"train_{index}_a", "reference": row["reference"]} for index, row in enumerate(split[0])
    ]
    ids, vectors = told_by(train)
    volumes = [f"{name}_{index}" for name in ids for index in (1, 2)]
    apart = np.repeat(vectors, 2, axis=0) + np.tile([[1.0], [-1.0]], (len(ids), 1))
    asking = [f"train_{index}_b_1.nii.gz" for index in range(len(ids))]
    rows, facts = answer_by_lookup(asking, vectors, volumes, apart, train)
    again, _ = answer_by_lookup(asking, vectors, ids, vectors, train)
    assert rows == again and rows[0]["study_id"] == "train_0_b"
    assert facts["training_studies"] == facts["studies_of_training_patients"] == len(train)


def test_labels_of_the_rows_come_before_those_of_the_rules(split):
    train, test = split
    hernia = LABELS.index("Hiatal hernia")
    has = label_reports(row["reference"] for row in train)[:, hernia]
    given = [row | {"Hiatal hernia": int(one)} for row, one in zip(train, has)]
    rows, facts = answer_by_lookup(*told_by(test, 1), *told_by(train), given)
    assert facts["labels_predicted"] == 1  # the rest is unknown in these rows
    found, true = (label_reports(texts)[:, hernia] for texts in zip(*_texts(rows, test)))
    assert (found == true).mean() > 0.9
    _, facts = answer_by_lookup(*told_by(test, 1), *told_by(train), given, use_given_labels=False)
    assert facts["labels_predicted"] >= len(FINDINGS)


def test_what_has_no_partner_is_left_out_and_counted(split):
    train, test = split
    ids, vectors = told_by(train)
    _, facts = answer_by_lookup(*told_by(test), ids[20:], vectors[20:], train[:60])
    assert facts["training_studies"] == 40
    assert facts["references_without_vector"] == facts["vectors_without_reference"] == 20


def test_a_study_the_probe_has_learned_from_is_not_answered(split):
    train, test = split
    ids, vectors = told_by(train + test)
    with pytest.raises(ValueError, match=r"80 of 120 are, e\.g\. `s000`"):
        answer_by_lookup(ids, vectors, *told_by(train), train)


def test_reports_of_two_patients_are_needed(split):
    train, test = split
    with pytest.raises(ValueError, match="2 training studies of 1"):
        answer_by_lookup(*told_by(test), *told_by(train[:2]), train[:2])
    with pytest.raises(ValueError, match=r"reports start with `s000`, vectors with `s080`"):
        answer_by_lookup(*told_by(train[:2]), *told_by(test), train)


def test_a_table_of_patients_names_them_all(split):
    train, test = split
    rows = [{"study_id": "s080", "patient_id": ""}]
    with pytest.raises(ValueError, match="none for study `s080`"):
        answer_by_lookup(*told_by(test), *told_by(train), train, patients=rows)
