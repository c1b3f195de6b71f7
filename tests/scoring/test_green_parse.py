"""What a judge's reply says, in both parsers: failures are told from zeros."""

import re

import pytest

from hf_mu2.scoring.green_parse import CATEGORIES, read_reply
from tests.scoring.judge_server import WELL_FORMED, assess


def reply(significant="(a) Type: 2. x; y\n(b) Type: 1. z", matched="3. p; q; r", insignificant="No errors."):
    """Write an assessment of 3 matched findings and 2 + 1 errors, or with a section replaced or (`None`) left out."""
    sections = {
        "Explanation": "As seen.",
        "Clinically Significant Errors": significant,
        "Clinically Insignificant Errors": insignificant,
        "Matched Findings": matched,
    }
    return "\n\n".join(f"[{name}]:\n{body}" for name, body in sections.items() if body is not None) + "\n"


# The ten failures of the released parser (two in two spellings), with what it makes of them and what is there.
CUT_OFF = "[Explanation]:\nAs seen.\n\n[Clinically Significant Errors]:\n(a) Type: 2. x; y\n(b) Ty"
TEN_CASES = {
    "cut off before the matched findings": (CUT_OFF, 0.0, "truncated", None),
    "no section of significant errors": (reply(significant=None), 1.0, "unparsed", None),
    "a blank line between (a) and (b)": (reply("(a) Type: 2. x; y\n\n(b) Type: 1. z"), 0.6, "ok", 0.5),
    "a size read as a count": (
        reply("(d) Wrong severity: 12.5 mm nodule called 6 mm"),
        3 / 15,
        "unparsed",
        None,
    ),
    "two lines for (b)": (reply("(b) Type: 1. x\n(b) Type: 2. y; z"), 0.6, "ok", 0.5),
    "a dash after the count": (reply("(b) Type: 2 - nodule; cyst"), 1.0, "ok", 0.6),
    "matched findings in bold": (reply(matched="**3.** p; q; r"), 0.0, "ok", 0.5),
    "matched findings in a sentence": (reply(matched="There are 3 matched findings."), 0.0, "ok", 0.5),
    "a section that starts with No": (reply("Nodule missed in the left lung"), 1.0, "unparsed", None),
    "a section that says None": (reply("None."), 1.0, "ok", 1.0),
    "nothing matched, no errors": (reply("No errors.", "No matched findings."), 0.0, "ok", 1.0),
    "an empty reply": ("", 0.0, "empty", None),
}


@pytest.mark.parametrize("case", TEN_CASES)
def test_strict_reads_what_is_there_or_says_that_it_cannot(case):
    text, _, status, score = TEN_CASES[case]
    reading = read_reply(text)
    assert (reading.status, reading.score) == (status, pytest.approx(score) if score is not None else None)


@pytest.mark.parametrize("case", TEN_CASES)
def test_reference_gives_the_released_number_beside_the_status(case):
    text, released, status, _ = TEN_CASES[case]
    reading = read_reply(text, parser="reference")
    assert (reading.status, reading.score) == (status, pytest.approx(released))


def test_a_well_formed_reply_reads_alike_in_both_parsers():
    strict, reference = read_reply(WELL_FORMED), read_reply(WELL_FORMED, parser="reference")
    assert strict == reference
    assert strict.score == 0.5 and strict.matched == 3
    assert strict.significant == {"a": 2, "b": 1, "c": 0, "d": 0, "e": 0, "f": 0}
    assert strict.insignificant["d"] == 1
    assert strict.errors == {"a": ["Right pleural effusion", "Cardiomegaly"], "b": ["Left lower lobe nodule"]}


@pytest.mark.parametrize("seed", range(40))
def test_well_formed_replies_read_alike_in_both_parsers(seed):
    text = assess(str(seed)).text
    assert read_reply(text) == read_reply(text, parser="reference")


@pytest.mark.parametrize("cut", range(0, len(WELL_FORMED) - 60, 7))
def test_a_reply_cut_off_anywhere_has_no_strict_score(cut):
    assert read_reply(WELL_FORMED[:cut], "length").score is None
    assert read_reply(WELL_FORMED[:cut]).status in ("truncated", "empty", "unparsed")


def test_a_reply_that_ran_out_of_tokens_is_truncated_however_it_reads():
    assert read_reply(WELL_FORMED, "length").status == "truncated"
    assert read_reply(WELL_FORMED, "stop").status == "ok"


def test_a_reply_that_stops_early_by_itself_is_unparsed():
    assert read_reply(CUT_OFF, "stop").status == "unparsed"


def test_reasoning_before_the_answer_is_ignored():
    assert read_reply(f"<think>{reply('(a) Type: 9. x')}</think>\n{WELL_FORMED}") == read_reply(WELL_FORMED)


def test_order_of_lines_does_not_matter():
    assert (
        read_reply(reply("(b) Type: 1. z\n(a) Type: 2. x; y")).significant == read_reply(reply()).significant
    )


@pytest.mark.parametrize(
    "style",
    [
        lambda text: text.replace("(a) Type:", "- **(a) Type**:").replace("(b) Type:", "- **(b) Type**:"),
        lambda text: re.sub(r"\[(.*?)\]:", r"### \1", text),
        lambda text: re.sub(r"\[(.*?)\]:", r"**[\1]:**", text),
        lambda text: text.replace("\n\n", "\n"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: f"```\n{text}```",
        lambda text: text.replace("(a)", "(1)").replace("(b)", "(2)"),
        lambda text: text.replace("(a)", "(A)").replace("(b)", "(B)"),
        lambda text: text.replace("2. x; y", "2. x;\n   y"),
        lambda text: text.replace("2. x; y", "\n1. x\n2. y"),
        lambda text: text.replace("y\n(b)", "y (b)"),
        lambda text: text.replace("3. p; q; r", "1. p\n2. q\n3. r"),
    ],
    ids=[
        "bold bullets",
        "markdown headings",
        "bold headers",
        "no blank lines",
        "windows line ends",
        "code block",
        "numbered categories",
        "capital letters",
        "wrapped line",
        "errors as a list",
        "one line",
        "matches as a list",
    ],
)
def test_strict_reads_a_judges_styles(style):
    reading = read_reply(style(reply()))
    assert (reading.status, reading.score) == ("ok", 0.5)
    assert reading.significant == {**dict.fromkeys(CATEGORIES, 0), "a": 2, "b": 1}
    assert reading.errors["a"] == ["x", "y"]


@pytest.mark.parametrize(
    "none", ["None", "None.", "No errors.", "No clinically significant errors were found.", "N/A"]
)
def test_statements_of_none_are_zero_errors(none):
    for significant in (none, f"(a) Type: {none}\n(b) Type: 0."):
        reading = read_reply(reply(significant))
        assert (reading.status, reading.score) == ("ok", 1.0)


@pytest.mark.parametrize(
    "line",
    [
        "(b) Missing: No mention of the effusion",
        "(b) Missing: Nodule",
        "(b) Missing: 3 mm nodule",
        "(d) Severity: 5-6 mm nodule called large",
        "None of the lesions was described",
        "Several errors.",
        "",
    ],
)
def test_lines_without_a_count_are_not_guessed(line):
    assert read_reply(reply(line)).status == "unparsed"


def test_unreadable_insignificant_errors_do_not_cost_the_score():
    reading = read_reply(reply(insignificant="Some."))
    assert (reading.status, reading.score, reading.insignificant) == ("ok", 0.5, None)


def test_two_different_assessments_in_one_reply_are_unparsed_unless_explained_anew():
    other = reply("(a) Type: 1. x")
    assert read_reply(reply() + other.partition("\n\n")[2]).status == "unparsed"
    assert read_reply(reply() + other) == read_reply(other)


def test_reference_keeps_the_quirks_of_the_released_cleaning():
    echoed = f"[Explanation]:\n    <Explanation>\n\n{reply('(a) Type: 1. x')}"
    assert read_reply(echoed, parser="reference").score == 0.0
    assert read_reply(reply("(a) Type: 1. x") + WELL_FORMED, parser="reference").score == 0.5
