import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import hf_mu2.cli.publish  # noqa: F401  registers the commands
from hf_mu2.data.phantom import write_phantoms
from hf_mu2.hub.publish_dataset import plan_dataset
from hf_mu2.hub.upload import PublishError
from tests.hub.hub_server import HubServer, Repo

# Publishes, changes the card and publishes again, asks for a public repository of that name, and reads rows back: in
# one process, since importing costs more than the rest.
SESSION = """
import contextlib, io, json, sys
from pathlib import Path

from datasets import load_dataset
from hf_mu2.cli import main, publish

def run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    sys.argv, code = ["hf-mu2", "publish", "dataset", *arguments], 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

def rows(source):
    seen = lambda image: [list(map(int, image.shape)), int(image.get_fdata().sum())]
    read = load_dataset(source, split="train")
    return [row | {"images": [seen(image) for image in row["images"]]} for row in read]

folder, repo = sys.argv[1:]
record = {"first": run(folder, repo, "--json")}
card = Path(folder, "README.md")
card.write_text(card.read_text() + "\\nMore words.\\n")
record["second"] = run(folder, repo)
record["public"] = run(folder, repo, "--public")
record["from_hub"], record["from_disk"] = rows(repo), rows(folder)
print(json.dumps(record))
"""


@dataclass(frozen=True)
class Session:
    """What happened when a folder was published for real, over HTTP, to the stand-in."""

    folder: Path
    repo: Repo
    requests: list[str]
    record: dict[str, Any]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("published") / "phantoms", 2, spacing=(12, 8, 8))


@pytest.fixture
def folder(phantoms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantoms, tmp_path / "phantoms"))


@pytest.fixture(scope="module")
def session(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    home = tmp_path_factory.mktemp("session")
    folder = Path(shutil.copytree(phantoms, home / "phantoms"))
    (folder / "train" / ".partial_7_x.nii.gz").write_bytes(b"half")
    with HubServer() as hub:
        result = subprocess.run(
            [sys.executable, "-c", SESSION, str(folder), "tester/phantoms"],
            env=hub.environment(home / "hf_home"),
            capture_output=True,
            text=True,
            timeout=600,
            cwd=home,
        )
        assert result.returncode == 0, result.stderr
        repo = hub.repos["dataset", "tester/phantoms"]
        return Session(folder, repo, hub.requests, json.loads(result.stdout.splitlines()[-1]))


def change_rows(folder: Path, **columns: object) -> None:
    path = folder / "train" / "metadata.jsonl"
    rows = [json.loads(line) | columns for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_published_folder_holds_the_same_bytes(session):
    first = session.record["first"]
    assert first["code"] == 0, first["err"]
    assert json.loads(first["out"])["private"] is True and session.repo.private
    assert session.repo.files == {
        path.relative_to(session.folder).as_posix(): path.read_bytes()
        for path in session.folder.rglob("*")
        if path.is_file() and not path.name.startswith(".partial_")
    }
    assert session.repo.lfs == {name for name in session.repo.files if name.endswith(".nii.gz")}


def test_what_was_published_reloads_with_equal_rows(session):
    assert session.record["from_hub"] == session.record["from_disk"]
    assert len(session.record["from_hub"]) == 2


def test_a_second_upload_sends_no_volume_again(session):
    assert session.record["second"]["code"] == 0, session.record["second"]["err"]
    assert sum(request.startswith("PUT /lfs/") for request in session.requests) == 2
    assert session.repo.files["README.md"].endswith(b"More words.\n")
    assert len(session.repo.commits) == 2


def test_a_private_repository_is_not_taken_for_the_public_one_that_was_asked_for(session):
    public = session.record["public"]
    assert public["code"] == 2 and "exists and is private" in public["err"]
    assert session.repo.private


def test_a_dry_run_lists_every_file_and_the_card(folder, cli):
    result = cli("publish", "dataset", folder, "tester/phantoms", "--dry-run")
    assert result.code == 0, result.err
    for path in folder.rglob("*.nii.gz"):
        assert f"{path.stat().st_size:,}  {path.relative_to(folder).as_posix()}" in result.out
    assert (folder / "README.md").read_text().strip() in result.out
    assert "Nothing was sent" in result.err and "private" in result.err


def test_a_dry_run_says_the_same_as_json(folder, cli):
    result = cli("publish", "dataset", folder, "tester/phantoms", "--dry-run", "--json")
    plan = json.loads(result.out)
    assert plan["num_files"] == len(plan["files"]) and plan["private"] is True


def test_a_refused_folder_exits_as_bad_input(folder, cli):
    (folder / "README.md").unlink()
    result = cli("publish", "dataset", folder, "tester/phantoms")
    assert result.code == 2 and "has no card" in result.err and "nothing was sent" in result.err


def test_a_card_is_written_and_then_published_dry(folder, cli):
    (folder / "README.md").unlink()
    assert cli("publish", "dataset-card", "phantom_ct", "--root", folder, "--out", folder).code == 0
    result = cli("publish", "dataset", folder, "tester/phantoms", "--dry-run")
    assert result.code == 0 and "2 studies with 2 CT volumes" in result.out


def test_the_plan_counts_what_is_there(folder):
    plan = plan_dataset(folder)
    assert plan.num_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert [name for name, _ in plan.files] == sorted(name for name, _ in plan.files)


def _secret(folder: Path) -> None:
    (folder / "notes.txt").write_text("token: hf_" + "a1B2" * 9)


def _nifti_name(folder: Path) -> None:
    path = next(folder.rglob("*.nii.gz"))
    image = nib.load(path)
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    image.header["db_name"] = b"DOE^JANE"
    nib.save(image, path)


def _nifti_dicom(folder: Path) -> None:
    path = next(folder.rglob("*.nii.gz"))
    image = nib.load(path)
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"harmless"))
    nib.save(image, path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[356:360] = (2).to_bytes(4, "little")
    path.write_bytes(gzip.compress(bytes(content)))


def _link(folder: Path) -> None:
    outside = folder.parent / "outside.txt"
    outside.write_text("private")
    (folder / "train" / "more.txt").symlink_to(outside)


def _card_header(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "README.md").write_text(f"---\n{text}\n---\n# Data\n")

    return write


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "README.md").unlink(), "no card"),
        (_card_header("pretty_name: Mine"), "no `license`"),
        (_card_header("license: mit\npretty_name: AMOS-MM"), "AMOS-MM, which may not be redistributed"),
        (_card_header("license: mit\nsource_datasets: [GoodBaiBai88/M3D-Cap]"), "M3D-Cap, which may not"),
        (
            lambda folder: (folder / "README.md").write_text(
                "---\nlicense: mit\n---\nMade from https://huggingface.co/datasets/AbdomenAtlas/AbdomenAtlas3.0Mini."
            ),
            "AbdomenAtlas 3.0 Mini, which may not",
        ),
        (
            lambda folder: (folder / "manifest.json").write_text('{"inputs": [{"corpus": "ct_rate"}]}'),
            "CT-RATE, which may not.*manifest.json",
        ),
        (lambda folder: change_rows(folder, corpus="amos_mm"), "AMOS-MM, which may not.*metadata.jsonl"),
        (lambda folder: change_rows(folder, egress=False), "2 rows whose text may not leave"),
        (lambda folder: change_rows(folder, PatientName="Doe"), "keys that name patients: PatientName"),
        (lambda folder: change_rows(folder, metadata='{"dicom": {"PatientID": 7}}'), "PatientID"),
        (lambda folder: change_rows(folder, header=[{"date_of_birth": "1950"}]), "date_of_birth"),
        (_secret, "notes.txt` holds a Hugging Face token in line 1"),
        (lambda folder: (folder / ".env").write_text("A=1"), "named like a file of credentials"),
        (_nifti_name, "db_name"),
        (_nifti_dicom, "DICOM header as an extension"),
        (lambda folder: (folder / "train" / "IM1").write_bytes(b"\0" * 128 + b"DICM"), "is DICOM"),
        (lambda folder: (folder / "train" / "all.zip").write_bytes(b"PK"), "archive"),
        (lambda folder: (folder / "train" / "metadata.jsonl").write_bytes(b'{"a": "\xe9"}'), "UTF-8"),
    ],
)
def test_what_must_not_be_published_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(PublishError, match=message):
        plan_dataset(folder)


def test_a_link_out_of_the_folder_is_refused(folder):
    _link(folder)
    with pytest.raises(ValueError, match="link that leaves"):
        plan_dataset(folder)


def test_every_reason_is_named_at_once(folder):
    (folder / "README.md").unlink()
    _secret(folder)
    change_rows(folder, PatientName="Doe", corpus="ct_rate")
    with pytest.raises(PublishError) as refused:
        plan_dataset(folder)
    for reason in ("no card", "Hugging Face token", "PatientName", "CT-RATE"):
        assert reason in str(refused.value)
    assert "hf_a1B2" not in str(refused.value), "the secret itself is not printed"


def test_columns_of_parquet_are_looked_at_without_their_values(folder):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"meta": [{"PatientBirthDate": "1950"}], "patient_id": ["a"]})
    table.to_parquet(folder / "train.parquet")
    with pytest.raises(PublishError, match="PatientBirthDate"):
        plan_dataset(folder)


def test_a_folder_that_mentions_labels_of_a_corpus_is_not_taken_for_it(folder):
    path = folder / "README.md"
    path.write_text(path.read_text() + "\nThe labels are the 18 of CT-RATE.\n")
    assert plan_dataset(folder).card.endswith("CT-RATE.\n")
