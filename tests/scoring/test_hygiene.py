import pytest

from hf_mu2.scoring.findings import read_findings
from hf_mu2.scoring.hygiene import (
    clean_candidate,
    clean_reference,
    is_chinese,
    patient_of,
    plain_text,
    separate_han,
    split_sentences,
    study_of,
)
from hf_mu2.scoring.lexical import score_texts
from hf_mu2.scoring.rows import pair_reports, read_references

CHINESE = "双肺纹理清晰，未见明显结节。右侧胸腔少量积液。"


@pytest.mark.parametrize(
    ("text", "scored", "status"),
    [
        ("<think>maybe a nodule</think>No nodule.", "No nodule.", "ok"),
        ("<think>a</think>draft<think>b</think> No nodule.", "No nodule.", "ok"),
        ("thoughts that were opened in the prompt</think>\nNo nodule.", "No nodule.", "ok"),
        ("<think>never ends", "", "unclosed_reasoning"),
        ("Answer first. <think>never ends", "", "unclosed_reasoning"),
        ("<think>only this</think>", "", "empty"),
        ("   \n", "", "empty"),
        (None, "", "empty"),
        (float("nan"), "", "empty"),
    ],
)
def test_the_candidate_is_the_text_after_the_last_reasoning(text, scored, status):
    assert clean_candidate(text) == (scored, status)


@pytest.mark.parametrize(
    "text",
    [
        "",
        None,
        float("nan"),
        "Not given.",
        "not given",
        "Findings: Not given.\nImpression: Not given.",
        "N/A",
        '""',
    ],
)
def test_a_reference_that_says_nothing_is_empty(text):
    assert clean_reference(text) == ""


def test_a_reference_with_one_section_given_is_kept():
    text = "Findings: No nodule.\nImpression: Not given."
    assert clean_reference(text) == text


def test_unicode_is_brought_to_one_form():
    assert plain_text("cafe\u0301\u00a0“x”\u200b 3–4 mm²\r\nnext\tline\x00") == 'café "x" 3-4 mm²\nnext line'
    assert plain_text("already plain") == "already plain"


def test_the_same_text_in_other_characters_scores_one():
    reference = "The patient's nodule measures 3-4 mm in the upper lobe."
    scores = score_texts([plain_text("The patient’s nodule measures 3–4 mm in the upper lobe.")], [reference])
    assert scores["bleu4"] == pytest.approx(1) and scores["chrf"] == pytest.approx(1)


def test_chinese_counts_characters_as_words_and_has_no_labels():
    assert is_chinese(CHINESE) and not is_chinese("No nodule. 结") and not is_chinese("12 mm")
    assert separate_han("右side").split() == ["右", "side"]
    half = score_texts([CHINESE[: len(CHINESE) // 2]], [CHINESE])
    for protocol in ("default", "u2", "coco"):
        same = score_texts([CHINESE], [CHINESE], protocol=protocol)
        assert same["bleu4"] == pytest.approx(1) and same["rougeL"] == pytest.approx(1)
    assert 0 < half["rougeL"] < 1 and 0 < half["bleu1"] < 1
    assert all(value != value for value in read_findings(CHINESE).labels)


def test_a_report_of_ten_thousand_words_is_scored_in_full():
    loop = "There is a 5 mm nodule in the right upper lobe. " * 1000
    scores = score_texts([loop], ["There is a 5 mm nodule in the right upper lobe."])
    assert scores["bleu1"] == pytest.approx(11 / 11000) and scores["rougeL"] == pytest.approx(
        2 * 11 / 11011, rel=0.1
    )


def test_a_study_has_one_reference_and_its_first_candidate():
    rows = [
        {"VolumeName": "valid_1_a_1.nii.gz", "Findings_EN": "No nodule.", "Impressions_EN": "Not given."},
        {"VolumeName": "valid_1_a_2.nii.gz", "Findings_EN": "No nodule.", "Impressions_EN": "Not given."},
        {"VolumeName": "valid_1_b_1.nii.gz", "Findings_EN": "Not given.", "Impressions_EN": None},
    ]
    references, counts = read_references(rows)
    assert [(r.study_id, r.patient_id, r.text) for r in references] == [
        ("valid_1_a", "valid_1", "Findings: No nodule.")
    ]
    assert counts == {"repeated_references": 1, "empty_references": 1, "chinese_references": 0}
    predictions = [{"study_id": "valid_1_a", "candidate": text} for text in ("first", "second")]
    pairs = pair_reports([*predictions, {"study_id": "other", "candidate": "x"}], rows)
    assert pairs.candidates == ["first"] and pairs.counts["repeated_candidates"] == 1
    assert pairs.counts["candidates_without_reference"] == 1


def test_two_references_that_differ_are_refused():
    rows = [{"study_id": "a", "reference": "One."}, {"study_id": "a", "reference": "Two."}]
    with pytest.raises(ValueError, match="one reference, got two different texts for `a`"):
        read_references(rows)


def test_a_study_without_candidate_counts_as_an_empty_report():
    references = [{"study_id": name, "reference": "No nodule."} for name in "abc"]
    pairs = pair_reports(
        [{"study_id": "b", "candidate": "<think>..."}, {"study_id": "c", "candidate": "x"}], references
    )
    assert pairs.candidates == ["", "", "x"] and pairs.statuses == ["missing", "unclosed_reasoning", "ok"]


def test_names_of_volumes_lead_to_studies_and_patients():
    assert study_of("valid_12_b_3.nii.gz") == "valid_12_b" and patient_of("valid_12_b") == "valid_12"
    assert study_of("s50414267") == "s50414267" == patient_of("s50414267")
    assert patient_of("train_1") == "train_1"


def test_sentences_are_compared_without_case_and_spacing():
    assert split_sentences("No  nodule. Heart NORMAL;\n • 3.5 mm cyst.") == [
        "no nodule",
        "heart normal",
        "3.5 mm cyst",
    ]
