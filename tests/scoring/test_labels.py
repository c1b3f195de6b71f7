import random
import time

import numpy as np
import pytest

from hf_mu2.data.phantom_report import write_report
from hf_mu2.data.study import FINDING_LABELS
from hf_mu2.scoring.labels import LABELS, find_labels, label_report, label_reports
from tests.phantom_findings import draw_findings

POSITIVE = {
    "Medical material": ["Left chest wall pacemaker.", "A port catheter ends in the superior vena cava."],
    "Arterial wall calcification": [
        "Calcified plaque of the thoracic aorta.",
        "Wall calcification of the aortic arch.",
    ],
    "Cardiomegaly": ["Cardiac size is mildly enlarged.", "The heart is enlarged.", "Stable cardiomegaly."],
    "Pericardial effusion": [
        "Trace pericardial effusion.",
        "An effusion of 9 mm is seen around the pericardium.",
    ],
    "Coronary artery wall calcification": [
        "Severe coronary artery calcifications.",
        "Calcific plaque in the LAD.",
    ],
    "Hiatal hernia": ["Small sliding hiatal hernia."],
    "Lymphadenopathy": [
        "Lymph nodes below pathological size are seen in the mediastinum.",
        "Hilar adenopathy.",
    ],
    "Emphysema": ["Moderate paraseptal emphysema.", "Bulla in the right apex."],
    "Atelectasis": ["Bibasilar dependent atelectasis.", "Atelectatic change at the left base."],
    "Lung nodule": [
        "6 mm solid nodule in the right upper lobe.",
        "No change in the right upper lobe nodule.",
    ],
    "Lung opacity": ["Patchy ground-glass opacities in both lungs.", "Hazy opacity in the lingula."],
    "Pulmonary fibrotic sequela": [
        "Biapical pleuroparenchymal scarring.",
        "Fibroatelectatic bands in the lingula.",
    ],
    "Pleural effusion": ["Small left pleural effusion.", "No pneumothorax, but a small right effusion."],
    "Mosaic attenuation pattern": ["Mosaic attenuation of the lower lobes."],
    "Peribronchial thickening": ["Peribronchial cuffing.", "Thickening of the peribronchial sheath."],
    "Consolidation": ["Right lower lobe consolidation concerning for pneumonia."],
    "Bronchiectasis": ["Mild cylindrical bronchiectasis.", "Dilated bronchi in the middle lobe."],
    "Interlobular septal thickening": [
        "Smooth interlobular septal thickening.",
        "The interlobular septa are thickened.",
    ],
}
NOTHING = [
    "The lungs are clear.",
    "Heart size is at the upper limits of normal.",
    "No focal consolidation, pleural effusion, or pneumothorax is seen.",
    "Pericardial and pleural effusion were not detected.",
    "Neither nodule nor consolidation is present.",
    "No lymph node of pathological size was observed in the mediastinum.",
    "Ground-glass opacity has completely resolved.",
    "Hypodense nodule in the left thyroid lobe.",
    "Subcutaneous emphysema along the right chest wall.",
    "Calcification of the aortic valve.",
    "Bronchial wall thickening.",
    "Sequelae of fracture in the right sixth rib.",
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


def test_a_report_takes_milliseconds():
    report = " ".join(NOTHING + [sentence for group in POSITIVE.values() for sentence in group])
    find_labels(report)
    start = time.perf_counter()
    for _ in range(5):
        find_labels(report)
    assert (time.perf_counter() - start) / 5 < 0.1
