"""Counting what a corpus holds."""

import json

from hf_mu2.data.inspect import describe, inspect_corpus
from tests.data.corpora import write_folder, write_table
from tests.paths import shared_data_or_skip


def test_studies_patients_volumes_texts_and_labels_are_counted(tmp_path):
    facts = inspect_corpus("folder", write_folder(tmp_path))
    assert facts["splits"] == {
        "train": {"studies": 4, "patients": 2, "volumes": 4},
        "test": {"studies": 2, "patients": 1, "volumes": 2},
    }
    assert facts["prevalence"] == {"Emphysema": 0.5}
    assert facts["prevalence_by_split"] == {"train": {"Emphysema": 0.5}, "test": {"Emphysema": 0.5}}
    assert facts["texts"]["findings"] == {"studies": 6, "median_words": 6, "max_words": 6}
    assert facts["texts"]["findings and impression"] == {"studies": 6} and "indication" not in facts["texts"]
    assert facts["missing_files"] == {"count": 0, "examples": []}
    assert facts["licence"] == "other" and facts["egress"] is False


def test_what_is_left_out_is_accounted_for(tmp_path):
    root = write_folder(tmp_path)
    (root / "ct0.nii.gz").unlink()
    facts = inspect_corpus("folder", root)
    assert facts["drops"] == {"report without volume": {"count": 1, "examples": ["s0"]}}
    assert "1  report without volume (s0)" in describe(facts)


def test_labels_nobody_gave_have_no_prevalence(tmp_path):
    rows = [
        {"study_id": "a", "report": "A.", "Emphysema": 1},
        {"study_id": "b", "report": "B.", "Atelectasis": 0},
    ]
    facts = inspect_corpus("folder", write_table(tmp_path, [row | {"split": "train"} for row in rows]))
    assert facts["prevalence"] == {"Emphysema": 1.0, "Atelectasis": 0.0}


def test_the_facts_are_json_and_the_description_names_them(tmp_path):
    facts = inspect_corpus("folder", write_folder(tmp_path), egress=True)
    assert json.loads(json.dumps(facts)) == facts
    text = describe(facts)
    assert "text may be sent to another machine" in text and "Emphysema" in text and "50.0%" in text


def test_the_real_openi_is_described():
    facts = inspect_corpus("openi", shared_data_or_skip("reports", "NLMCXR_reports.tgz").parent)
    assert (
        facts["texts"]["findings"]["median_words"] == 29 and facts["texts"]["impression"]["median_words"] == 5
    )
    assert facts["texts"]["findings and impression"] == {"studies": 3419}
    assert facts["drops"]["without findings and impression"]["count"] == 28
