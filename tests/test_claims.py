"""The grid of claims: rows that differ in one thing, verdicts that need two intervals, runs that continue."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from benchmarks.claims.__main__ import show
from benchmarks.claims.claims import CLAIMS, Claim, Prediction, judge
from benchmarks.claims.collect import choices, collect, compare, describe, judge_note, seed_interval
from benchmarks.claims.ground import Ground
from benchmarks.claims.measure import MEASURES
from benchmarks.claims.rows import ROWS, SEEDS, TINY
from benchmarks.claims.run import (
    forget_what_starts_from,
    is_done,
    order_of_runs,
    ready_runs,
    recipe,
    recipes,
    run_folder,
    run_row,
)
from benchmarks.claims.towers import write_one_channel

from hf_mu2 import embedded_checkpoint
from hf_mu2.hub.assemble import load_vision_tower
from hf_mu2.model.configuration_mu2 import Mu2Config, Mu2VisionConfig
from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.modeling_mu2_vision import Mu2VisionModel

SMALL = replace(
    TINY, name="small", train=24, validation=4, test=6, pairs=1, epochs=1, preference_studies=8, online_steps=1,
    negative_train=8, negative_test=3, scan_train=5, scan_test=5,
)  # fmt: skip


def test_every_claim_compares_rows_that_are_compared_in_a_measure_that_is_measured():
    for claim in CLAIMS:
        assert bool(claim.tests) != bool(claim.untestable), claim.id
        for test in claim.tests:
            assert ROWS[test.row].against == test.against and test.measure in MEASURES, claim.id


def test_rows_of_the_ablation_are_one_field_from_the_row_they_are_compared_with(tmp_path):
    ground = Ground(tmp_path, TINY)
    for name in ("rpe", "dts", "dmtp", "published_refiner", "bias_1d", "published_gate", "not_kept_apart"):
        row = ROWS[name]
        mine, theirs = (recipe(ground, each, 0, None, tmp_path) for each in (row, ROWS[row.against]))
        fields, others = (
            Mu2Config.from_preset("tiny", tokenizer_config=each.pop("init")["tokenizer_config"])
            for each in (mine, theirs)
        )
        fields, others = fields.tokenizer_config.to_dict(), others.tokenizer_config.to_dict()
        assert mine == theirs
        assert len([key for key in fields if fields[key] != others[key]]) == 1, name


def test_two_stages_are_as_long_as_one(tmp_path):
    ground = Ground(tmp_path, TINY)
    lengths = {
        name: sum(
            yaml.safe_load(text)["num_train_epochs"] for text in recipes(ground, ROWS[name], 0).values()
        )
        for name in ("two_stage", "all")
    }
    assert lengths["two_stage"] == lengths["all"]


def test_a_start_is_run_before_what_starts_from_it_and_a_choice_on_one_seed():
    runs = order_of_runs(["dpo", "all_rate_0.0005"], SEEDS)
    assert runs.index(("all", 2)) < runs.index(("dpo", 0))
    assert [run for run in runs if run[0] == "all_rate_0.0005"] == [("all_rate_0.0005", 0)]


def test_a_run_waits_for_its_own_start_alone():
    runs = order_of_runs(["dts", "low_gauss"], (0, 1))
    assert runs == [("all", 0), ("low_start", 0), ("dts", 0), ("dts", 1), ("low_gauss", 0), ("low_gauss", 1)]
    assert ready_runs(runs[1:], runs[:1]) == [("dts", 0), ("dts", 1)]
    assert ready_runs(runs[4:], runs[1:2]) == []  # all seeds start from the first
    assert ready_runs(runs[4:], runs[2:4]) == runs[4:]
    assert order_of_runs(["low_gauss"], (2,)) == [("all", 0), ("low_start", 0), ("low_gauss", 2)]


def test_the_tower_of_one_channel_sees_what_the_two_saw_also_with_its_axes_swapped(tmp_path):
    fields, state, _ = load_vision_tower(embedded_checkpoint())
    original = Mu2VisionModel(Mu2VisionConfig(**fields)).eval()
    original.load_state_dict(state)
    grid = tuple(original.config.grid)
    frames = torch.rand(1, 1, *original.config.frame_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = original(frames.repeat(1, 1, 2, 1, 1).flatten(1, 2)[None]).last_hidden_state
        for mode, given in (("default", frames), ("official", frames.transpose(-1, -2))):
            write_one_channel(tmp_path / mode, mode)
            patches = Mu2VisionModel.from_pretrained(tmp_path / mode).eval()(given).last_hidden_state
            if mode == "official":
                patches = patches.unflatten(2, grid).transpose(3, 4).flatten(2, 4)
            torch.testing.assert_close(patches, expected, atol=1e-4, rtol=1e-4)
            assert Mu2ImageProcessor.from_pretrained(tmp_path / mode).mode == mode


def test_a_difference_that_patients_leave_undefined_has_no_verdict():
    found = describe(0.1, 0.05, 0.15, float("nan"), float("nan"))
    assert found["verdict"] == "no difference" and found["low"] is None
    assert describe(-0.1, -0.15, -0.05, float("nan"), float("nan"))["verdict"] == "no difference"


def test_a_difference_inside_the_spread_of_seeds_is_no_difference():
    noisy = np.array([0.40, 0.50, 0.45]), np.array([0.35, 0.47, 0.42])
    low, high = seed_interval(*noisy, is_paired=False)
    assert low < 0 < high
    assert describe(0.037, low, high, 0.01, 0.06)["verdict"] == "no difference"
    steady = np.array([0.50, 0.51, 0.505]), np.array([0.40, 0.41, 0.402])
    low, high = seed_interval(*steady, is_paired=False)
    assert low > 0
    assert describe(0.1, low, high, 0.05, 0.15)["verdict"] == "higher"
    assert describe(0.1, low, high, -0.01, 0.2)["verdict"] == "no difference"
    assert describe(-0.1, -high, -low, -0.15, -0.05)["verdict"] == "lower"


def scored(row: str, **values: list[float]) -> SimpleNamespace:
    """A row's values per seed, without any doubt about patients but for image dependence."""
    found = {name: np.array(values.get(name, [np.nan])) for name in MEASURES}
    draws = {name: np.full(100, each.mean()) for name, each in found.items()}
    return SimpleNamespace(row=ROWS[row], seeds=list(SEEDS), values=found, draws=draws, dependence_error=0.01)


def test_a_row_is_compared_seed_by_seed_with_what_it_started_from_and_in_what_both_have():
    after, before = [0.52, 0.41, 0.62], [0.50, 0.40, 0.60]
    macro_f1 = {name: scored(name, macro_f1=after) for name in ("dpo", "rpe")}
    start = scored("all", macro_f1=before)
    found = {name: compare(each, start) for name, each in macro_f1.items()}
    assert list(found["dpo"]) == ["macro_f1"]
    assert found["dpo"]["macro_f1"]["seed_low"] > -0.01 > found["rpe"]["macro_f1"]["seed_low"]


def test_a_difference_in_image_dependence_is_not_surer_than_its_two_ends():
    found = compare(
        scored("dpo", image_dependence=[0.10, 0.10, 0.10]), scored("all", image_dependence=[0.08, 0.08, 0.08])
    )["image_dependence"]
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.01 * 2**0.5)
    assert found["verdict"] == "no difference"


def test_one_seed_says_nothing_about_seeds():
    low, high = seed_interval(np.array([0.5]), np.array([0.1]), is_paired=False)
    found = describe(0.4, low, high, 0.3, 0.5)
    assert found["verdict"] == "no difference" and found["seed_low"] is None


def test_the_seed_interval_is_students_t():
    first, second = np.array([1.0, 2.0, 4.0]), np.array([0.5, 1.0, 2.0])
    scipy_stats = pytest.importorskip("scipy.stats")
    expected = scipy_stats.ttest_ind(first, second).confidence_interval()
    assert seed_interval(first, second, is_paired=False) == pytest.approx(tuple(expected))
    expected = scipy_stats.ttest_rel(first, second).confidence_interval()
    assert seed_interval(first, second, is_paired=True) == pytest.approx(tuple(expected))


def result_of(**verdicts: str) -> dict:
    """A result in which rows a, b differ from base as said."""
    measures = {"macro_f1": {"mean": 0.4}}
    rows = {
        "base": {
            "title": "base",
            "against": None,
            "corpus": "ordinary",
            "measures": measures,
            "differences": {},
        }
    }
    for name, verdict in verdicts.items():
        differences = {"macro_f1": {"verdict": verdict, "difference": 0.1}}
        rows[name] = {
            "title": name, "against": "base", "corpus": "ordinary", "measures": measures, "differences": differences,
        }  # fmt: skip
    return {"rows": rows, "floors": {}}


@pytest.mark.parametrize(
    ("verdicts", "answer"),
    [
        ({"a": "higher", "b": "higher"}, "holds"),
        ({"a": "higher", "b": "no difference"}, "partly"),
        ({"a": "higher", "b": "lower"}, "partly"),
        ({"a": "no difference", "b": "no difference"}, "no difference"),
        ({"a": "lower", "b": "no difference"}, "does not hold"),
    ],
)
def test_an_answer_follows_from_verdicts(verdicts, answer):
    claim = Claim("x", "paper", "claim", tuple(Prediction(name, "base", "macro_f1") for name in verdicts))
    assert judge(claim, result_of(**verdicts))["answer"] == answer


def test_rows_that_know_no_more_than_a_random_report_tell_nothing():
    claim = Claim("x", "paper", "claim", (Prediction("a", "base", "macro_f1"),))
    result = result_of(a="no difference")
    result["floors"] = {"ordinary": {"random": {"macro_f1": {"value": 0.45, "high": 0.5}}}}
    assert judge(claim, result)["answer"] == "cannot be told at this size"
    result["floors"]["ordinary"]["random"]["macro_f1"]["high"] = 0.3
    assert judge(claim, result)["answer"] == "no difference"


def test_reports_are_not_worse_for_fewer_words_than_a_random_one():
    claim = Claim("x", "paper", "claim", (Prediction("a", "base", "words", "lower"),))
    result = result_of(a="no difference")
    result["floors"] = {"ordinary": {"random": {"words": {"value": 99.0, "high": 99.0}}}}
    for row in result["rows"].values():
        row["measures"] = {"words": {"mean": 50.0}}
        row["differences"] = {"words": {"verdict": "no difference", "difference": 0.0}}
    assert judge(claim, result)["answer"] == "no difference"


def test_a_claim_whose_rows_were_not_run_has_no_answer():
    claim = Claim("x", "paper", "claim", (Prediction("a", "base", "macro_f1"),))
    result = result_of(a="higher")
    result["rows"]["a"]["differences"] = {}
    assert judge(claim, result)["answer"] == "not run"


def test_a_gain_that_only_the_judge_sees_is_said_to_be_one():
    gain, none = {"verdict": "higher"}, {"verdict": "no difference"}
    assert (
        judge_note(ROWS["dpo"], {"report_f1": gain, "unique": none}) == "a gain in the optimised judge alone"
    )
    for other in ("image_dependence", "changed_finding", "rougeL"):
        assert judge_note(ROWS["dpo"], {"report_f1": gain, other: gain}) == ""
    assert judge_note(ROWS["dpo"], {"report_f1": none}) == ""
    assert judge_note(ROWS["rpe"], {"report_f1": gain}) == ""


@pytest.mark.slow
def test_rows_of_every_objective_end_in_measures_and_are_not_run_again(tmp_path):
    ground = Ground(tmp_path, SMALL)
    names = [
        "all",
        "two_stage",
        "dpo",
        "grpo",
        "low_gauss",
        "low_heter_balanced",
        "scans_ours",
        "scans_published",
    ]
    names += ["all_rate_0.0005"]
    runs = order_of_runs(names, (0,))
    ground.prepare({ROWS[name].corpus for name, _ in runs} | {"ordinary"})
    for name, seed in runs:
        run_row(ground, ROWS[name], seed)
    stamps = {run: (run_folder(ground, *run) / "done.json").stat().st_mtime_ns for run in runs}
    for name, seed in runs:
        run_row(ground, ROWS[name], seed)
    assert stamps == {run: (run_folder(ground, *run) / "done.json").stat().st_mtime_ns for run in runs}
    result = json.loads(json.dumps(collect(ground)))
    for name in names[:-1]:
        row = result["rows"][name]
        assert row["seeds"] == [0] and row["measures"]["image_dependence"]["mean"] is not None
        assert row["measures"]["macro_f1"]["low"] <= row["measures"]["macro_f1"]["high"]
    assert result["rows"]["dpo"]["differences"]["macro_f1"]["verdict"] == "no difference"  # one seed
    assert {each["learning_rate"] for each in choices(ground)} == {5e-4, 1e-3}
    assert result["floors"]["ordinary"]["lookup"]["macro_f1"] is not None


def test_a_run_that_was_cut_off_is_begun_again(tmp_path, monkeypatch):
    from benchmarks.claims import run

    ground, row = Ground(tmp_path, SMALL), ROWS["all_rate_0.0005"]
    begun = []

    def train(ground, row, seed, folder):
        begun.append(seed)
        if len(begun) == 1:
            raise KeyboardInterrupt
        (folder / "model").mkdir()
        (folder / "model" / "run.json").write_text('{"evaluation": {"eval_loss": 0.5}}')
        return folder / "model"

    monkeypatch.setattr(run, "train", train)
    with pytest.raises(KeyboardInterrupt):
        run_row(ground, row, 0)
    run_row(ground, row, 0)
    run_row(ground, row, 0)
    assert begun == [0, 0]
    assert json.loads((run_folder(ground, row.name, 0) / "done.json").read_text())["validation_loss"] == 0.5
    longer = replace(ground, protocol=replace(SMALL, epochs=3))
    assert is_done(ground, row.name, 0) and not is_done(longer, row.name, 0)


def test_a_run_that_is_begun_anew_takes_along_what_started_from_it(tmp_path):
    ground = Ground(tmp_path, SMALL)
    for run in [("low_start", 0), ("low_gauss", 1), ("dpo", 0), ("dpo", 1), ("dts", 0)]:
        run_folder(ground, *run).mkdir(parents=True)
    forget_what_starts_from(ground, "all", 0)
    left = {path.relative_to(tmp_path / "runs").as_posix() for path in tmp_path.glob("runs/*/*")}
    assert left == {"dpo/1", "dts/0"}


def test_rows_are_shown_beside_their_own_floors_and_what_the_committed_page_has_of_them(capsys):
    row = {"corpus": "ordinary", "seeds": [0], "measures": {"macro_f1": {"mean": 0.25, "spread": None}}}
    floors = {
        "high": {"random": {"macro_f1": {"value": 0.9}}},
        "ordinary": {"random": {"macro_f1": {"value": 0.125}}},
    }
    show({"rows": {"all": row, "dts": row}, "floors": floors}, ["all", "dts"], {"rows": {"all": row}})
    shown = capsys.readouterr().out
    assert shown.count("as committed") == 1 and "0.125" in shown and "0.900" not in shown
