import random
import re
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mu2.data.phantom.report import write_report
from hf_mu2.data.study import FINDING_LABELS
from hf_mu2.scoring.label_files import read_given_labels, read_reports
from hf_mu2.scoring.label_validation import validate_labels
from hf_mu2.scoring.labels import LABELS, find_labels, label_report, label_reports
from tests.paths import shared_data_or_skip
from tests.phantom_findings import draw_findings
from tests.scoring.label_sentences import NOTHING, POSITIVE

SENTENCES = [*NOTHING, *(sentence for group in POSITIVE.values() for sentence in group)]
DENIALS = [
    "No nodule was detected.",
    "No pericardial or pleural effusion is present.",
    "Consolidation, emphysema and atelectasis were not observed.",
    "Neither lymphadenopathy nor bronchiectasis is present.",
    "No hiatal hernia.",
    "Cardiomegaly is absent.",
]


def positives(report: str) -> set[str]:
    return {label for label, value in label_report(report).items() if value == 1}


def test_both_label_constants_are_equal():
    assert LABELS == FINDING_LABELS


@pytest.mark.parametrize(
    ("label", "sentence"), [(label, s) for label, group in POSITIVE.items() for s in group]
)
def test_a_plain_sentence_gets_exactly_its_label(label, sentence):
    assert positives(sentence) == {label}


@pytest.mark.parametrize("sentence", NOTHING)
def test_denied_and_foreign_findings_get_no_label(sentence):
    assert positives(sentence) == set()


@pytest.mark.parametrize(
    ("sentence", "labels"),
    [
        ("Atherosclerosis of the aorta and coronary arteries.", {LABELS[1], LABELS[4]}),
        ("No pericardial effusion, but a small right pleural effusion.", {"Pleural effusion"}),
        ("Pleural effusion was not detected, and nodules are observed in both lungs.", {"Lung nodule"}),
        ("No active infiltration was seen and there is emphysema.", {"Emphysema"}),
        ("No evidence of bronchiectasis; mild emphysema is present.", {"Emphysema"}),
        ("Stable cardiomegaly without pericardial effusion.", {"Cardiomegaly"}),
        ("Pulmonary nodule, hepatic cysts and aortic calcification.", {"Lung nodule", LABELS[1]}),
        ("Dilatation of the aorta, calcified plaques in the coronary arteries.", {LABELS[4]}),
        ("In the aortic arch, calcified plaques are observed.", {LABELS[1]}),
        ("A nodule, which was seen in the previous examination, was not detected now.", set()),
        (
            "A nodule was observed in the lingula and was not seen in the previous examination.",
            {"Lung nodule"},
        ),
        ("In the previous examination there was a consolidation in this localization.", set()),
        ("Areas previously described as consolidation are now ground-glass areas.", {"Lung opacity"}),
        ("Pericardial effusion - no calcification was detected.", set()),
        ("Small nodule on the left\nNo effusion was detected", {"Lung nodule"}),
        ("No nodule\nSmall pleural effusion", {"Pleural effusion"}),
        ("Impression:\n1. No effusion\n2. Emphysema", {"Emphysema"}),
        ("Pleuroparenchymal sequela density increases in both apices.", {"Pulmonary fibrotic sequela"}),
        ("Nonspecific density increases are observed in the left lower lobe.", {"Lung opacity"}),
        ("Thyroid nodules are seen, and there is a 4 mm nodule in the right lung.", {"Lung nodule"}),
    ],
)
def test_a_negation_reaches_only_its_own_clause(sentence, labels):
    assert positives(sentence) == labels


@pytest.mark.parametrize(
    "sentence", ["Possible consolidation.", "Consolidation?", "Consolidation cannot be excluded."]
)
def test_a_hedged_finding_is_uncertain_and_the_caller_decides(sentence):
    assert [evidence.status for evidence in find_labels(sentence)] == ["uncertain"]
    assert label_report(sentence)["Consolidation"] == 1
    assert label_report(sentence, uncertain="negative")["Consolidation"] == 0
    assert label_report(sentence, uncertain="ignore")["Consolidation"] is None


def test_a_plain_mention_overrules_a_hedged_one():
    report = "Possible nodule on the left. Nodule of 5 mm on the right."
    assert label_report(report, uncertain="negative")["Lung nodule"] == 1


def test_evidence_is_cut_from_the_report_as_written():
    report = "İmpression: NO Nodule.\nSmall HIATAL hernia, 3.5 cm."
    found = find_labels(report)
    assert [(evidence.label, evidence.status) for evidence in found] == [
        ("Lung nodule", "negative"),
        ("Hiatal hernia", "positive"),
    ]
    assert all(report[slice(*evidence.span)] == evidence.text for evidence in found)


def test_phantom_reports_are_labelled_without_a_mistake():
    for seed in range(3000):
        rng = random.Random(seed)
        findings = draw_findings(rng, rng.choice((0, 1, 2, 2, 3, 4, 6, 9, 18)))
        report = write_report(findings, seed)
        expected = {finding.label for finding in findings}
        got = label_report(report.text, uncertain="ignore")
        assert {label for label, value in got.items() if value == 1} == expected, report.text
        assert None not in got.values(), report.text


def test_the_impression_alone_holds_every_label_of_a_phantom():
    for seed in range(500):
        rng = random.Random(seed)
        findings = draw_findings(rng, rng.choice((0, 1, 3, 6)))
        assert positives(write_report(findings, seed).impression) == {finding.label for finding in findings}


def test_label_reports_is_one_row_per_report():
    labels = label_reports(["Cardiomegaly.", "", "Small hiatal hernia."])
    assert labels.shape == (3, 18) and labels.sum() == 2
    assert labels[0, LABELS.index("Cardiomegaly")] == 1 and labels[2, LABELS.index("Hiatal hernia")] == 1
    assert label_reports([]).shape == (0, 18)
    assert np.array_equal(label_reports(["Nodule?"], uncertain="negative"), np.zeros((1, 18)))


@pytest.mark.parametrize(
    "call", [lambda: label_report("", uncertain="maybe"), lambda: label_reports([], uncertain="ignore")]
)
def test_an_unusable_choice_for_uncertain_findings_is_refused(call):
    with pytest.raises(ValueError, match="uncertain"):
        call()


@st.composite
def reports(draw):
    """Sentences of every kind, affirmed, denied and foreign, in any order."""
    sentences = draw(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=8))
    return sentences


@settings(max_examples=30, deadline=None)
@given(reports(), st.sampled_from(DENIALS), st.integers(0, 8))
def test_a_denial_added_anywhere_changes_no_positive(sentences, denial, place):
    added = [*sentences[:place], denial, *sentences[place:]]
    assert positives(" ".join(added)) == positives(" ".join(sentences))


@settings(max_examples=30, deadline=None)
@given(reports(), st.randoms(use_true_random=False))
def test_the_order_of_sentences_changes_nothing(sentences, rng):
    shuffled = rng.sample(sentences, len(sentences))
    assert label_report(" ".join(shuffled)) == label_report(" ".join(sentences))


@settings(max_examples=30, deadline=None)
@given(reports(), st.sampled_from([str.upper, str.lower, str.title, str.swapcase]))
def test_case_changes_nothing(sentences, change):
    assert label_report(change(" ".join(sentences))) == label_report(" ".join(sentences))


def test_a_line_may_end_in_the_hyphen_of_a_word():
    report = (
        "There is a mild sliding hernia at the esophagogastric junction. Ground-\nglass areas are observed."
    )
    assert label_report(report)["Lung opacity"] == 1
    (found,) = [evidence for evidence in find_labels(report) if evidence.label == "Lung opacity"]
    assert found.text.lower().startswith("ground-\nglass") and report[slice(*found.span)] == found.text


@settings(max_examples=30, deadline=None)
@given(reports(), st.randoms(use_true_random=False), st.integers(60, 120))
def test_spaces_tabs_and_wrapped_lines_change_nothing(sentences, rng, width):
    report = " ".join(sentences)
    expected = label_report(report)
    assert label_report(re.sub(" ", lambda _: rng.choice((" ", "  ", "\t", "\u00a0")), report)) == expected
    assert label_report(report.replace(" ", "\n")) == expected
    assert label_report("\n".join(textwrap.wrap(report, width + 20))) == expected
    assert label_report("\r\n".join(sentences)) == label_report("\n".join(sentences))


@settings(max_examples=30, deadline=None)
@given(reports(), st.sampled_from(["", "İ", "Ⅻ ", "ﬁ ", "  \n\t", "– “"]))
def test_evidence_lies_in_the_text_as_written(sentences, prefix):
    report = prefix + "  ".join(sentences)
    for mention in find_labels(report):
        assert report[slice(*mention.span)] == mention.text
        assert mention.text.strip() == mention.text != ""


def test_many_reports_are_labelled_as_each_alone():
    rng = random.Random(0)
    texts = [" ".join(rng.sample(SENTENCES, 6)) for _ in range(50)]
    alone = [list(label_report(text).values()) for text in texts]
    assert label_reports(texts).tolist() == alone


def test_hand_given_labels_are_met_on_real_reports():
    table = shared_data_or_skip("reports", "ctrate_textclf_train.csv")
    _, texts, rows = read_reports(table)
    result = validate_labels(texts, read_given_labels(rows), num_resamples=200)
    assert result["micro"]["f1"] > 0.96 and result["macro_f1"] > 0.96
    assert result["cross_validated"]["micro_f1"] > 0.96
    assert min(fold["micro_f1"] for fold in result["folds"]) > 0.94


def test_validation_counts_a_table_by_hand():
    texts = ["Small nodule.", "Emphysema.", "Nothing to report.", "Small nodule."]
    given_labels = label_reports(texts)
    given_labels[2, LABELS.index("Emphysema")] = 1  # a finding the report does not state
    result = validate_labels(texts, given_labels, folds=2, num_resamples=50)
    assert result["micro"] == {"precision": 1.0, "recall": 0.75, "f1": pytest.approx(6 / 7)}
    assert result["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert sum(fold["reports"] for fold in result["folds"]) == 4
    low, high = result["intervals"]["micro_f1"]
    assert low <= result["micro"]["f1"] <= high


def test_a_wording_must_earn_its_place_outside_the_fold():
    texts = ["Small nodule."] * 10 + ["A pacemaker is seen."]
    result = validate_labels(texts, label_reports(texts), folds=11, num_resamples=10)
    assert result["micro"]["f1"] == 1.0
    assert result["cross_validated"]["micro_f1"] == pytest.approx(20 / 21)  # nobody else has a pacemaker


@pytest.mark.parametrize("labels", [np.zeros((2, 18)), np.zeros((3, 17))])
def test_validation_refuses_labels_that_do_not_fit(labels):
    with pytest.raises(ValueError, match="18 labels per report"):
        validate_labels(["", "", ""], labels)


def test_a_report_takes_milliseconds():
    report = " ".join(SENTENCES[:: len(SENTENCES) // 25])
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        find_labels(report)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1
