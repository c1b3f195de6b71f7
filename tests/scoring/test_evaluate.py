import json

import numpy as np
import pytest
import yaml

from hf_mu2.scoring.evaluate import evaluate_reports
from hf_mu2.scoring.evaluate_report import LOCAL_FOLDER, write_evaluation
from hf_mu2.scoring.labels import LABELS
from hf_mu2.scoring.lexical import score_texts
from hf_mu2.scoring.resampling import bootstrap, interval, paired_randomisation, total
from hf_mu2.scoring.rewards import report_metrics
from tests.scoring.synthetic import make_predictions, make_references

FEW = {"num_resamples": 60, "num_shuffles": 60}
REFERENCES = make_references(60)
TRAINING = make_references(90, seed=7)


@pytest.fixture(scope="module")
def good():
    return evaluate_reports(
        make_predictions(REFERENCES, 0.7),
        REFERENCES,
        training_references=[
            row | {"patient_id": f"t{row['patient_id']}", "study_id": f"t{row['study_id']}"}
            for row in TRAINING
        ],
        compare_with=make_predictions(REFERENCES, 0.2, seed=3),
        **FEW,
    )


def test_scores_are_those_of_the_plain_functions(good):
    texts = [row["reference"] for row in REFERENCES]
    candidates = [row["candidate"] for row in make_predictions(REFERENCES, 0.7)]
    expected = score_texts(candidates, texts) | report_metrics(candidates, texts)
    measured = {name: score["value"] for name, score in good.scores.items() if score["value"] is not None}
    assert measured == pytest.approx(expected)


def test_every_score_lies_in_its_interval_and_has_a_signature(good):
    assert set(good.signatures) == set(good.scores)
    for score in good.scores.values():
        if score["low"] is not None:
            assert score["low"] - 1e-9 <= score["value"] <= score["high"] + 1e-9


def test_a_system_that_looks_stands_above_the_floors_and_its_rival(good):
    for floor in ("constant_normal", "random"):
        assert good.scores["macro_f1"]["value"] > good.floors[floor]["macro_f1"]["value"] + 0.2
    assert good.floors["nearest_by_labels"]["coverage"]["value"] > 0.9  # an oracle
    row = good.comparison["macro_f1"]
    assert row["difference"] == pytest.approx(row["a"] - row["b"]) and row["low"] > 0 and row["p"] < 0.05
    assert good.degeneracy["shuffled"]["low"] > 0


def test_a_system_differs_from_itself_by_nothing():
    rows = make_predictions(REFERENCES, 0.5)
    same = evaluate_reports(rows, REFERENCES, compare_with=rows, **FEW).comparison
    assert all(row["difference"] in (0, None) and row["p"] in (1, None) for row in same.values())


def test_the_same_seed_gives_the_same_numbers():
    rows = make_predictions(REFERENCES, 0.5)
    first, second = (
        evaluate_reports(rows, REFERENCES, training_references=REFERENCES, **FEW).to_dict() for _ in "ab"
    )
    assert json.dumps(first) == json.dumps(second)


def test_floors_are_measured_without_predictions():
    result = evaluate_reports(None, REFERENCES, training_references=REFERENCES, **FEW)
    assert result.scores is None and result.studies == [] and all(result.floors.values())
    assert result.floors["random"]["rouge1"]["value"] < 1  # nobody got a report of their own


def test_without_training_references_two_floors_are_not_run():
    result = evaluate_reports(None, REFERENCES, **FEW)
    assert result.floors["random"] is None and result.floors["nearest_by_labels"] is None
    assert result.floors["constant_normal"]["coverage"]["value"] == 0
    assert result.floors["constant_normal"]["crg"]["value"] == pytest.approx(1 / 3)


def test_a_constant_candidate_is_seen_for_what_it_is():
    rows = [
        {"study_id": row["study_id"], "candidate": "No nodule. No pleural effusion."} for row in REFERENCES
    ]
    look = evaluate_reports(rows, REFERENCES, training_references=TRAINING, **FEW).degeneracy
    assert look["candidate"]["unique_share"] == 1 / 60 and look["candidate"]["most_repeated"] == 60
    assert look["candidate"]["all_normal_share"] == 1 and look["length_ratio"]["candidate"] < 0.5
    assert look["shuffled"]["gap"] == pytest.approx(0)


def test_template_sentences_go_and_the_remainder_is_scored():
    template = "The trachea is open."
    training = [{"study_id": f"t{index}", "reference": f"{template} Only {index}."} for index in range(100)]
    references = [
        {"study_id": f"s{index}", "reference": f"{template} Finding number {index}."} for index in range(10)
    ]
    rows = [{"study_id": f"s{index}", "candidate": f"{template} Something else."} for index in range(10)]
    result = evaluate_reports(rows, references, training_references=training, **FEW)
    assert result.degeneracy["remainder"]["studies"] == 10 and result.degeneracy["remainder"]["rouge1"] == 0
    assert result.scores["rouge1"]["value"] > 0.4
    assert result.degeneracy["candidate"]["template_share"] == pytest.approx(4 / 6)


def test_given_labels_count_and_the_rules_are_compared_with_them():
    labels = dict.fromkeys(LABELS, 0) | {"Lung nodule": 1}
    rows = [{"study_id": "a", "reference": "A nodule.", "candidate": "There is a nodule.", "labels": labels}]
    rows += [{"study_id": "b", "reference": "Clear lungs.", "candidate": "Clear lungs.", "labels": labels}]
    given = evaluate_reports(rows, **FEW)
    assert given.scores["coverage"]["value"] == 0.5 and given.settings["labels_given"] == 2
    assert given.settings["labeler_against_given"]["micro_f1"] == pytest.approx(2 / 3)
    assert "reference:given" in given.signatures["coverage"]
    by_rules = evaluate_reports(rows, use_given_labels=False, **FEW)
    assert by_rules.scores["coverage"]["value"] == 1 and by_rules.settings["labels_given"] == 0


def test_only_the_chosen_section_is_compared():
    rows = [
        {
            "study_id": "a",
            "findings": "A nodule.",
            "impression": "Normal.",
            "candidate": "Findings: Mass.\nImpression: Normal.",
        }
    ]
    assert evaluate_reports(rows, section="impression", **FEW).scores["rouge1"]["value"] == 1
    assert evaluate_reports(rows, section="findings", **FEW).scores["rouge1"]["value"] == 0


def test_studies_without_a_candidate_count_and_the_answered_stand_apart():
    rows = [{"study_id": row["study_id"], "candidate": row["reference"]} for row in REFERENCES[:30]]
    result = evaluate_reports(rows, REFERENCES, **FEW)
    assert result.hygiene["missing_candidates"] == 30 and result.scores["rouge1"]["value"] == pytest.approx(
        0.5
    )
    assert result.degeneracy["answered"]["studies"] == 30 and result.degeneracy["answered"]["rouge1"] == 1


def test_nothing_in_common_is_refused_and_so_is_a_table_without_text():
    with pytest.raises(ValueError, match="same studies, got none in common"):
        evaluate_reports([{"study_id": "x", "candidate": "a"}], REFERENCES)
    with pytest.raises(ValueError, match="must hold a candidate"):
        evaluate_reports([{"study_id": "s000", "answer": "a"}], REFERENCES)
    with pytest.raises(ValueError, match="must name its study"):
        evaluate_reports([{"id": 1, "candidate": "a"}], REFERENCES)
    with pytest.raises(ValueError, match="neither"):
        evaluate_reports(None)


def test_every_format_gives_the_same_rows(tmp_path):
    import csv

    import pyarrow
    import pyarrow.parquet

    rows = make_predictions(REFERENCES, 0.6)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["study_id", "candidate"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    challenge = {
        "name": "Generated reports",
        "type": "Report generation",
        "generated_reports": [
            {"input_image_name": f"{row['study_id']}.mha", "report": row["candidate"]} for row in rows
        ],
        "version": {"major": 1, "minor": 0},
    }
    (tmp_path / "a.json").write_text(json.dumps(challenge), encoding="utf-8")
    scores = [
        evaluate_reports(tmp_path / name, REFERENCES, **FEW).scores
        for name in ("a.jsonl", "a.csv", "a.parquet", "a.json")
    ]
    assert scores[0] == scores[1] == scores[2] == scores[3]
    with pytest.raises(ValueError, match="read from"):
        evaluate_reports(tmp_path / "a.xlsx", REFERENCES)


def test_what_is_written_to_share_holds_no_report_text(good, tmp_path):
    written = write_evaluation(
        good, tmp_path, dataset_id="org/data", published=["mu2/ct_rate"], title="A test"
    )
    names = {str(path.relative_to(tmp_path)) for path in written}
    assert {"evaluation.json", "evaluation.md", "evaluation.png", ".eval_results/hf_mu2.yaml"} <= names
    assert json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8")) == good.to_dict()
    sentence, study = "There is cardiomegaly", "s000"
    for name in names - {f"{LOCAL_FOLDER}/studies.jsonl", f"{LOCAL_FOLDER}/worst.html", "evaluation.png"}:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert sentence not in text and study not in text, name
    assert (tmp_path / LOCAL_FOLDER / ".gitignore").read_text(encoding="utf-8") == "*\n"
    assert "this machine only" in (tmp_path / LOCAL_FOLDER / "worst.html").read_text(encoding="utf-8")
    assert (tmp_path / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_eval_results_are_what_the_hub_reads(good, tmp_path):
    from huggingface_hub import parse_eval_result_entries

    write_evaluation(good, tmp_path, dataset_id="org/data", picture=False)
    entries = parse_eval_result_entries(
        yaml.safe_load((tmp_path / ".eval_results" / "hf_mu2.yaml").read_text())
    )
    found = {entry.task_id: entry for entry in entries}
    assert found["macro_f1"].value == pytest.approx(good.scores["macro_f1"]["value"], abs=1e-4)
    assert found["macro_f1"].dataset_id == "org/data" and "interval" in found["macro_f1"].notes


def test_worst_cases_come_first_and_markup_in_a_report_is_text(tmp_path):
    rows = [
        {"study_id": "fine", "reference": "There is a nodule.", "candidate": "There is a nodule."},
        {"study_id": "bad", "reference": "There is a nodule.", "candidate": "<b>There is cardiomegaly.</b>"},
    ]
    result = evaluate_reports(rows, **FEW)
    write_evaluation(result, tmp_path, picture=False)
    page = (tmp_path / LOCAL_FOLDER / "worst.html").read_text(encoding="utf-8")
    assert page.index("bad") < page.index("fine") and "<b>" not in page and "missed: Lung nodule" in page
    studies = [
        json.loads(line) for line in (tmp_path / LOCAL_FOLDER / "studies.jsonl").read_text().splitlines()
    ]
    assert studies[1]["invented"] == ["Cardiomegaly"]
    assert {item["text"] for item in studies[1]["reference_evidence"]} == {"nodule"}


def test_patients_are_resampled_not_studies():
    """Twin studies of one patient carry no more information than one study."""
    rng = np.random.default_rng(0)
    values = rng.random((40, 1))
    twins = {"x": np.repeat(values, 5, axis=0), "n": np.ones((200, 1))}

    def mean(sums):
        return {"mean": (sums["x"] / sums["n"])[..., 0]}

    def width(columns, patients):
        low, high = interval(bootstrap(columns, patients, mean, num_resamples=2000, seed=0)["mean"])
        return high - low

    alone = width({"x": values, "n": np.ones((40, 1))}, range(40))
    assert width(twins, np.repeat(range(40), 5)) == pytest.approx(alone)
    assert width(twins, range(200)) < 0.6 * alone


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(1).normal(size=(400, 1))
    columns = {"x": values, "n": np.ones((400, 1))}
    drawn = bootstrap(
        columns, range(400), lambda s: {"m": (s["x"] / s["n"])[..., 0]}, num_resamples=4000, seed=0
    )
    low, high = interval(drawn["m"])
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    assert total(columns)["n"] == 400


def test_the_paired_test_is_level_where_nothing_differs():
    rng = np.random.default_rng(0)

    def p_value(shift):
        a, b = rng.normal(size=(2, 50, 1))
        columns = [{"x": x, "n": np.ones((50, 1))} for x in (a + shift, b)]
        scores = paired_randomisation(
            *columns, range(50), lambda s: {"m": (s["x"] / s["n"])[..., 0]}, num_shuffles=200, seed=1
        )
        return scores["m"]

    level = np.mean([p_value(0) <= 0.1 for _ in range(200)])
    assert 0.04 < level < 0.17 and p_value(2) == pytest.approx(1 / 201)
