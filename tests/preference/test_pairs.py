import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from hf_mu2.data.corpus import cut_validation
from hf_mu2.preference.pairs import Account, PairRules, make_pairs, pairs_of_study
from hf_mu2.preference.pairs_filters import FilterRules, foreign_letters, keep_candidates
from hf_mu2.tables import write_rows
from tests.data.killed_runs import KilledRuns
from tests.preference.candidate_rows import REFERENCE
from tests.preference.scored_rows import TEXTS, scored_row

LOOP = "Findings: " + "There is an effusion. " * 5


def couples(row: dict, **rules) -> list[tuple[int, int]]:
    """Pair one study and tell which candidate was preferred to which."""
    found = pairs_of_study(row, PairRules(**rules), Account())
    return [(couple.chosen["index"], couple.rejected["index"]) for couple in found]


def write_scored(path: Path, rows: list[dict]) -> Path:
    write_rows(path, rows)
    return path


def studies(count: int, **fields) -> list[dict]:
    return [scored_row(f"study-{number}", **fields) for number in range(count)]


def make(tmp_path: Path, rows: list[dict], name: str = "pairs", **options):
    scored = write_scored(tmp_path / "scored.jsonl", rows)
    return make_pairs(scored, tmp_path / name, with_figure=False, **options)


def test_best_and_worst_are_one_pair():
    assert couples(scored_row("a", (0.6, 0.9, 0.1, 0.3))) == [(1, 2)]


def test_best_and_random_pairs_the_best_with_one_below_it_and_not_always_the_same():
    drawn = [couples(scored_row(f"s{number}"), policy="best-random") for number in range(40)]
    assert {len(pairs) for pairs in drawn} == {1}
    assert {pairs[0] for pairs in drawn} == {(0, 1), (0, 2), (0, 3)}
    assert couples(scored_row("s1"), policy="best-random", seed=0) == drawn[1]


def test_all_pairs_above_the_margin_come_widest_first_and_no_more_than_the_cap():
    row = scored_row("a", (0.9, 0.6, 0.3, 0.1))
    pairs = couples(row, policy="all", min_margin=0.3, max_pairs=99)
    assert pairs == [(0, 3), (0, 2), (1, 3), (0, 1), (1, 2)]
    assert couples(row, policy="all", min_margin=0.3, max_pairs=2) == pairs[:2]


def test_no_pair_is_narrower_than_the_margin():
    row = scored_row("a", (0.5, 0.45, 0.4, 0.38))
    assert couples(row, min_margin=0.15) == []
    assert couples(row, min_margin=0.12) == [(0, 3)]


def test_label_f1_decides_between_equal_scores_and_equals_make_no_pair():
    row = scored_row("a", (0.5, 0.5, 0.5, 0.5))
    assert couples(row, min_margin=0) == []
    row["candidates"][2]["scores"]["label_f1"] = 0.8
    row["candidates"][1]["scores"]["label_f1"] = 0.2
    assert couples(row, min_margin=0) == [(2, 1)]


def test_a_best_candidate_that_is_worth_nothing_is_not_chosen():
    row = scored_row("a", (0.0, 0.0, 0.0, 0.0))
    account = Account()
    assert pairs_of_study(row, PairRules(min_margin=0), account) == []
    assert account.without_pair == {"best score not above 0": 1}


def test_every_filter_takes_what_it_is_for_and_counts_it():
    texts = (
        *TEXTS[:2],
        LOOP,
        "Findings: No.",
        "Обнаружен плевральный выпот слева, эмфизема лёгких.",
        TEXTS[0].upper(),
    )
    row = scored_row("a", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4), texts)
    row["candidates"][1]["finish_reason"] = "length"
    _, failed = keep_candidates(row["candidates"], REFERENCE, FilterRules())
    assert Counter(failed) == Counter(["truncation", "repetition", "length", "script", "duplicate"])
    row["candidates"][0]["status"] = "judge_failed"
    row["candidates"][0]["scores"]["total"] = None
    kept, failed = keep_candidates(row["candidates"], REFERENCE, FilterRules())
    assert "judge_failed" in failed and [candidate["index"] for candidate in kept] == [
        5
    ]  # now the first of its text


def test_units_and_a_chinese_reference_are_no_foreign_script():
    assert foreign_letters("Nodule of 5 µm, β-blocker, Sjögren", "Nodule.") == ""
    assert foreign_letters("双肺 clear", "Nodule.") == "双肺"
    assert foreign_letters("双肺", "双侧胸腔积液 with effusion") == ""
    kept, failed = keep_candidates(
        scored_row("a", (0.5,), ("Findings: both lungs are clear.",))["candidates"],
        "双肺纹理清晰",
        FilterRules(),
    )
    assert not kept and failed == ["script"]


def test_a_patient_is_in_one_split_whatever_the_number_of_pairs(tmp_path):
    rows = [scored_row(f"study-{number}", patient_id=f"patient-{number // 2}") for number in range(60)]
    made = make(tmp_path, rows, rules=PairRules(policy="all"), validation_share=0.3)
    opened = datasets.load_dataset(str(made.folder), cache_dir=str(tmp_path / "cache"))
    patients = {split: set(part["patient_id"]) for split, part in opened.items()}
    assert not patients["train"] & patients["validation"]
    assert all(cut_validation(patient, 0.3) == split for split in patients for patient in patients[split])
    assert made.num_pairs == {split: len(part) for split, part in opened.items()}
    assert sum(made.num_pairs.values()) == 60 * 4


def test_the_folder_opens_with_volumes_named_and_never_copied(tmp_path, volumes):
    path = str(volumes / "ct0.nii.gz")
    made = make(tmp_path, studies(3, images=[path]), validation_share=0)
    rows = datasets.load_dataset(str(made.folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features["images"] == datasets.List(datasets.Nifti())
    assert rows[0]["images"][0].shape and rows[0]["chosen"][0]["content"] == TEXTS[0]
    stored = pq.read_table(made.folder / "data" / "train-00000-of-00001.parquet")["images"].to_pylist()
    assert stored == [[{"bytes": None, "path": path}]] * 3


def test_references_to_volumes_are_texts(tmp_path):
    reference = '{"path":"/data/a.nii.gz","spacing":[1.0,1.0,1.0]}'
    made = make(tmp_path, studies(3, images=[reference]), validation_share=0)
    rows = datasets.load_dataset(str(made.folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features["images"] == datasets.List(datasets.Value("string"))
    assert rows[0]["images"] == [reference] and rows[0]["margin"] == pytest.approx(0.8)


def test_equal_inputs_give_equal_bytes_and_another_folder_is_read_anew(tmp_path):
    first = make(tmp_path, studies(5), "first")
    second = make(tmp_path, studies(5), "second")
    names = sorted(path.relative_to(first.folder) for path in first.folder.rglob("*") if path.is_file())
    assert names == sorted(
        path.relative_to(second.folder) for path in second.folder.rglob("*") if path.is_file()
    )
    assert all((first.folder / name).read_bytes() == (second.folder / name).read_bytes() for name in names)


def test_an_empty_set_says_which_filter_took_how_many_and_leaves_nothing(tmp_path):
    rows = studies(2, scores=(0.5, 0.5, 0.5, 0.5))
    for row in rows:
        row["candidates"][0]["finish_reason"] = "length"
    with pytest.raises(
        ValueError, match=r"none is left.*2 truncation .*2 no two candidates 0.15 apart.*min-margin"
    ):
        make(tmp_path, rows)
    assert [path.name for path in tmp_path.iterdir()] == ["scored.jsonl"]


def test_candidates_that_nobody_scored_or_two_judges_scored_are_refused(tmp_path):
    rows = studies(2)
    with pytest.raises(ValueError, match=r"different judges.*study-1"):
        make(tmp_path, [rows[0], rows[1] | {"signature": "green|other"}])
    del rows[0]["signature"]
    with pytest.raises(ValueError, match=r"scored candidates.*hf-mu2 score"):
        make(tmp_path, rows)


def test_volumes_without_a_name_give_no_pair_and_are_counted(tmp_path):
    made = make(tmp_path, [*studies(2), scored_row("inside", images=None)], validation_share=0)
    assert made.num_pairs == {"train": 2}
    assert made.account.without_pair == {"volumes inside the data set, which pairs cannot name": 1}


def test_a_prompt_of_blocks_becomes_text_unless_a_volume_comes_after_text(tmp_path):
    blocks = [{"type": "image"}, {"type": "text", "text": "Write the report."}]
    row = scored_row("a", prompt=[{"role": "user", "content": blocks}])
    assert pairs_of_study(row, PairRules(), Account())[0].to_row()["prompt"] == [
        {"role": "user", "content": "Write the report."}
    ]
    row["prompt"][0]["content"] = blocks[::-1]
    with pytest.raises(ValueError, match=r"volumes before its text.*`a`"):
        pairs_of_study(row, PairRules(), Account())[0].to_row()


def test_the_report_finds_the_length_bias_and_what_the_chosen_have_right(tmp_path):
    made = make(tmp_path, studies(20), validation_share=0)
    facts = json.loads((made.folder / "report" / "pairs.json").read_text())["sources"]["sampled"]
    words = [len(TEXTS[0].split()), len(TEXTS[3].split())]
    assert facts["length_difference"]["value"] == words[0] - words[1]
    assert facts["chosen_longer_share"]["value"] == float(words[0] > words[1])
    assert facts["margin"]["mean"] == pytest.approx(0.8)
    assert facts["labels"]["Pleural effusion"] == {
        "found": 20,
        "missed": 0,
        "false_alarm_avoided": 0,
        "false_alarm": 0,
    }
    assert "| Pleural effusion | 20 | 0 | 0 | 0 |" in (made.folder / "report" / "pairs.md").read_text()


def test_the_report_compares_errors_that_a_judge_named(tmp_path):
    rows = studies(2)
    for row in rows:
        for candidate in row["candidates"]:
            errors = dict.fromkeys("abcdef", 0) | {"b": candidate["index"]}
            candidate["judge"] = {"status": "ok", "matched": 1, "significant": errors, "error": None}
    made = make(tmp_path, rows, validation_share=0)
    errors = made.summary["sources"]["sampled"]["green_errors"]
    assert errors["missing finding"] == {"chosen": 0, "rejected": 3}
    assert errors["false finding"] == {"chosen": 0, "rejected": 0}


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    scored = write_scored(tmp_path / "scored.jsonl", studies(4))
    made = make_pairs(scored, tmp_path / "pairs", validation_share=0)
    assert (made.folder / "report" / "pairs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options", [{"policy": "worst-best"}, {"min_margin": -0.1}, {"max_pairs": 0}])
def test_rules_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError):
        replace(PairRules(), **options)


def test_the_command_pairs_and_a_second_one_leaves_the_folder_as_it_is(tmp_path, cli):
    scored = write_scored(tmp_path / "scored.parquet", studies(6))
    arguments = ("pairs", scored, "--out", tmp_path / "pairs", "--policy", "all", "--max-pairs", 2)
    first = cli(*arguments, "--json")
    assert first.code == 0 and sum(json.loads(first.out)["num_pairs"].values()) == 12
    assert "Of 24 candidates the filters took 0" in first.err
    second = cli(*arguments)
    assert second.code == 2 and "new or empty folder" in second.err


def pair_all(rows: list[dict], out: Path, workers: int) -> None:
    if not (out / "pairs").exists():
        make_pairs(out.with_name("scored.jsonl"), out / "pairs", PairRules(policy="all"), with_figure=False)


@pytest.mark.slow
def test_twenty_kills_leave_a_whole_folder_or_none(tmp_path):
    rows = studies(300)
    write_scored(tmp_path / "scored.jsonl", rows)
    runs = KilledRuns(pair_all, rows, tmp_path / "work", 1)
    assert runs.kill(20) >= 5
    made, expected = runs.finish() / "pairs", runs.undisturbed / "pairs"
    assert [path.name for path in made.parent.iterdir()] == ["pairs"]
    for path in (expected / "data").iterdir():
        assert pq.read_table(made / "data" / path.name).equals(pq.read_table(path))


@pytest.mark.slow
def test_trl_trains_on_the_folder_and_so_does_our_trainer(tmp_path, volumes, checkpoint):
    """Once from a shell that never imports the package, once by recipe: the rows and their volumes are found."""
    from tests.test_trl_cli import trl

    rows = [scored_row(f"s{number}", images=[str(volumes / f"ct{number}.nii.gz")]) for number in (0, 1, 2, 4)]
    made = make(tmp_path, rows, validation_share=0)
    trl("dpo", checkpoint, made.folder, tmp_path / "stock", "--max_length", "256")
    assert (tmp_path / "stock" / "model.safetensors").exists()

    from hf_mu2.training.recipe import train_recipe

    options = {
        "objective": "dpo",
        "model_name_or_path": str(checkpoint),
        "dataset_name": str(made.folder),
        "stage": "frozen_tower",
        "cache_features": str(tmp_path / "features"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "max_length": 256,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "output_dir": str(tmp_path / "ours"),
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(options))  # JSON is YAML
    assert (train_recipe(recipe) / "model.safetensors").exists()
