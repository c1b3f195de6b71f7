"""Visitors: each alone behind a key, and nothing of them stays when they leave."""

import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from hf_mu2.demo.sessions import Sessions, remove_abandoned
from tests.tiny import tiny_volume


@pytest.fixture
def sessions():
    made = Sessions(most=3, idle_s=60.0)
    yield made
    made.close()
    assert not made.root.exists()


def fill(session):
    session.show(tiny_volume(), "ct-1", None, [])
    session.select((0, 0, 0), np.zeros(session.volume.array.shape, np.uint8))


def test_a_study_lives_in_the_folder_of_its_visitor_and_goes_with_them(sessions):
    session = sessions.of("anna")
    fill(session)
    assert {path.name for path in session.folder.iterdir()} == {"volume.npy", "heat.npy"}
    np.testing.assert_array_equal(session.volume.array, tiny_volume().array)
    sessions.leave("anna")
    assert not session.folder.exists() and sessions.by_key(session.key) is None


def test_the_folder_of_visitors_is_private(sessions):
    assert sessions.root.stat().st_mode & 0o077 == 0


def test_visitors_do_not_see_each_other(sessions):
    anna, ben = sessions.of("anna"), sessions.of("ben")
    assert anna.key != ben.key and anna.folder != ben.folder
    assert sessions.by_key(anna.key) is anna and sessions.by_key("") is None
    assert sessions.of("anna") is anna


def test_another_study_takes_the_place_of_the_last(sessions):
    session = sessions.of("anna")
    fill(session)
    revision = session.revision
    session.show(tiny_volume(seed=1), "ct-2", None, [])
    assert session.heat is None and session.selected is None and session.turns == []
    assert session.revision > revision
    assert [path.name for path in session.folder.iterdir()] == ["volume.npy"]


def test_the_longest_idle_goes_when_there_are_too_many(sessions):
    first = sessions.of("0")
    for name in ("1", "2", "3"):
        sessions.of(name)
    assert not first.folder.exists() and sessions.by_key(first.key) is None


def test_whoever_stays_away_is_forgotten_and_so_are_uploads_nobody_used():
    sessions = Sessions(most=3, idle_s=0.05)
    try:
        session = sessions.of("anna")
        upload = sessions.uploads / "0123abcd" / "volume.nii.gz"
        upload.parent.mkdir()
        upload.write_bytes(b"x")
        time.sleep(0.2)
        sessions.sweep()
        assert not session.folder.exists() and list(sessions.uploads.iterdir()) == []
    finally:
        sessions.close()


def test_a_request_leaves_nothing_even_when_it_fails(sessions):
    with pytest.raises(RuntimeError), sessions.passing() as session:
        fill(session)
        raise RuntimeError
    assert not session.folder.exists() and sessions.by_key(session.key) is None


def test_what_a_killed_demo_left_is_removed_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    left, ours = tmp_path / f"hf_mu2_demo_{gone.stdout.strip()}_x", tmp_path / f"hf_mu2_demo_{os.getpid()}_x"
    left.mkdir()
    ours.mkdir()
    remove_abandoned()
    assert not left.exists() and ours.exists()
