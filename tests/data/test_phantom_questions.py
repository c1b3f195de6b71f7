"""Questions about phantoms: answered by what was drawn, balanced, and the same every time."""

from collections import Counter

import pytest

from hf_mu2.data.phantom.questions import ask_questions
from hf_mu2.data.phantom.regions import ABDOMEN_LABELS, BODY_REGIONS
from hf_mu2.data.study import FINDING_LABELS


def finding(label, side=None, size_mm=None, count=1):
    return {"label": label, "side": side, "size_mm": size_mm, "count": count}


def truth_of(seed, region="chest"):
    """Draw findings as phantoms have them, without painting a volume."""
    import random

    rng = random.Random(seed)
    findings = [
        finding(label, rng.choice(["left", "right", "bilateral", None]), rng.uniform(4, 40))
        for label, share in BODY_REGIONS[region].prevalence.items()
        if rng.random() < share
    ]
    return {"region": region, "findings": findings}


@pytest.fixture(scope="module")
def studies():
    truths = {f"phantom_{seed:06d}": truth_of(seed) for seed in range(2000)}
    return [(truth, ask_questions(study_id, truth)) for study_id, truth in truths.items()]


def test_answers_follow_from_what_was_drawn(studies):
    for truth, questions in studies:
        drawn = {item["label"].lower(): item for item in truth["findings"]}
        for item in questions:
            label = item["question"].rpartition(": ")[2].removesuffix("?")
            if item["kind"] == "presence":
                assert item["answer"] == ("Yes" if label in drawn else "No")
            elif item["kind"] == "side":
                assert item["answer"].lower() == drawn[label]["side"]
            else:
                assert item["answer"] == f"{round(drawn[label]['size_mm'])} mm"
            assert item["options"].count(item["answer"]) == 1 and len(set(item["options"])) == len(
                item["options"]
            )


def test_no_answer_and_no_letter_is_more_frequent(studies):
    items = [item for _, questions in studies for item in questions]
    for kind, num_options in (("presence", 2), ("side", 2), ("size", 4)):
        of_kind = [item for item in items if item["kind"] == kind]
        letters = Counter(item["options"].index(item["answer"]) for item in of_kind)
        assert len(of_kind) > 500
        assert all(
            abs(letters[letter] / len(of_kind) - 1 / num_options) < 0.05 for letter in range(num_options)
        )
    answers = Counter(item["answer"] for item in items if item["kind"] == "presence")
    assert abs(answers["Yes"] - answers["No"]) < 0.01 * answers.total()


def test_the_name_of_a_finding_does_not_give_its_presence_away(studies):
    presence = [item for _, questions in studies for item in questions if item["kind"] == "presence"]
    named = Counter(item["question"] for item in presence)
    yes = Counter(item["question"] for item in presence if item["answer"] == "Yes")
    assert len(named) == len(FINDING_LABELS)
    guessed = sum(max(yes[question], count - yes[question]) for question, count in named.items())
    assert guessed / len(presence) < 0.56


def test_a_study_without_findings_is_asked_nothing():
    assert ask_questions("phantom_000001", {"region": "chest", "findings": []}) == []


def test_what_has_no_one_side_or_size_is_not_asked_for_it():
    label = FINDING_LABELS[0]
    scattered = [finding(label, "left", 12.0), finding(label, "right", 15.0)]
    small = [finding(label, "bilateral", 4.0)]
    for findings in (scattered, small):
        asked = ask_questions("phantom_000002", {"region": "chest", "findings": findings})
        assert {item["kind"] for item in asked} == {"presence"}


def test_the_abdomen_is_asked_about_its_own_findings_and_nothing_changes_from_call_to_call():
    truth = truth_of(3, "abdomen")
    questions = ask_questions("phantom_abdomen_000003", truth)
    assert questions == ask_questions("phantom_abdomen_000003", truth)
    names = {item["question"].rpartition(": ")[2].removesuffix("?") for item in questions}
    assert names <= {label.lower() for label in ABDOMEN_LABELS}
