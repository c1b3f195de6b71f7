"""The check of paraphrases: form, content, and how much it catches of what is changed by program."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mu2.data.phantom import FIRST_SEED
from hf_mu2.preference.rewrite_check import REASONS, bare_words, check_paraphrase, split_sections
from hf_mu2.preference.rewrite_trials import CHANGES, phantom_trials, run_trials, table_trials, to_table
from hf_mu2.scoring.judge_cache import Reply

ORIGINAL = {
    "findings": "A 6 mm nodule in the right upper lobe. Two small cysts in the liver. No pleural effusion or "
    "pneumothorax. The heart is normal in size. Mild emphysema.",
    "impression": "Right upper lobe nodule of 6 mm. Mild emphysema.",
}
SAME = (
    "Findings: In the right upper lobe there is a nodule measuring 0.6 cm. Mild emphysema is noted. The liver contains "
    "two small cysts. Neither pleural effusion nor pneumothorax is seen. Normal heart size.\n"
    "Impression: Mild emphysema. 6 mm nodule in the right upper lobe."
)


def check(text, region="chest", finish_reason="stop", taken=()):
    return check_paraphrase(Reply(text, finish_reason), ORIGINAL, region, taken)


def test_the_same_report_in_other_words_is_checked():
    verdict = check(SAME)
    assert (verdict.status, verdict.reason) == ("checked", "")
    assert set(verdict.texts) == {"findings", "impression"} and verdict.texts["impression"].startswith("Mild")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("In the right upper", "In the left upper", "moved"),
        ("6 mm nodule in the right", "6 mm nodule in the left", "moved"),  # in the impression alone
        ("In the right upper", "In the right lower", "moved"),
        ("0.6 cm", "8 mm", "resized"),
        ("measuring 0.6 cm", "of small size", "resized"),
        ("Normal heart size.", "Normal heart size. Left pleural thickening.", "added"),
        ("Normal heart size.", "Normal heart size. No bronchiectasis.", "added"),
        ("Mild emphysema is noted. ", "", "lost"),
        (" nor pneumothorax", "", "lost"),  # a lost denial is a lost statement
        ("Neither pleural effusion nor pneumothorax is seen.", "Pleural effusion and pneumothorax.", "added"),
        ("Mild emphysema is noted", "No emphysema is noted", "added"),
        ("Mild emphysema is noted", "Severe emphysema is noted", "severity"),
        ("The liver contains", "The spleen contains", "added"),
        ("two small cysts", "three small cysts", "number"),
        ("Impression: Mild emphysema.", "Impression:", "lost"),
    ],
)
def test_a_changed_report_is_refused_with_the_reason(old, new, reason):
    assert old in SAME
    verdict = check(SAME.replace(old, new))
    assert (verdict.status, verdict.reason) == ("refused", reason) and verdict.texts == {}


def test_what_differs_is_told_without_words_of_the_report():
    verdict = check(SAME.replace("In the right upper", "In the left upper"))
    assert verdict.detail == "findings: Lung nodule (chest) from right to left"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("<think>Hmm", "truncated"),
        ("Here is the rewritten report:\n" + SAME, "preamble"),
        ("Sure! " + SAME, "preamble"),
        ("I'm sorry, I cannot help with that.", "preamble"),
        (SAME + "\nLet me know if you need another version.", "preamble"),
        (SAME.replace("Findings:", "**Findings:**"), "markup"),
        (f"```\n{SAME}\n```", "markup"),
        (SAME.replace("Impression:", "In short,"), "layout"),
        ("The report. " + SAME, "layout"),
        (SAME + " Impression: Emphysema.", None),  # a heading inside a line is none
        (SAME + "\nImpression: Emphysema.", "layout"),
        (SAME.replace("Normal heart size.", "心脏大小正常。"), "script"),
        (SAME.replace("Normal heart size.", "Сердце не увеличено."), "script"),
        ("Findings: Nodule.\nImpression: Nodule.", "too short"),
        (SAME + " The lungs were looked at with great care and in every detail." * 4, "too long"),
        (f"Findings: {ORIGINAL['findings'].upper()}\nImpression: {ORIGINAL['impression']}", "duplicate"),
    ],
)
def test_a_reply_of_the_wrong_form_is_refused(text, reason):
    verdict = check(text)
    if reason is None:
        assert verdict.reason not in ("layout", "preamble")
    else:
        assert (verdict.status, verdict.reason) == ("refused", reason)


def test_reasoning_before_the_report_is_no_harm():
    assert check(f"<think>They want other words.</think>\n{SAME}").status == "checked"


def test_a_reply_that_ran_out_of_tokens_is_refused_however_it_looks():
    assert check(SAME, finish_reason="length").reason == "truncated"
    assert check(SAME, finish_reason="content_filter").reason == "truncated"
    assert check_paraphrase(Reply(error="HTTP 500"), ORIGINAL, "chest").reason == "no reply"


def test_a_paraphrase_comes_once():
    taken = {bare_words(check(SAME).texts)}
    assert check(SAME.lower(), taken=taken).reason == "duplicate"


def test_nothing_is_checked_where_the_readers_know_no_region():
    assert check(SAME, region="head").status == "unchecked"
    assert check(SAME, region="").status == "unchecked"
    assert check(SAME.replace("0.6 cm", "9 mm"), region="head").reason == "resized"


def test_a_sentence_that_no_reader_knows_leaves_the_report_unchecked():
    assert check(SAME.replace("Normal heart", "The patient feels well. Normal heart")).status == "unchecked"


def test_a_report_with_one_section_keeps_one():
    original = {"findings": ORIGINAL["findings"]}
    both = check_paraphrase(Reply(SAME, "stop"), original, "chest")
    one = check_paraphrase(Reply(SAME.split("\n")[0], "stop"), original, "chest")
    assert both.reason == "layout" and one.status == "checked"


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="Findgs:Impreo\n .*", max_size=60))
def test_sections_lose_no_words(text):
    sections = split_sections(text)
    if sections is not None:
        kept = " ".join([*(f"{name}:" for name in sections), *sections.values()])
        assert sorted("".join(kept.lower().split())) == sorted("".join(text.lower().split()))


@pytest.fixture(scope="module")
def few():
    first = FIRST_SEED["validation"]
    return run_trials(phantom_trials(range(first, first + 4)))


CERTAIN = ("side turned", "size changed", "finding added", "finding lost", "denial lost", "denial affirmed")


def share_refused(counts):
    changed = [found for kind, found in counts.items() if kind != "faithful"]
    return sum(found["refused"] for found in changed) / sum(found.total() for found in changed)


def test_changes_made_by_program_are_refused_and_rewordings_are_not(few):
    assert len(few) >= 10 and set(few) <= {"faithful", *CHANGES}
    assert few["faithful"]["refused"] == 0 and few["faithful"]["checked"] >= 3
    assert share_refused(few) >= 0.95
    assert all(few[kind]["refused"] == few[kind].total() for kind in CERTAIN)


@pytest.mark.slow
@pytest.mark.parametrize(("region", "most_refused"), [("chest", 0.05), ("abdomen", 0.4)])
def test_the_check_keeps_its_measured_level(region, most_refused):
    """Floors a little under what `benchmarks/rewrite_check.py` measures, see docs/rewrite.md."""
    first = FIRST_SEED["validation"]
    counts = run_trials(phantom_trials(range(first, first + 25), region))
    assert counts["faithful"]["refused"] <= most_refused * 25
    assert share_refused(counts) >= 0.95
    for kind in CERTAIN:
        assert counts[kind]["refused"] == counts[kind].total() > 0, kind


def test_trials_of_a_table_and_their_layout(few):
    (report,) = (f"{ORIGINAL['findings']} {ORIGINAL['impression']}",)
    trials = list(table_trials([report]))
    assert [trial.kind for trial in trials][:2] == ["faithful", "side turned"]
    assert all(trial.rewrite != trials[0].rewrite for trial in trials[1:])
    lines = to_table(few).splitlines()
    assert lines[2].startswith("| faithful | 4 |") and lines[-1].startswith("| all changes |")


def test_every_reason_is_listed_once():
    assert len(set(REASONS)) == len(REASONS)
