import json

import pytest


def assert_taught(result) -> None:
    """Bad input: exit code 2, nothing on stdout, one paragraph without a traceback on stderr."""
    assert result.code == 2, result
    assert result.out == ""
    assert "Traceback" not in result.err
    message = result.err.strip().splitlines()[-1]
    assert message.startswith("Error: ") and message.endswith(".") and len(message) > 60


@pytest.mark.parametrize("command", ["report", "predict", "embed"])
def test_a_path_that_does_not_exist_is_bad_input(cli, tmp_path, command):
    out = () if command == "report" else ("--out", tmp_path / "out.npz")
    assert_taught(cli(command, tmp_path / "missing", *out))


def test_a_checkpoint_that_does_not_exist_is_bad_input(cli, tmp_path):
    (tmp_path / "ct.nii.gz").write_bytes(b"")
    result = cli("report", tmp_path / "ct.nii.gz", "--model", tmp_path / "no_model")
    assert result.code == 2 and "no_model" in result.err and "Traceback" not in result.err


def test_a_dataset_without_images_names_its_columns(cli, tmp_path):
    row = json.dumps({"file_name": "a.txt", "text": "no volume here"})
    (tmp_path / "metadata.jsonl").write_text(row + "\n")
    (tmp_path / "a.txt").write_text("text")
    assert cli("predict", tmp_path, "--out", tmp_path / "out.jsonl").code == 2


def test_an_unknown_option_is_bad_input(cli):
    assert cli("report", "ct.nii.gz", "--colour", "red").code == 2


def test_a_missing_package_is_a_failure_that_names_the_extra(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    result = cli("predict", tmp_path, "--out", tmp_path / "out.jsonl")
    assert result.code == 1 and 'pip install "hf_mu2[train]"' in result.err and "Traceback" not in result.err


def test_the_traceback_is_there_when_asked_for(monkeypatch, tmp_path):
    from hf_mu2.cli import main

    monkeypatch.setenv("HF_MU2_TRACEBACK", "1")
    monkeypatch.setattr("sys.argv", ["hf-mu2", "report", str(tmp_path / "missing")])
    with pytest.raises(ValueError, match="must be a file or folder that exists"):
        main()
