"""`hf-mu2 data inspect | build | overlap`."""

import json
from pathlib import Path

import nibabel as nib
import pytest

from hf_mu2.cli.data import parse_options
from tests.data.corpora import write_folder
from tests.tiny import tiny_nifti


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "corpus")


def test_inspect_prints_a_page_or_json(cli, root):
    (root / "ct0.nii.gz").unlink()
    page = cli("data", "inspect", "folder", "--root", root)
    assert page.code == 0 and "report without volume (s0)" in page.out and "licence" in page.out
    result = cli("data", "inspect", "folder", "--root", root, "--json", "--option", "egress=true")
    facts = json.loads(result.out)
    assert facts["splits"]["train"]["studies"] == 3 and facts["egress"] is True


def test_build_writes_a_folder_and_says_where(cli, root, tmp_path):
    result = cli(
        "data",
        "build",
        "folder",
        "--root",
        root,
        "--out",
        tmp_path / "out",
        "--view",
        "sft",
        "--split",
        "test",
    )
    assert result.code == 0 and "2 rows of test" in result.out
    assert list((tmp_path / "out" / "data").iterdir())


def test_build_fails_when_a_volume_cannot_be_copied(cli, root, tmp_path):
    table = (
        (root / "metadata.csv").read_text().replace("\ns", "\n0,s").replace("study_id", "channel,study_id")
    )
    (root / "metadata.csv").write_text(table)
    (root / "ct0.nii.gz").write_bytes(b"damaged")
    result = cli(
        "data", "build", "folder", "--root", root, "--out", tmp_path / "out", "--copy-volumes", "--json"
    )
    assert (
        result.code == 2
        and "s0: " in result.err
        and json.loads(result.out)["rows"] == {"train": 3, "test": 2}
    )


def test_overlap_names_what_is_shared(cli, root, tmp_path):
    other = write_folder(tmp_path / "other", num_studies=2)
    nib.save(tiny_nifti(70, (6, 16, 20)), other / "ct1.nii.gz")
    arguments = (
        "data",
        "overlap",
        "folder",
        "folder",
        "--root-a",
        root,
        "--root-b",
        other,
        "--cache",
        tmp_path / "h.jsonl",
    )
    result = cli(*arguments)
    assert (
        result.code == 0 and "Shared: 1 volumes" in result.out and "s0 (train)  =  s0 (train)" in result.out
    )
    assert len(json.loads(cli(*arguments, "--json").out)["volumes"]) == 1
    assert (
        "Shared: 0 volumes, 6 reports"
        in cli(*arguments[:6], "--root-b", root, "--no-volumes", "--min-words", 5).out
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "openj"), "A corpus is one of"),
        (("inspect", "folder", "--option", "egress"), "NAME=VALUE"),
        (("inspect", "folder", "--option", "color=1"), "Options of `folder`"),
        (("inspect", "openi"), "needs `NLMCXR_reports.tgz`"),
    ],
)
def test_bad_input_ends_in_one_paragraph_and_code_2(cli, root, arguments, message):
    result = cli("data", *arguments, "--root", root)
    assert result.code == 2 and message in result.err and not result.out


def test_options_are_json_or_text():
    settings = ["a=1", "b=0.5", "c=true", "d=null", 'e=["x"]', "f=x=y"]
    assert parse_options(settings) == {"a": 1, "b": 0.5, "c": True, "d": None, "e": ["x"], "f": "x=y"}
    assert parse_options(None) == {}
