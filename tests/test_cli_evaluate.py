import json
import math

import pytest
from typer.testing import CliRunner

import hf_mu2.cli.evaluate  # noqa: F401  registers the command
from hf_mu2.cli.shared import app
from hf_mu2.scoring.evaluate import evaluate_reports
from tests.paths import shared_data_or_skip
from tests.scoring.synthetic import make_predictions, make_references


@pytest.fixture
def files(tmp_path):
    references = make_references(30)
    for name, rows in (
        ("references", references),
        ("good", make_predictions(references, 0.8)),
        ("poor", make_predictions(references, 0.1, seed=5)),
    ):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_gives_the_numbers_of_python(files):
    printed = run(
        files / "good.jsonl",
        "--references", files / "references.jsonl",
        "--training-references", files / "references.jsonl",
        "--compare", files / "poor.jsonl",
        "--num-resamples", 50,
        "--json",
    )  # fmt: skip
    expected = evaluate_reports(
        files / "good.jsonl",
        files / "references.jsonl",
        training_references=files / "references.jsonl",
        compare_with=files / "poor.jsonl",
        num_resamples=50,
    )
    assert json.loads(printed) == json.loads(json.dumps(expected.to_dict()))


def test_the_command_writes_a_folder_and_says_what(files):
    out = files / "out"
    printed = run(
        files / "good.jsonl", "--references", files / "references.jsonl", "--out", out, "--num-resamples", 20
    )
    assert "macro_f1" in printed and str(out / "evaluation.md") in printed
    assert (out / "evaluation.png").is_file() and not (out / ".eval_results").exists()


def test_floors_of_real_reports_are_measured_with_one_command(tmp_path):
    """The known order of things on CT-RATE: texts of nobody score high on words and nothing on findings."""
    source = shared_data_or_skip("reports", "ctrate_textclf_train.csv")
    head = source.read_text(encoding="utf-8").splitlines(keepends=True)[:101]
    path = tmp_path / "some.csv"
    path.write_text("".join(head), encoding="utf-8")
    result = json.loads(
        run("--references", path, "--training-references", path, "--num-resamples", 50, "--json")
    )
    normal, random, nearest = (
        result["floors"][name] for name in ("constant_normal", "random", "nearest_by_labels")
    )
    assert (
        result["scores"] is None and result["settings"]["labels_given"] == result["settings"]["studies"] > 90
    )
    assert normal["rouge1"]["value"] > 0.4 and random["rouge1"]["value"] > 0.4
    assert normal["coverage"]["value"] == 0 and math.isclose(normal["crg"]["value"], 1 / 3)
    assert random["macro_f1"]["value"] < 0.35 < nearest["macro_f1"]["value"]
