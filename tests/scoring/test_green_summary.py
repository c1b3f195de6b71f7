"""The summary: means, failures and themes of one judge's results."""

import pytest

from hf_mu2.scoring.green import GreenResult
from hf_mu2.scoring.green_parse import CATEGORIES
from hf_mu2.scoring.green_summary import find_themes, summarize, to_markdown


def result(score=0.5, status="ok", judge="j", missing=(), **fields):
    counts = {**dict.fromkeys(CATEGORIES, 0), "b": len(missing)}
    errors = {"b": list(missing)} if missing else {}
    return GreenResult(status, score, 3, counts, dict.fromkeys(CATEGORIES, 1), errors, judge, score, **fields)


UNSCORED = GreenResult("truncated", judge="j", reference_score=0.0)


def test_unscored_pairs_are_counted_and_in_no_mean():
    summary = summarize([result(0.5), result(1.0), UNSCORED, GreenResult("failed", judge="j", error="down")])
    assert summary["mean"] == 0.75 and summary["num_scored"] == 2 and summary["num_pairs"] == 4
    assert summary["status"] == {"ok": 2, "truncated": 1, "unparsed": 0, "empty": 0, "failed": 1}
    assert summary["reference_mean"] == pytest.approx(0.5)


def test_without_a_score_there_is_no_mean():
    summary = summarize([UNSCORED])
    assert summary["mean"] is None and "GREEN - over 0 of 1 pairs (1 truncated)" in to_markdown(summary)
    assert summarize([])["num_pairs"] == 0


def test_errors_are_summed_per_category():
    summary = summarize([result(missing=["Left nodule", "Effusion"]), result()])
    assert summary["categories"]["b"]["significant"] == 2
    assert summary["categories"]["b"]["share_without"] == 0.5
    assert summary["categories"]["a"]["insignificant"] == 2


def test_results_of_two_judges_are_not_mixed():
    with pytest.raises(ValueError, match="different judges are not mixed"):
        summarize([result(), result(judge="other")])


def test_themes_are_shared_phrases_most_frequent_first():
    lines = [
        "The candidate does not mention the small pleural effusion on the left",
        "Missing pleural effusion",
        "Pleural effusion not reported",
        "Coronary artery calcification is missing",
        "Omits coronary artery calcification",
        "Splenomegaly",
    ]
    themes = find_themes(lines)
    assert [(theme["phrase"], theme["count"]) for theme in themes] == [
        ("pleural effusion", 3),
        ("coronary artery calcification", 2),
    ]
    assert themes[0]["example"] == "Missing pleural effusion"
    assert find_themes(reversed(lines)) == themes


def test_lines_that_share_nothing_have_no_theme():
    assert find_themes(["Nodule", "Effusion"]) == [] == find_themes([])


def test_markdown_has_a_row_per_category():
    text = to_markdown(summarize([result(missing=["Left nodule", "Right nodule"])]))
    assert "| b | missing finding | 2 | 1 | 0% | nodule (2) |" in text
    assert sum(line.startswith("| ") for line in text.splitlines()) == 1 + len(CATEGORIES)
