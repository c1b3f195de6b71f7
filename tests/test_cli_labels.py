"""The commands that label reports."""

import csv
import json

import pytest

import hf_mu2.cli.labels  # noqa: F401
from hf_mu2.scoring.labels import LABELS, VERSION

TEXTS = ["Small nodule in the left lung. No effusion.", "Possible consolidation.", ""]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "reports.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["AccessionNo", "report_text", *LABELS])
        for number, text in enumerate(TEXTS):
            given = [int(label == "Lung nodule" and number == 0) for label in LABELS]
            writer.writerow([f"study_{number}", text, *given])
    return path


def test_run_prints_one_line_per_report(cli, table):
    result = cli("labels", "run", table)
    assert result.code == 0
    assert result.out.splitlines() == [
        "study_0: Lung nodule",
        "study_1: Consolidation",
        "study_2: none of the 18 findings",
    ]


def test_run_shows_the_words_that_were_read(cli, tmp_path):
    report = tmp_path / "report.txt"
    report.write_text("Nodule of 5 mm. No effusion. Possible consolidation.")
    result = cli("labels", "run", report, "--evidence", "--uncertain", "ignore")
    assert result.out.splitlines() == [
        "report: Lung nodule, Consolidation (uncertain)",
        '  positive  Lung nodule: "Nodule"',
        '  negative  Pleural effusion: "effusion"',
        '  uncertain Consolidation: "consolidation"',
    ]


def test_json_is_one_object_per_report(cli, table):
    result = cli("labels", "run", table, "--json", "--evidence", "--uncertain", "ignore")
    records = [json.loads(line) for line in result.out.splitlines()]
    assert [record["study_id"] for record in records] == ["study_0", "study_1", "study_2"]
    assert records[1]["labels"]["Consolidation"] is None
    assert all(record["labeler"] == VERSION for record in records)
    (nodule, effusion) = records[0]["evidence"]
    assert TEXTS[0][nodule["start"] : nodule["end"]] == nodule["text"] == "nodule"
    assert effusion["status"] == "negative"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_out_writes_what_can_be_read_back(cli, table, tmp_path, suffix):
    out = tmp_path / f"labels{suffix}"
    result = cli("labels", "run", table, "--out", out, "--json")
    assert result.code == 0 and json.loads(result.out)["reports"] == 3
    if suffix == ".csv":
        rows = list(csv.DictReader(out.open()))
        assert list(rows[0]) == ["study_id", *LABELS]
        assert [row["Lung nodule"] for row in rows] == ["1", "0", "0"]
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["labels"]["Lung nodule"] for row in rows] == [1, 0, 0]


def test_validate_prints_scores_with_intervals_and_folds(cli, table):
    result = cli("labels", "validate", table, "--folds", 3)
    assert result.code == 0
    lines = result.out.splitlines()
    assert any(line.split() == ["Lung", "nodule", "1.000", "1.000", "1.000", "1"] for line in lines)
    assert sum(line.startswith("fold ") for line in lines) == 3
    assert any("micro-F1 0.6667 [" in line for line in lines)  # the hedged consolidation counts as reported
    facts = json.loads(cli("labels", "validate", table, "--json", "--folds", 3).out)
    assert facts["labeler"] == VERSION and facts["reports"] == 3 and len(facts["folds"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "reports.csv", "--text-column", "words"), "column with their text"),
        (("run", "reports.csv", "--out", "labels.xlsx"), ".csv or .jsonl"),
        (("run", "reports.csv", "--out", "labels.csv", "--evidence"), "evidence as .jsonl only"),
        (("run", "absent.csv"), "absent.csv"),
        (("validate", "bare.csv"), "Medical material"),
    ],
)
def test_bad_input_is_explained_with_exit_code_2(cli, table, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.csv").write_text("text\nNodule.\n")
    result = cli("labels", *arguments)
    assert result.code == 2
    assert message in result.err


def test_a_label_that_is_neither_0_nor_1_is_refused(cli, table):
    table.write_text(table.read_text().replace(",0\n", ",2\n", 1))
    result = cli("labels", "validate", table)
    assert result.code == 2 and "0 or 1" in result.err and "row 0" in result.err
