import numpy as np
import pytest

from hf_mu2.preference.verdict import Change, compare, judge_gain, means, to_json, to_markdown


def change(difference: float, spread: float = 0.01) -> Change:
    """A measure that moved by `difference`, give or take."""
    draws = difference + spread * np.linspace(-2, 2, 401)
    return Change(0.5, 0.5 + difference, draws[10], draws[-11], 0.01, draws)


FLAT = change(0.0)


@pytest.mark.parametrize(
    ("judge", "others", "expected"),
    [
        (0.2, {"paired change": 0.0, "sides": 0.0}, "reward hacking"),
        (0.2, {"paired change": 0.0, "sides": -0.1}, "reward hacking"),
        (0.2, {"paired change": 0.1, "sides": 0.0}, "gain"),
        (0.2, {"paired change": 0.1, "sides": -0.1}, "mixed"),
        (0.005, {"paired change": 0.1, "sides": 0.0}, "no difference"),
        (-0.2, {"paired change": 0.1, "sides": 0.0}, "loss"),
    ],
)
def test_a_gain_is_believed_only_where_a_measure_nobody_optimised_gains_too(judge, others, expected):
    verdict, sentence = judge_gain(change(judge), {name: change(moved) for name, moved in others.items()})
    assert verdict == expected
    assert all(name in sentence for name, moved in others.items() if moved < 0)


def test_a_measure_without_a_value_is_no_witness():
    unknown = Change(np.nan, np.nan, np.nan, np.nan, np.nan, np.full(400, np.nan))
    assert judge_gain(change(0.2), {"sides": unknown})[0] == "reward hacking"
    assert judge_gain(unknown, {"sides": change(0.2)})[0] == "no difference"


def test_the_more_measures_are_looked_at_the_more_each_must_move():
    moved = change(0.0194)  # its 95 % interval begins above 0, that of a fifth of 5 % does not
    assert judge_gain(change(0.2), {"sides": moved})[0] == "gain"
    others = {f"other {number}": FLAT for number in range(4)}
    assert judge_gain(change(0.2), {"sides": moved, **others})[0] == "reward hacking"


def of_values(values: np.ndarray) -> dict[str, np.ndarray]:
    return {"score": np.stack([values, np.ones(len(values))], axis=1)}


def test_the_same_reports_differ_by_nothing_at_all():
    values = np.random.default_rng(0).random(40)
    patients = [str(number // 2) for number in range(40)]
    found = compare(of_values(values), of_values(values), patients, means(["score"]), num_resamples=200)
    assert (found["score"].low, found["score"].high, found["score"].p) == (0, 0, 1)


def test_a_small_gain_of_every_patient_is_seen_although_patients_differ_much():
    rng = np.random.default_rng(0)
    values, patients = rng.random(60), [str(number) for number in range(60)]
    gained = values + 0.05 + 0.01 * rng.standard_normal(60)
    found = compare(of_values(values), of_values(gained), patients, means(["score"]), num_resamples=400)[
        "score"
    ]
    assert found.difference == pytest.approx(0.05, abs=0.01)
    assert 0.04 < found.low < found.high < 0.06 and found.p < 0.01
    assert values.std() / 60**0.5 > 0.03  # an unpaired comparison would not see it


def test_noise_is_no_difference():
    rng = np.random.default_rng(1)
    patients = [str(number) for number in range(50)]
    found = compare(
        of_values(rng.random(50)), of_values(rng.random(50)), patients, means(["score"]), num_resamples=400
    )
    assert judge_gain(found["score"], {"other": FLAT})[0] == "no difference"


def test_tables_show_every_measure_and_say_where_nothing_is_known():
    nothing = means(["sides"])({"sides": np.zeros(2)})["sides"]
    unknown = Change(float(nothing), float(nothing), np.nan, np.nan, np.nan, np.full(10, np.nan))
    table = to_markdown({"sides": unknown, "label F1": change(0.2)}, judge="label F1")
    assert table.splitlines()[2].startswith("| **label F1** (the judge) | 0.500 | 0.700 | +0.200 (")
    assert table.splitlines()[3] == "| sides | - | - | - | - |"
    assert to_json({"sides": unknown})["sides"]["before"] is None
