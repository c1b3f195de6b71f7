"""The commands that read every volume: data prepare, data check, data relocate."""

import json
import shutil

import pytest

from hf_mu2.data.prepare import PreparedStudies
from tests.data.volume_rows import write_rows

pytest.importorskip("datasets")
pytest.importorskip("datatrove")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_dataset(folder, count: int, damaged: tuple[int, ...] = ()):
    """The folder that `load_dataset` opens: volumes beside metadata.jsonl."""
    rows = write_rows(folder / "train", count, damaged)
    lines = [
        json.dumps({**row, "images_file_names": [f"ct{i}.nii.gz"], "images": None})
        for i, row in enumerate(rows)
    ]
    (folder / "train" / "metadata.jsonl").write_text(
        "\n".join(line.replace('"images": null, ', "") for line in lines)
    )
    return folder


def test_prepare_then_check_then_move(cli, checkpoint, tmp_path):
    source = write_dataset(tmp_path / "data", 3)
    prepared = cli("data", "prepare", source, "--out", tmp_path / "out", "--model", checkpoint, "--json")
    assert prepared.code == 0, prepared.err
    assert json.loads(prepared.out)["splits"] == {
        "train": {"finished": True, "rows": 3, "volumes": 3, "left_out": 0}
    }
    shutil.move(tmp_path / "out", tmp_path / "moved")
    moved = cli("data", "relocate", tmp_path / "moved")
    assert moved.code == 0 and "3 rows" in moved.out
    assert str(tmp_path / "moved") in (tmp_path / "moved" / "train.jsonl").read_text()
    checked = cli("data", "check", source, "--out", tmp_path / "checked")
    assert checked.code == 0 and "3 volumes, 0 unreadable" in checked.out, checked.err


def test_damaged_volumes_are_left_out_with_exit_code_2(cli, checkpoint, tmp_path):
    source = write_dataset(tmp_path / "data", 3, damaged=(1,))
    result = cli("data", "prepare", source, "--out", tmp_path / "out", "--model", checkpoint)
    assert result.code == 2 and "study_1" in result.err and "left out" in result.err
    assert [row["study_id"] for row in PreparedStudies(tmp_path / "out")] == ["study_0", "study_2"]
    checked = cli("data", "check", source, "--out", tmp_path / "checked", "--json")
    assert checked.code == 2 and "damaged file" in checked.err and "Traceback" not in checked.err
    assert json.loads(checked.out)["defects"] == [
        {"severity": "error", "defect": "damaged file", "volumes": 1}
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "with `--root`"),
        (["data", "--split", "test"], "names a split"),
        (["data", "--executor", "slurm"], "name of a partition"),
        (["data", "--set", "time"], "name=value"),
    ],
)
def test_what_cannot_be_prepared_is_bad_input(cli, checkpoint, tmp_path, monkeypatch, arguments, message):
    write_dataset(tmp_path / "data", 1)
    monkeypatch.chdir(tmp_path)
    result = cli("data", "prepare", *arguments, "--out", tmp_path / "out", "--model", checkpoint)
    assert result.code == 2 and message in result.err and "Traceback" not in result.err
