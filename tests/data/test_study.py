"""The schema of a study row."""

import json

import pytest
from datasets import Dataset, List, Nifti, Value

from hf_mu2.data.corpus import CorpusError, Drops, cut_validation, inside, required, share_of
from hf_mu2.data.study import FINDING_LABELS, StudyError, check_study, make_study, study_features
from hf_mu2.scoring.labels import LABELS


def study(**fields):
    return make_study(
        fields.pop("study_id", "s1"), **{"corpus": "folder", "split": "train", "egress": False} | fields
    )


def test_the_labels_are_those_that_are_scored():
    assert tuple(LABELS) == FINDING_LABELS


def test_a_row_has_every_column_and_fits_the_features():
    row = study(
        findings="A mass.", labels={"Emphysema": 1}, sections=[("chest", "A mass.")], metadata={"age": 40}
    )
    assert set(row) == set(study_features())
    stored = Dataset.from_list([row], features=study_features(lazy_nifti=False))[0]
    assert stored == row
    assert row["labels"]["Emphysema"] == 1 and row["labels"]["Atelectasis"] is None
    assert json.loads(row["metadata"]) == {"age": 40}


def test_without_patients_a_study_is_its_own():
    assert study()["patient_id"] == "s1" and study(patient_id="p")["patient_id"] == "p"


def test_questions_are_completed_and_kept_in_order():
    question = {"question": "Where?", "answer": "left", "options": ["right", "left"]}
    assert study(questions=[question])["questions"] == [question | {"kind": ""}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"study_id": "a/b"}, "name without slashes"),
        ({"study_id": " "}, "name without slashes"),
        ({"split": "valid"}, "`split` must be one of"),
        ({"patient_id": ""}, "`patient_id` must be a name"),
        ({"egress": "no"}, "`egress` must be True or False"),
        ({"findings": None}, "`findings` must be text"),
        ({"labels": {"Cough": 1}}, "exactly the 18 finding labels"),
        ({"labels": {"Emphysema": 0.4}}, "A label is 1, 0 or None"),
        ({"region": "thorax"}, "`region` joins"),
        ({"questions": [{"question": "Where?", "answer": ""}]}, "a text and an answer"),
        ({"questions": [{"question": "?", "answer": "c", "options": ["a", "b"]}]}, "one of the options"),
    ],
)
def test_a_broken_field_is_refused_with_the_rule_and_the_study(fields, message):
    with pytest.raises(StudyError, match=message):
        study(**fields)


def test_a_missing_column_is_refused():
    with pytest.raises(StudyError, match="every column"):
        check_study({"study_id": "s1"})


def test_report_text_is_never_quoted_in_an_error():
    with pytest.raises(StudyError) as error:
        study(findings="Secret finding", split="?")
    assert "Secret" not in str(error.value)


def test_images_are_lazy_or_text():
    assert study_features()["images"] == List(Nifti())
    assert study_features(lazy_nifti=False)["images"] == List(Value("string"))


def test_a_patient_stays_when_the_share_grows():
    small = {i for i in range(2000) if cut_validation(f"p{i}", 0.1) == "validation"}
    large = {i for i in range(2000) if cut_validation(f"p{i}", 0.2) == "validation"}
    assert small < large and 150 < len(small) < 250
    assert 0 <= share_of("p") < 1 and share_of("p") != share_of("p", seed=1)


def test_a_path_that_leaves_the_root_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").touch()
    (root / "link").symlink_to(tmp_path / "secret")
    for path in ("../secret", tmp_path / "secret", "link"):
        with pytest.raises(CorpusError, match="stay inside"):
            inside(root, path)
    assert inside(root, "a/../b") == root / "b"


def test_what_is_required_is_named_with_what_is_there(tmp_path):
    (tmp_path / "other.csv").touch()
    with pytest.raises(CorpusError, match=r"`a.csv` or `b.csv`.*other.csv"):
        required(tmp_path, "a.csv", "b.csv")
    assert required(tmp_path, "a.csv", "other.csv") == tmp_path / "other.csv"


def test_drops_count_everything_and_remember_the_first():
    drops = Drops()
    for i in range(7):
        drops.drop("without volume", f"s{i}")
    drops.note("4-D", "s9")
    assert drops.to_dict() == {
        "drops": {"without volume": {"count": 7, "examples": [f"s{i}" for i in range(5)]}},
        "notes": {"4-D": {"count": 1, "examples": ["s9"]}},
    }
    assert drops.summary() == "7 without volume"
