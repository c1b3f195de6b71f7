import random

import pytest

from hf_mu2.data.phantom import sentences
from hf_mu2.data.phantom.report import Finding, PhantomReport, write_report
from hf_mu2.data.study import FINDING_LABELS
from tests.phantom_findings import draw_findings


def test_there_are_at_least_200_sentence_skeletons():
    skeletons = [
        s for table in (sentences.POSITIVES, sentences.IMPRESSIONS) for group in table.values() for s in group
    ]
    skeletons += [s for _, normals in sentences.GROUPS for s in normals]
    skeletons += [*sentences.IMPRESSION_NORMAL, *sentences.IMPRESSION_ALSO, *sentences.NEGATIVE_FRAMES]
    assert len(set(skeletons)) >= 200


def test_the_tables_hold_every_label_once():
    for table in (sentences.POSITIVES, sentences.IMPRESSIONS, sentences.LABEL_NOUNS):
        assert set(table) == set(FINDING_LABELS)
    assert sorted(sentences.IMPORTANCE) == sorted(FINDING_LABELS)
    assert sorted(label for labels, _ in sentences.GROUPS for label in labels) == sorted(FINDING_LABELS)


def test_the_same_findings_and_seed_write_the_same_report_in_any_order():
    findings = draw_findings(random.Random(5), 6)
    assert write_report(findings, 3) == write_report(findings[::-1], 3)
    assert write_report(findings, 3) != write_report(findings, 4)


def test_a_normal_chest_has_a_normal_impression():
    for seed in range(20):
        assert "No acute cardiopulmonary abnormality" in write_report([], seed).impression


def test_text_holds_both_sections():
    assert PhantomReport("A.", "B.").text == "Findings: A.\nImpression: B."


@pytest.mark.parametrize("label", FINDING_LABELS)
def test_a_finding_known_by_its_label_alone_can_be_written(label):
    for seed in range(10):
        report = write_report([Finding(label, None, None, 1, None, None)], seed)
        assert "None" not in report.text and "{" not in report.text and "[" not in report.text


def test_side_lobe_number_and_size_reach_the_findings():
    nodules = Finding("Lung nodule", "right", "upper lobe", 3, 8.0, None)
    effusion = Finding("Pleural effusion", "left", None, 1, 21.0, "moderate")
    node = Finding("Lymphadenopathy", None, "hilar", 1, 14.0, None)
    for seed in range(40):
        findings = write_report([nodules, effusion, node], seed).findings.lower()
        for fact in ("right upper lobe", "three", "8 mm", "left", "21 mm", "moderate", "hilar", "14 mm"):
            assert fact in findings, (fact, findings)


def test_a_bilateral_finding_is_never_given_one_side():
    for seed in range(20):
        text = write_report([Finding("Emphysema", "bilateral", "upper lobe", 1, None, "mild")], seed).text
        assert "both upper lobes" in text and "right" not in text and "left" not in text


def test_any_region_and_kind_is_used_verbatim():
    plug = Finding("Medical material", None, "brachiocephalic vein", 1, None, None, "tunnelled dialysis line")
    for seed in range(20):
        findings = write_report([plug], seed).findings.lower()
        assert "tunnelled dialysis line" in findings and "brachiocephalic vein" in findings


def test_the_impression_tells_the_most_important_finding_first():
    findings = [
        Finding(label, None, None, 1, None, None) for label in ("Hiatal hernia", "Consolidation", "Emphysema")
    ]
    for seed in range(10):
        assert "onsolidation" in write_report(findings, seed).impression.split(".")[0]


def test_reports_stay_compact():
    lengths = []
    for seed in range(600):
        rng = random.Random(seed)
        lengths.append(
            len(write_report(draw_findings(rng, rng.choice([0, 1, 2, 2, 3, 3, 4])), seed).text.split())
        )
    assert 60 <= sum(lengths) / len(lengths) <= 110


def test_sentences_start_with_a_capital_and_articles_agree():
    for seed in range(200):
        report = write_report(draw_findings(random.Random(seed), 5), seed)
        for sentence in f"{report.findings} {report.impression}".split(". "):
            assert sentence[0].isupper() or sentence[0].isdigit(), sentence
        assert not any(
            wrong in report.text for wrong in (" a 8", " a 11 ", " a 18 ", " an 1 ", " an 5", "  ")
        )


def test_an_unknown_label_is_refused():
    with pytest.raises(ValueError, match="one of the 18 CT-RATE labels"):
        write_report([Finding("Fracture", None, None, 1, None, None)], 0)
