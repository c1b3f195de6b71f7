"""Negatives: of another patient, as far or as near as asked, each volume as often as allowed, the same for a seed."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from hf_mu2.data.negatives import Candidates, describe_draw, draw_negatives
from hf_mu2.data.negatives_pool import ct_rate_candidates, study_candidates
from hf_mu2.data.study import FINDING_LABELS
from tests.paths import shared_data_or_skip

DRAWN = ("paper", "balanced", "hard")


def some_candidates(num: int = 300, per_patient: int = 2, seed: int = 0) -> Candidates:
    """Studies with 0 to 12 findings each, several of each patient."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(0, 0.7, (num, 1))
    labels = (rng.random((num, 18)) < share).astype(np.int8)
    return Candidates(
        [f"study-{i}" for i in range(num)], [f"patient-{i // per_patient}" for i in range(num)], labels
    )


def distances(candidates: Candidates) -> np.ndarray:
    labels = candidates.labels.astype(int)
    both = (labels >= 0)[:, None] & (labels >= 0)[None]
    return ((labels[:, None] != labels[None]) & both).sum(2)


@pytest.mark.parametrize("policy", DRAWN)
def test_no_patient_is_paired_with_itself(policy):
    candidates = some_candidates(per_patient=7)
    draw = draw_negatives(candidates, policy)
    patients = np.array(candidates.patient_ids)
    assert (patients != patients[draw.partner]).all()
    assert describe_draw(candidates, draw)["same_patient"] == 0


@pytest.mark.parametrize("policy", DRAWN)
def test_the_same_seed_and_epoch_draw_the_same_and_others_do_not(policy):
    candidates = some_candidates()
    first = draw_negatives(candidates, policy, seed=1, epoch=2).partner
    np.testing.assert_array_equal(first, draw_negatives(candidates, policy, seed=1, epoch=2).partner)
    assert (first != draw_negatives(candidates, policy, seed=1, epoch=3).partner).any()
    assert (first != draw_negatives(candidates, policy, seed=2, epoch=2).partner).any()


@pytest.mark.parametrize("policy", DRAWN)
def test_the_told_distance_is_the_number_of_labels_that_differ(policy):
    candidates = some_candidates()
    labels = candidates.labels.copy()
    labels[np.random.default_rng(1).random(labels.shape) < 0.1] = -1  # unknown in one study, compared in none
    candidates = replace(candidates, labels=labels)
    draw = draw_negatives(candidates, policy)
    np.testing.assert_array_equal(draw.distance, distances(candidates)[np.arange(len(labels)), draw.partner])


def test_the_papers_draw_is_uniform_among_those_far_enough():
    candidates = some_candidates(60, per_patient=1)
    far = distances(candidates)[0] >= 8
    assert 3 < far.sum() < 58
    drawn = [draw_negatives(candidates, "paper", seed=seed, min_distance=8).partner[0] for seed in range(600)]
    counts = np.bincount(drawn, minlength=60)
    assert (counts[~far] == 0).all()
    expected = 600 / far.sum()
    assert ((counts[far] - expected) ** 2 / expected).sum() < 2 * far.sum() + 10  # chi squared


def test_the_distance_is_relaxed_step_by_step_to_the_largest_there_is():
    labels = np.zeros((6, 18), np.int8)
    for row, present in enumerate((0, 3, 4, 5, 6, 7)):
        labels[row, :present] = 1
    candidates = Candidates([f"s{i}" for i in range(6)], [f"p{i}" for i in range(6)], labels)
    draw = draw_negatives(candidates, "paper")
    np.testing.assert_array_equal(draw.distance, distances(candidates).max(axis=1))
    np.testing.assert_array_equal(draw.relaxed, 10 - draw.distance)
    facts = describe_draw(candidates, draw)
    assert facts["relaxed_pairs"] == 6 and facts["relaxed_steps_max"] == 10 - draw.distance.min()
    none = draw_negatives(candidates, "paper", min_distance=3)
    assert (none.relaxed == 0).all()


def test_a_balanced_draw_uses_each_volume_once_so_that_alone_it_tells_nothing():
    candidates = some_candidates()
    draw = draw_negatives(candidates, "balanced")
    assert sorted(draw.partner) == list(range(300))
    facts = describe_draw(candidates, draw)
    assert facts["positives_per_negative"] == pytest.approx(facts["positives_per_study"])
    assert facts["effective_pool"] == pytest.approx(300) and facts["most_uses"] == 1
    assert facts["half_from"] == 150


def test_a_balanced_draw_is_further_apart_than_chance_and_the_cap_holds():
    candidates, wanted = some_candidates(), 16
    own = distances(candidates)
    rng = np.random.default_rng(0)
    every = np.arange(300)
    chance = [np.maximum(wanted - own[every, rng.permutation(300)], 0) ** 2 for _ in range(20)]
    shortfall = []
    for max_uses in (1, 2, 4):
        draw = draw_negatives(candidates, "balanced", max_uses=max_uses, min_distance=wanted)
        assert np.bincount(draw.partner).max() <= max_uses
        shortfall.append((np.maximum(wanted - draw.distance, 0) ** 2).mean())
    assert shortfall[0] < 0.8 * np.mean(chance)
    assert shortfall[2] < shortfall[1] < shortfall[0]


def test_a_patient_with_most_studies_needs_more_uses_and_is_told_so():
    candidates = replace(some_candidates(10), patient_ids=["a"] * 7 + ["b"] * 3)
    with pytest.raises(ValueError, match="`max_uses`"):
        draw_negatives(candidates, "balanced")
    draw = draw_negatives(candidates, "balanced", max_uses=3)
    assert set(draw.partner[:7]) <= {7, 8, 9} and set(draw.partner[7:]) <= set(range(7))


def test_a_hard_negative_is_the_nearest_that_differs_in_a_finding_that_matters():
    candidates = some_candidates(400)
    wanted = ["Lung nodule", "Pleural effusion"]
    columns = [FINDING_LABELS.index(name) for name in wanted]
    draw = draw_negatives(candidates, "hard", findings=wanted)
    labels, own = candidates.labels, distances(candidates).astype(float)
    differs = (labels[:, None, columns] != labels[None, :, columns]).any(2)
    patients = np.array(candidates.patient_ids)
    own[~differs | (patients[:, None] == patients)] = np.inf
    np.testing.assert_array_equal(draw.distance, own.min(axis=1))
    assert differs[np.arange(400), draw.partner].all()


def test_of_equally_near_studies_a_hard_negative_looks_most_alike():
    num = 41
    labels = np.zeros((num, 18), np.int8)
    labels[1:, 3] = 1  # forty studies, one label from the first
    angles = np.linspace(0, np.pi, num)
    looks = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    looks = np.vstack([looks, -looks])  # mean zero
    labels = np.vstack([labels, np.ones_like(labels)])
    ids = [str(i) for i in range(2 * num)]
    candidates = Candidates(ids, ids, labels, appearance=looks)
    partners = {draw_negatives(candidates, "hard", seed=seed).partner[0] for seed in range(40)}
    assert partners <= set(range(1, 9)) and len(partners) > 3
    without = replace(candidates, appearance=None)
    assert max(draw_negatives(without, "hard", seed=seed).partner[0] for seed in range(40)) > 20


def test_what_cannot_be_drawn_is_refused():
    candidates = some_candidates(4)
    with pytest.raises(ValueError, match="`policy` must be one of"):
        draw_negatives(candidates, "nearest")
    with pytest.raises(ValueError, match="of another patient"):
        draw_negatives(replace(candidates, patient_ids=["one"] * 4))
    with pytest.raises(ValueError, match="Check the spelling"):
        draw_negatives(candidates, "hard", findings=["nodule"])
    with pytest.raises(ValueError, match="two studies of every pair"):
        draw_negatives(candidates, "pairs")
    same = replace(candidates, labels=np.zeros((4, 18), np.int8))
    with pytest.raises(ValueError, match="study-0"):
        draw_negatives(same, "hard")


def study(number: int, **fields) -> dict:
    return {
        "study_id": f"s{number}",
        "patient_id": f"p{number}",
        "labels": dict.fromkeys(FINDING_LABELS, 0) | {"Emphysema": number % 2},
        "metadata": "{}",
        **fields,
    }


def test_candidates_come_from_study_rows():
    rows = [study(i, metadata=json.dumps({"sex": "MF"[i % 2], "age": f"0{50 + i}Y"})) for i in range(4)]
    rows[2]["labels"]["Emphysema"] = None
    candidates = study_candidates(rows)
    assert candidates.labels[:, FINDING_LABELS.index("Emphysema")].tolist() == [0, 1, -1, 1]
    assert candidates.appearance.shape == (4, 3)  # two sexes, and age
    assert study_candidates([study(0), study(1)]).appearance is None
    with pytest.raises(ValueError, match="study `s1` has none"):
        study_candidates([study(0), study(1, labels=None)])


def test_the_other_study_of_a_pair_is_its_negative():
    rows = [
        study(i, metadata=json.dumps({"pair": {"other": f"s{i ^ 1}"}}), patient_id="same") for i in range(4)
    ]
    candidates = study_candidates(rows)
    draw = draw_negatives(candidates, "pairs")
    assert draw.partner.tolist() == [1, 0, 3, 2] and (draw.distance == 1).all()
    with pytest.raises(ValueError, match="1 of 3 studies are without the other"):
        draw_negatives(study_candidates(rows[:3]), "pairs")


def test_the_command_describes_and_writes_a_draw(cli, tmp_path):
    from hf_mu2.data.ct_rate_names import PARTS  # the tables alone make a tree

    folder = tmp_path / "CT-RATE" / "dataset" / "multi_abnormality_labels"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in PARTS:
        rows = [",".join([f"{part}_{i}_a_1.nii.gz", *map(str, rng.integers(0, 2, 18))]) for i in range(1, 30)]
        header = ",".join(["VolumeName", *FINDING_LABELS])
        (folder / f"{part}_predicted_labels.csv").write_text("\n".join([header, *rows]) + "\n")
    arguments = ["negatives", "ct_rate", "--root", tmp_path / "CT-RATE", "--split", "all_train"]
    result = cli(*arguments, "--out", tmp_path / "draw.jsonl", "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    lines = [json.loads(line) for line in (tmp_path / "draw.jsonl").read_text().splitlines()]
    assert facts["studies"] == len(lines) == 29 and facts["same_patient"] == 0
    assert {line["negative_study_id"] for line in lines} == {line["study_id"] for line in lines}
    assert np.mean([line["distance"] for line in lines]) == pytest.approx(facts["distance_mean"])
    assert json.loads((tmp_path / "draw.manifest.json").read_text())["policy"] == "balanced"
    assert cli("negatives", "ct_rate").code == 2


def test_the_real_table_gives_the_papers_draw_its_flaw_and_the_balanced_one_none():
    """Published: uniform negatives have 8.5 findings against 3.4, and half of them come from about 700 scans."""
    root = shared_data_or_skip("corpora", "CT-RATE")
    candidates = ct_rate_candidates(root, "all_train")
    began = time.process_time()
    paper, balanced = (draw_negatives(candidates, policy) for policy in ("paper", "balanced"))
    assert time.process_time() - began < 20
    told, ours = describe_draw(candidates, paper), describe_draw(candidates, balanced)
    assert told["studies"] == 24_128 and told["patients"] == 20_000
    assert told["relaxed_pairs"] == 0 and told["distance_min"] == 10 and told["same_patient"] == 0
    assert told["positives_per_negative"] == pytest.approx(8.5, abs=0.1)
    assert told["positives_per_study"] == pytest.approx(3.4, abs=0.05)
    assert 600 < told["half_from"] < 800
    assert ours["same_patient"] == 0 and ours["most_uses"] == 1 and ours["used_volumes"] == 24_128
    assert ours["positives_per_negative"] == pytest.approx(ours["positives_per_study"])
    assert ours["distance_mean"] > 6.5 and ours["distance_min"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("policy", DRAWN)
def test_25_000_scans_take_seconds_and_no_table_of_all_pairs(policy):
    import tracemalloc

    candidates = some_candidates(25_000)
    candidates = replace(candidates, appearance=np.random.default_rng(0).standard_normal((25_000, 64)))
    began = time.process_time()
    tracemalloc.start()
    draw_negatives(candidates, policy)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - began < 60 and peak < 600e6  # 25,000 squared bytes are 625 MB
