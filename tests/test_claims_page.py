"""The page of the claims and its figures: nothing is left out, and nothing is said that the result does not say."""

import copy
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from benchmarks.claims.figures import OUTLINE, draw_example, draw_slice, draw_strip, judge_side
from benchmarks.claims.names import MEASURE_TITLES
from benchmarks.claims.page import number, score_text, write_page
from benchmarks.claims.rows import ROWS
from PIL import Image

from hf_mu2.data.phantom import make_pair

MAX_BYTES = 300_000
LABEL = "Pleural effusion"
SAYS = "Findings: There is a {side} pleural effusion. No pneumothorax.\nImpression: {side} pleural effusion."


def difference(verdict: str) -> dict[str, Any]:
    center = {"higher": 0.05, "lower": -0.05, "no difference": 0.001}[verdict]
    low, high = center - 0.02, center + 0.02
    facts = {"difference": center, "seed_low": low, "seed_high": high, "low": low, "high": high}
    return {**facts, "verdict": verdict}


def row(name: str, verdict: str = "no difference", bar: str = "lower") -> dict[str, Any]:
    known = ROWS[name]
    score = {"values": [0.419, 0.431, 0.443], "mean": 0.431, "spread": 0.012, "low": 0.409, "high": 0.452}
    return {
        "claim": known.claim,
        "title": known.title,
        "about": known.about,
        "corpus": known.corpus,
        "against": known.against,
        "seeds": [0, 1, 2],
        "seconds": 200.0,
        "not_run": None,
        "measures": {measure: dict(score) for measure in MEASURE_TITLES} | {"coverage_under_3mm": None},
        "differences": {"macro_f1": difference(verdict)} if known.against else {},
        "clears_lookup": {"macro_f1": difference(bar)},
        "note": "",
    }


def not_run(name: str) -> dict[str, Any]:
    nothing = {"measures": {}, "differences": {}, "clears_lookup": {}, "seeds": [], "seconds": None}
    return row(name) | nothing | {"not_run": "too long"}


def claim(text: str, answer: str) -> dict[str, Any]:
    facts = {"paper": "a paper", "measured": f"What is measured of {text}", "changed": f"Changed: {text}"}
    return {"id": text, "claim": text, "answer": answer, **facts}


@pytest.fixture
def result() -> dict[str, Any]:
    floor = {"macro_f1": {"value": 0.2, "low": 0.18, "high": 0.22}, "crg": None}
    names = ("constant_normal", "random", "nearest_by_labels", "lookup")
    provenance = {"commits": ["abc1234"], "device": "2 CPU cores", "run_minutes": 12.3, "runs": 9}
    return {
        "protocol": {"name": "tiny", "train": 8, "seeds": [0, 1, 2], "tokenizer": {}},
        "provenance": provenance | {"versions": {"torch": "2.13"}, "command": "make claims"},
        "measures": list(MEASURE_TITLES),
        "floors": {"ordinary": dict.fromkeys(names, floor), "low": {"lookup": floor}},
        "rows": {
            name: row(name) for name in ("all", "baseline", "rpe", "all_5", "dpo", "low_gauss", "two_stage")
        }
        | {name: row(name) for name in ("scans_ours", "scans_published")},
        "claims": [claim("Parts help.", "holds"), claim("Data | are few.", "no difference")]
        + [claim("Radiologists agree.", "cannot be tested here")],
        "example": {
            "study_ids": ["phantom_7_side_a", "phantom_7_side_b"],
            "seed": 300_000_007,
            "spacing": [10, 6, 6],
            "label": LABEL,
            "change": "side",
            "references": [SAYS.format(side="left"), SAYS.format(side="right")],
            "reports": {
                "lookup": ["", "Findings: No pleural effusion."],
                "baseline": [SAYS.format(side="left")] * 2,
                "all": ["Findings: A nodule in the right upper lobe. The heart is normal. No fracture."] * 2,
            },
        },
    }


def page(result: dict[str, Any], tmp_path: Any) -> str:
    path = tmp_path / "docs" / "results" / "claims.md"
    write_page(result, path)
    return path.read_text()


def test_numbers_are_written_without_a_zero_before_the_point():
    assert (
        score_text({"mean": 0.431, "spread": 0.012, "low": 0.409, "high": 0.452})
        == ".431 ± .012 [.409, .452]"
    )
    assert [number(value) for value in (-0.0312, 1.0, -0.0001, None)] == ["-.031", "1.000", ".000", "-"]
    assert number(62.34, "words") == "62.3"


def test_every_claim_is_on_the_page_with_its_answer(result, tmp_path):
    text = page(result, tmp_path)
    for item in result["claims"]:
        (line,) = [
            line
            for line in text.splitlines()
            if line.startswith(f"| {item['claim']}".replace("a |", r"a \|"))
        ]
        assert item["answer"] in line and item["measured"].replace("|", r"\|") in line
        assert item["changed"].replace("|", r"\|") in line


def test_a_difference_inside_the_spread_is_printed_as_no_difference(result, tmp_path):
    text = page(result, tmp_path)
    (line,) = [line for line in text.splitlines() if line.startswith("| + RPE | baseline (LinVT) | macro-F1")]
    assert line.endswith("| no difference |")
    total = sum(len(item["differences"]) for item in result["rows"].values())
    assert f"0 of {total} verdicts are not" in text
    result["rows"]["rpe"] = row("rpe", "higher")
    assert f"1 of {total} verdicts are not" in page(result, tmp_path)


def test_a_generator_under_the_bar_is_said_not_to_clear_it(result, tmp_path):
    assert "macro-F1: **no generator clears the bar**" in page(result, tmp_path)
    result["rows"]["rpe"] = row("rpe", bar="higher")
    result["rows"]["dpo"] = row("dpo", bar="no difference")
    text = page(result, tmp_path)
    (said,) = [line for line in text.splitlines() if line.startswith("- macro-F1:")]
    clear, _, fails = said.partition("Does not clear it")
    assert "+ RPE" in clear and "+ RPE" not in fails
    assert "all + DPO" in fails and "all of mu2" in fails


def test_a_gain_in_the_judge_alone_is_said_beside_the_row(result, tmp_path):
    result["rows"]["dpo"]["note"] = "a gain in the optimised judge alone"
    (line,) = [line for line in page(result, tmp_path).splitlines() if line.startswith("| **all + DPO**")]
    assert "**a gain in the optimised judge alone**" in line


def test_every_measure_of_every_row_is_in_a_table(result, tmp_path):
    text = page(result, tmp_path)
    for title in MEASURE_TITLES.values():
        assert re.search(rf"^\|.*\| {re.escape(title)} \|", text, re.MULTILINE), title
    measured = [score for item in result["rows"].values() for score in item["measures"].values() if score]
    assert text.count("± .012<br>") + text.count("± 0.0<br>") == len(measured)


def test_a_partial_result_renders(result, tmp_path):
    result["rows"] = {"all": row("all"), "dpo": not_run("dpo"), "rpe": not_run("rpe")}
    result |= {"floors": {}, "claims": [], "example": None}
    text = page(result, tmp_path)
    assert "- all + DPO: too long" in text
    assert "claims_example" not in text
    draw_strip(result, tmp_path / "strip.png")
    draw_example(result, tmp_path / "example.png")
    assert (tmp_path / "strip.png").exists() and not (tmp_path / "example.png").exists()


def test_a_result_without_any_run_renders(result, tmp_path):
    result["rows"] = {name: not_run(name) for name in result["rows"]}
    assert "No row was held against the bar yet." in page(result, tmp_path)
    draw_strip(result, tmp_path / "strip.png")


def test_one_seed_has_no_spread(result, tmp_path):
    for item in result["rows"].values():
        item["seeds"] = [0]
        for score in filter(None, item["measures"].values()):
            score["spread"] = None
        for held in item["differences"].values():
            held |= {"seed_low": None, "seed_high": None}
    text = page(result, tmp_path)
    assert "±" not in text.replace("seeds ± standard", "") and ".431<br>[.409, .452]" in text
    assert "| +.001 | - | [-.019, .021] | no difference |" in text


def test_links_of_the_page_lead_to_the_figures(result, tmp_path):
    text = page(result, tmp_path)
    figures = tmp_path / "docs" / "figures"
    draw_strip(result, figures / "claims_strip.png")
    draw_example(result, figures / "claims_example.png")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 2
    for link in links:
        path = tmp_path / "docs" / "results" / link
        assert 0 < path.stat().st_size < MAX_BYTES
        Image.open(path).verify()


def test_the_strip_shows_a_verdict_in_its_colour(result, tmp_path):
    def count(verdict: str) -> list[int]:
        changed = copy.deepcopy(result)
        changed["rows"]["rpe"] = row("rpe", verdict)
        draw_strip(changed, tmp_path / "strip.png")
        red, _, blue = np.moveaxis(
            np.asarray(Image.open(tmp_path / "strip.png").convert("RGB")).astype(int), -1, 0
        )
        return [int((blue - red > 80).sum()), int((red - blue > 80).sum())]

    (blue, orange), (higher, _), (_, lower) = count("no difference"), count("higher"), count("lower")
    assert higher > blue + 500 and lower > orange + 500


@pytest.mark.parametrize(
    ("report", "verdict", "says"),
    [
        ("Findings: Left pleural effusion.", "right", "says left"),
        ("Findings: Right pleural effusion. A nodule in the left lung.", "wrong", "says right"),
        ("Findings: Bilateral pleural effusion.", "wrong", "says both"),
        ("Findings: No pleural effusion.", "wrong", "says none"),
        ("Findings: Pleural effusion. A nodule in the left lung.", "no side", "no side given"),
        ("Findings: A nodule in the left lung.", "not named", "not mentioned"),
        ("", "not named", "not mentioned"),
    ],
)
def test_the_side_of_a_finding_is_judged_by_the_sentence_that_names_it(report, verdict, says):
    judged = judge_side(report, LABEL, "left")
    assert (judged.verdict, judged.says) == (verdict, says)
    assert all("nodule" not in report[start:end] for start, end in judged.spans)


def test_the_words_of_a_finding_and_its_side_are_marked():
    report = (
        "Findings: The heart is normal. A nodule in the right upper lobe. There is a left pleural effusion."
    )
    words = {report[start:end].lower() for start, end in judge_side(report, LABEL, "left").spans}
    assert "left" in words and any("effusion" in word for word in words) and "right" not in words


def test_the_right_of_the_patient_is_on_the_left_of_the_slice():
    pair = make_pair(300_000_007, LABEL, "side", spacing=(10, 6, 6))
    for phantom in (pair.first, pair.second):
        (side,) = [finding.side for finding in phantom.findings if finding.label == LABEL]
        picture = np.asarray(draw_slice(phantom, LABEL))
        center = np.nonzero((picture == OUTLINE).all(-1))[1].mean() / picture.shape[1]
        assert center < 0.45 if side == "right" else center > 0.55
    nowhere = replace(pair.first, masks=np.zeros_like(pair.first.masks))
    with pytest.raises(ValueError, match="must fill a voxel"):
        draw_slice(nowhere, LABEL)
