"""A watched folder: whole volumes become reports once, others wait or are refused, and nothing is done twice."""

import shutil
import threading
import time

import pytest

pytest.importorskip("watchfiles")

from hf_mu2.reporting.report import Request
from hf_mu2.serving.watch import Arrival, find_arrivals, state_of, watch_folder

FEW = Request(max_new_tokens=4)


def watch_once(inbox, out, reader, **options) -> list[Arrival]:
    told: list[Arrival] = []
    watch_folder(inbox, out, reader, request=FEW, settle_s=0, once=True, told=told.append, **options)
    return told


def test_what_is_there_is_reported_once_and_again_when_it_changes(reader, nifti, tmp_path):
    inbox, out = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    shutil.copy(nifti, inbox / "a.nii.gz")
    (inbox / "b.nii.gz").write_bytes(b"broken")
    (inbox / ".c.nii.gz").write_bytes(b"being written")
    (inbox / "notes.txt").write_text("no volume")
    first = watch_once(inbox, out, reader, formats=("pdf",))
    assert [(arrival.volume.name, arrival.refusal is None) for arrival in first] == [
        ("a.nii.gz", True),
        ("b.nii.gz", False),
    ]
    assert {"report.txt", "report.pdf", "run.json"} < {path.name for path in (out / "a").iterdir()}
    assert "b.nii.gz" in (out / "b" / "refused.txt").read_text()
    assert watch_once(inbox, out, reader) == []
    shutil.copy(nifti, inbox / "b.nii.gz")
    assert [arrival.volume.name for arrival in watch_once(inbox, out, reader)] == ["b.nii.gz"]
    assert not (out / "b" / "refused.txt").exists()


def test_a_volume_that_grows_is_left_alone_until_it_is_whole(reader, nifti, tmp_path):
    inbox, data = tmp_path / "in", nifti.read_bytes()
    inbox.mkdir()
    told, stop = [], threading.Event()
    watching = threading.Thread(
        target=watch_folder,
        args=(inbox, tmp_path / "out", reader),
        kwargs={"request": FEW, "settle_s": 1.5, "stop": stop, "told": told.append},
    )
    watching.start()
    with (inbox / "a.nii.gz").open("wb") as file:
        for start in range(0, len(data), len(data) // 4 + 1):
            file.write(data[start : start + len(data) // 4 + 1])
            file.flush()
            time.sleep(0.4)
    end = time.monotonic() + 60
    while not told and time.monotonic() < end:
        time.sleep(0.05)
    stop.set()
    watching.join(20)
    assert [arrival.refusal for arrival in told] == [None]


def test_the_state_of_a_folder_follows_its_files(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    assert state_of(folder) is None and state_of(tmp_path / "gone") is None
    (folder / "1.dcm").write_bytes(b"a")
    before = state_of(folder)
    assert state_of(folder) == before
    (folder / "2.dcm").write_bytes(b"b")
    assert state_of(folder) != before
    assert list(find_arrivals(tmp_path)) == [folder]


def test_reports_are_not_written_into_the_inbox(reader, tmp_path):
    with pytest.raises(ValueError, match="outside"):
        watch_once(tmp_path, tmp_path / "out", reader)
    with pytest.raises(ValueError, match="must be watched"):
        watch_once(tmp_path / "none", tmp_path / "out", reader)


def test_the_command_reports_and_returns(cli, nifti, tmp_path):
    inbox = tmp_path / "in"
    inbox.mkdir()
    shutil.copy(nifti, inbox / "a.nii.gz")
    options = ("--once", "--settle-s", 0, "--max-new-tokens", 4)
    result = cli("watch", inbox, "--out", tmp_path / "out", *options)
    assert result.code == 0 and result.out.startswith("a.nii.gz: ")
