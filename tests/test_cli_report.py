"""The commands that run a model, on a randomly initialised checkpoint."""

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from hf_mu2.model.configuration_mu2 import Mu2Config
from tests.tiny import tiny_nifti

FEW = ("--max-new-tokens", 4)


def test_the_report_goes_to_stdout_under_its_notice(cli, checkpoint, volumes):
    result = cli("report", volumes / "ct0.nii.gz", "--model", checkpoint, *FEW)
    assert result.code == 0
    assert result.out.splitlines()[0] == Mu2Config.notice


def test_the_files_of_a_report_and_the_path_of_its_picture(cli, checkpoint, volumes, tmp_path):
    out = tmp_path / "out"
    result = cli("report", volumes / "ct0.nii.gz", "--model", checkpoint, "--out", out, *FEW)
    assert result.code == 0
    assert result.out.splitlines()[-1] == f"Picture: {out / 'montage.png'}"
    assert sorted(path.name for path in out.iterdir()) == ["montage.png", "report.txt", "run.json"]


def test_json_is_one_object_per_line_that_begins_with_the_notice(cli, checkpoint, volumes):
    (volumes / "ct3.nii.gz").unlink()
    result = cli("report", volumes, "--model", checkpoint, "--json", *FEW)
    records = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 0 and len(records) == 4
    assert all(next(iter(record.items())) == ("notice", Mu2Config.notice) for record in records)
    assert len({record["study_id"] for record in records}) == 4


def test_a_broken_volume_does_not_stop_the_others_of_its_folder(cli, checkpoint, volumes, tmp_path):
    result = cli("report", volumes, "--model", checkpoint, "--out", tmp_path / "out", *FEW)
    assert result.code == 2 and "1 of 5 volumes" in result.err and "Traceback" not in result.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ct0", "ct1", "ct2", "ct4"]


def test_a_broken_volume_alone_is_bad_input(cli, checkpoint, volumes):
    result = cli("report", volumes / "ct3.nii.gz", "--model", checkpoint)
    assert (
        result.code == 2 and result.out == "" and "ct3.nii.gz" in result.err and "Traceback" not in result.err
    )


def test_the_prompt_takes_context_and_a_prior_report(cli, checkpoint, volumes, tmp_path):
    prior = tmp_path / "prior.txt"
    prior.write_text("Findings: normal.\n")
    context = ("--indication", "Cough", "--technique", "Native", "--prior-report", prior)
    result = cli("report", volumes / "ct0.nii.gz", "--model", checkpoint, "--json", *context, *FEW)
    command = json.loads(result.out)["command"]
    assert "--indication INDICATION --technique TECHNIQUE --prior-report PRIOR_REPORT" in command


def test_geometry_given_by_the_caller_replaces_a_blank_header(cli, checkpoint, tmp_path):
    voxels = np.stack([np.asanyarray(tiny_nifti().dataobj)] * 2, axis=-1)
    nib.save(nib.Nifti1Image(voxels, None), tmp_path / "blank.nii.gz")
    command = ("report", tmp_path / "blank.nii.gz", "--model", checkpoint, "--json", *FEW)
    assert "channel=0" in cli(*command).err
    assert "spacing=" in cli(*command, "--channel", 1).err
    given = ("--channel", 1, "--spacing", 3, 2, 2, "--orientation", "LPS")
    result = cli(*command, *given)
    assert result.code == 0, result.err
    assert json.loads(result.out)["volume"]["spacing_mm"] == [3.0, 2.0, 2.0]


def test_the_current_folder_can_be_reported(cli, checkpoint, volumes, monkeypatch):
    (volumes / "ct3.nii.gz").unlink()
    monkeypatch.chdir(volumes)
    result = cli("report", ".", "--model", checkpoint, *FEW)
    assert result.code == 0 and "== ct0" in result.out and "VOLUME" not in result.err


def test_predict_and_embed_write_their_tables(cli, checkpoint, volumes, tmp_path):
    (volumes / "ct3.nii.gz").unlink()
    predicted = cli(
        "predict", volumes, "--out", tmp_path / "out.jsonl", "--model", checkpoint, "--json", *FEW
    )
    assert predicted.code == 0 and json.loads(predicted.out)["num_studies"] == 4
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4
    embedded = cli("embed", volumes, "--out", tmp_path / "out.npz", "--model", checkpoint)
    assert embedded.code == 0 and np.load(tmp_path / "out.npz")["embedding"].shape[0] == 4


def test_predict_says_what_it_left_out(cli, checkpoint, volumes, tmp_path):
    result = cli("predict", volumes, "--out", tmp_path / "out.jsonl", "--model", checkpoint, *FEW)
    assert (
        result.code == 2
        and "000003: " in result.err
        and "ct3" not in result.err
        and len((tmp_path / "out.jsonl").read_text().splitlines()) == 4
    )


@pytest.mark.slow
def test_two_processes_predict_what_one_does(cli, checkpoint, volumes, tmp_path):
    """Through torchrun, which `accelerate launch` calls on machines with several accelerators, never on a CPU."""
    (volumes / "ct3.nii.gz").unlink()
    cli("predict", volumes, "--out", tmp_path / "one.jsonl", "--model", checkpoint, *FEW)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    predict = ["predict", volumes, "--out", tmp_path / "two.jsonl", "--model", checkpoint, *FEW]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launch, "-m", "hf_mu2.cli", *predict]
    run = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()
    assert json.loads((tmp_path / "two.manifest.json").read_text())["num_processes"] == 2
    assert run.stdout.count("reports:") == 1


@pytest.mark.slow
def test_predict_runs_under_accelerate_launch(checkpoint, volumes, tmp_path):
    (volumes / "ct3.nii.gz").unlink()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1]
    launch += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    predict = ["predict", volumes, "--out", tmp_path / "out.jsonl", "--model", checkpoint, *FEW]
    command = [*launch, "-m", "hf_mu2.cli", *predict]
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4


def test_a_report_needs_no_extra(volumes, checkpoint, tmp_path):
    """What `make demo` installs is the package with the extra `dicom` alone."""
    extras = (
        "datasets",
        "trl",
        "peft",
        "sklearn",
        "reportlab",
        "highdicom",
        "fhir",
        "matplotlib",
        "gradio",
        "fastapi",
    )
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({extras!r}))\n"
    arguments = ["report", str(volumes / "ct0.nii.gz"), "--model", str(checkpoint), "--max-new-tokens", "2"]
    code = f"{blocked}sys.argv = ['hf-mu2', *{arguments!r}]\nfrom hf_mu2.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
