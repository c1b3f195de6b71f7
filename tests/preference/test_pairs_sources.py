import json
from pathlib import Path

import pytest

from hf_mu2.preference.pairs import PairRules, make_pairs
from hf_mu2.preference.pairs_sources import OtherPatients, write_noise_reports
from hf_mu2.reporting.inference import load_reader
from hf_mu2.tables import read_rows, write_rows
from tests.preference.scored_rows import TEXTS, scored_row

EFFUSION = "Findings: Pleural effusion on the left. Emphysema. Cardiomegaly."
NORMAL = "Findings: The lungs are clear and no effusion is seen."


@pytest.fixture(scope="module")
def reader(checkpoint):
    return load_reader(checkpoint, device="cpu")


def write_scored(folder: Path, rows: list[dict]) -> Path:
    write_rows(folder / "scored.jsonl", rows)
    return folder / "scored.jsonl"


def test_another_patients_report_differs_enough_and_is_of_another_patient():
    rows = [
        scored_row("a", reference=EFFUSION, patient_id="one"),
        scored_row("b", reference=NORMAL, patient_id="one"),
        scored_row("c", reference=EFFUSION + " Hernia.", patient_id="two"),
        scored_row("d", reference="Findings: Hiatal hernia.", patient_id="three"),
    ]
    others = OtherPatients(rows, min_differences=3)
    assert others.report_for(rows[0]) == rows[3]["reference"]  # b is the same patient, c says nearly the same
    assert others.report_for(rows[1]) == rows[2]["reference"]
    assert OtherPatients(rows, min_differences=9).report_for(rows[0]) is None


def test_the_other_patient_is_chosen_by_the_seed_and_not_always_the_same():
    rows = [scored_row(f"s{number}", reference=NORMAL if number % 2 else EFFUSION) for number in range(20)]
    rows += [scored_row(f"t{number}", reference=f"{NORMAL} Case {number}.") for number in range(20)]
    taken = [[OtherPatients(rows, 2, seed).report_for(row) for row in rows[:20:2]] for seed in (0, 0, 1)]
    assert taken[0] == taken[1] != taken[2] and len(set(taken[0])) > 1


def test_a_study_without_reference_or_likeness_gets_no_other_report():
    rows = [scored_row("a", reference=None), scored_row("b", reference=EFFUSION)]
    assert OtherPatients(rows, 1).report_for(rows[0]) is None
    with pytest.raises(ValueError, match="at least 1 label"):
        OtherPatients(rows, 0)


def test_noise_is_reported_once_per_study_and_a_volume_that_is_gone_has_no_row(tmp_path, volumes, reader):
    rows = [
        scored_row(f"study-{number}", images=[str(volumes / f"ct{number}.nii.gz")]) for number in range(5)
    ]
    rows.append(scored_row("gone", images=[str(volumes / "gone.nii.gz")]))
    scored = write_scored(tmp_path, rows)
    out = write_noise_reports(scored, tmp_path / "noise.jsonl", reader, batch_size=2, max_new_tokens=4)
    written = list(read_rows(out))
    assert [row["study_id"] for row in written] == [
        "study-0",
        "study-1",
        "study-2",
        "study-4",
    ]  # ct3 is broken
    again = write_noise_reports(scored, tmp_path / "again.jsonl", reader, batch_size=3, max_new_tokens=4)
    assert [row["study_id"] for row in read_rows(again)] == [row["study_id"] for row in written]


def test_a_killed_run_asks_only_for_what_is_missing(tmp_path, volumes, reader, monkeypatch):
    rows = [
        scored_row(f"study-{number}", images=[str(volumes / f"ct{number}.nii.gz")]) for number in range(3)
    ]
    scored, out = write_scored(tmp_path, rows), tmp_path / "noise.jsonl"
    answer, asked = type(reader).answer, []

    def killed_at_the_second(self, inputs, max_new_tokens):
        asked.append(len(inputs["input_ids"]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(self, inputs, max_new_tokens)

    monkeypatch.setattr(type(reader), "answer", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_noise_reports(scored, out, reader, batch_size=1, max_new_tokens=4)
    assert not out.exists()
    write_noise_reports(scored, out, reader, batch_size=1, max_new_tokens=4)
    assert len(asked) == 4 and len(list(read_rows(out))) == 3


def test_extra_sources_are_pairs_of_their_own_beside_the_sampled_ones(tmp_path):
    rows = [scored_row(f"s{number}", reference=NORMAL if number % 2 else EFFUSION) for number in range(4)]
    noise = tmp_path / "noise.jsonl"
    write_rows(noise, [{"study_id": f"s{number}", "candidate": "Findings: Static."} for number in range(3)])
    made = make_pairs(
        write_scored(tmp_path, rows),
        tmp_path / "pairs",
        PairRules(),
        validation_share=0,
        noise=noise,
        other_patient_differences=2,
        with_figure=False,
    )
    pairs = list(read_rows(made.folder / "data" / "train-00000-of-00001.parquet"))
    texts = {
        source: [
            (pair["chosen"][0]["content"], pair["rejected"][0]["content"])
            for pair in pairs
            if pair["source"] == source
        ]
        for source in ("sampled", "noise", "other_patient")
    }
    assert len(texts["sampled"]) == 4
    assert texts["noise"] == [(TEXTS[0], "Findings: Static.")] * 3
    assert texts["other_patient"] == [(EFFUSION, NORMAL), (NORMAL, EFFUSION)] * 2
    assert {pair["margin"] is None for pair in pairs if pair["source"] != "sampled"} == {True}
    assert made.account.notes == {"no pair with a report on noise": 1}
    assert "## noise" in (made.folder / "report" / "pairs.md").read_text()


def test_the_command_writes_noise_reports_beside_the_folder(tmp_path, volumes, checkpoint, cli):
    rows = [scored_row(f"s{number}", images=[str(volumes / f"ct{number}.nii.gz")]) for number in range(2)]
    scored = write_scored(tmp_path, rows)
    noise = ("--noise", checkpoint, "--max-new-tokens", 4)
    result = cli("pairs", scored, "--out", tmp_path / "pairs", *noise, "--validation-share", 0, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["sources"]["noise"]["pairs"] == 2
    assert (tmp_path / "pairs.noise.jsonl").exists()
