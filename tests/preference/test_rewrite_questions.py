"""Question-answer pairs: what a reply must look like, and that an answer is the report's own."""

import json

import pytest

from hf_mu2.preference.rewrite_questions import REASONS, check_questions
from hf_mu2.scoring.judge_cache import Reply

REPORT = (
    "Findings: A 6 mm nodule in the right upper lobe. Small left pleural effusion. No lymphadenopathy. The heart is "
    "normal in size. Possible consolidation in the left lower lobe.\n"
    "Impression: Right upper lobe nodule of 6 mm. Left pleural effusion."
)


def check(*pairs, region="chest", count=9, text=None, finish_reason="stop"):
    items = [dict(zip(("kind", "question", "answer", "options"), pair)) for pair in pairs]
    return check_questions(
        Reply(json.dumps(items) if text is None else text, finish_reason), REPORT, region, count
    )


@pytest.mark.parametrize(
    ("kind", "question", "answer"),
    [
        ("presence", "Is there a pleural effusion?", "Yes"),
        ("presence", "Are enlarged lymph nodes seen?", "No."),
        ("location", "Where is the lung nodule?", "In the right upper lobe."),
        ("location", "On which side is the pleural effusion?", "Left"),
        ("size", "How large is the lung nodule?", "6 mm"),
        ("size", "How large is the lung nodule?", "0.6 cm"),
        ("open", "What is seen in the pleura?", "There is a small left pleural effusion."),
        ("open", "What is the status of the lymph nodes?", "There is no lymphadenopathy."),
        ("open", "What abnormality is seen in the right lung?", "A 6 mm nodule in the upper lobe."),
        ("open", "How is the heart?", "The heart is normal in size."),
    ],
)
def test_an_answer_that_the_report_gives_is_checked(kind, question, answer):
    (verdict,) = check((kind, question, answer))
    assert (verdict.status, verdict.reason, verdict.pair["question"]) == ("checked", "", question)
    assert verdict.pair["kind"] == kind


@pytest.mark.parametrize(
    ("kind", "question", "answer", "reason"),
    [
        ("presence", "Is there a pleural effusion?", "No", "contradicted"),
        ("presence", "Is there a right pleural effusion?", "Yes", "contradicted"),
        ("presence", "Is there emphysema?", "Yes", "not stated"),
        ("presence", "Is there emphysema?", "No", "not stated"),  # what is not mentioned is not denied
        ("presence", "Is there consolidation?", "Yes", "contradicted"),  # it is only possible
        ("presence", "Is there no effusion?", "Yes", "ambiguous"),
        ("presence", "Is there a pleural effusion?", "On the left.", "incomplete"),
        ("location", "Where is the lung nodule?", "In the left upper lobe.", "contradicted"),
        ("location", "Where is the lung nodule?", "In the right lower lobe.", "contradicted"),
        ("location", "Where is the lung nodule?", "In the middle lobe.", "not stated"),
        ("location", "On which side is the pleural effusion?", "Both sides", "not stated"),
        ("size", "How large is the lung nodule?", "8 mm", "not stated"),
        ("size", "How large is the pleural effusion?", "6 mm", "contradicted"),
        ("size", "How large is the lung nodule?", "small", "incomplete"),
        ("open", "What is seen in the pleura?", "No pleural effusion is seen.", "contradicted"),
        ("open", "What does the lung show?", "A nodule and emphysema.", "not stated"),
        ("open", "How many nodules are there?", "Three nodules.", "not stated"),
        ("open", "Does the report mention an effusion?", "A left pleural effusion.", "names the report"),
        ("open", "What is seen?", "Есть узелок.", "script"),
        ("riddle", "What is it?", "A nodule.", "kind"),
        ("open", "", "A nodule.", "incomplete"),
        ("open", "What is seen?", 5, "incomplete"),
    ],
)
def test_an_answer_that_the_report_does_not_give_is_refused(kind, question, answer, reason):
    (verdict,) = check((kind, question, answer))
    assert verdict.status == "refused" and verdict.pair == {}
    assert (verdict.reason == reason) or (reason == "not stated" and verdict.reason == "contradicted")
    assert verdict.reason in REASONS


def test_what_no_reader_knows_is_unchecked():
    assert check(("presence", "Is the stomach full?", "Yes"))[0].status == "unchecked"
    assert check(("open", "How sure is this?", "Not very."))[0].status == "unchecked"
    assert check(("presence", "Is there a pleural effusion?", "Yes"), region="head")[0].status == "unchecked"


NODULE = ["Right upper lobe", "Left upper lobe", "Lingula", "Right lower lobe"]


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        (NODULE, "Right upper lobe", ""),
        (NODULE, "Left upper lobe", "contradicted"),
        (NODULE[1:], "Right upper lobe", "options"),
        (["Right upper lobe", "right upper lobe."], "Right upper lobe", "options"),
        (["A. Right upper lobe", "B. Lingula"], "A. Right upper lobe", "options"),
        ("Right upper lobe", "Right upper lobe", "options"),
        (None, "Right upper lobe", "options"),
    ],
)
def test_of_several_options_one_is_right(options, answer, reason):
    (verdict,) = check(("choice", "Where is the lung nodule?", answer, options))
    assert verdict.reason == reason and (verdict.status == "checked") == (not reason)
    assert reason or verdict.pair["options"] == options


def test_two_right_options_are_ambiguous():
    options = ["Left pleural effusion", "Lung nodule", "Emphysema", "Cardiomegaly"]
    (verdict,) = check(("choice", "Which finding is present?", "Lung nodule", options))
    assert verdict.reason == "ambiguous"
    assert check(("choice", "Which finding is present?", "Lung nodule", options[1:]))[0].status == "checked"


def test_a_question_comes_once_and_no_more_than_asked_for():
    pair = ("presence", "Is there a pleural effusion?", "Yes")
    assert [verdict.reason for verdict in check(pair, pair)] == ["", "duplicate"]
    assert len(check(pair, pair, count=1)) == 1


def test_presence_has_its_two_options_and_a_plain_answer():
    (verdict,) = check(("presence", "Is  there a pleural\neffusion?", "yes."))
    assert verdict.pair == {
        "question": "Is there a pleural effusion?", "answer": "Yes", "options": ["Yes", "No"], "kind": "presence"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("", "stop", "empty"),
        ("[]", "stop", "empty"),
        ("No questions.", "stop", "unparsed"),
        ('[{"kind": "open"', "stop", "unparsed"),
        ("[1, 2]", "stop", "unparsed"),
        ('[{"kind": "open"}]', "length", "truncated"),
    ],
)
def test_a_reply_that_is_no_list_of_pairs_is_refused_whole(text, finish_reason, reason):
    (verdict,) = check(text=text, finish_reason=finish_reason)
    assert (verdict.status, verdict.reason) == ("refused", reason)


def test_a_fence_around_the_list_is_no_harm():
    text = '```json\n[{"kind": "presence", "question": "Is there a pleural effusion?", "answer": "Yes"}]\n```'
    assert check(text=text)[0].status == "checked"


def test_a_call_without_a_reply_says_why():
    (verdict,) = check_questions(Reply(error="HTTP 500"), REPORT, "chest", 3)
    assert (verdict.reason, verdict.detail) == ("no reply", "HTTP 500")
