"""Keep what visitors look at, each behind a key of its own, and delete it when they leave.

Writes: one folder per visitor under a private temporary folder; both are deleted.
"""

import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.host import return_memory

from .conversation import Turn

_PREFIX = "hf_mu2_demo_"


@dataclass
class Session:
    """One visitor's study.

    Args:
        key (`str`): The secret part of the addresses under which the browser fetches slices and downloads.
        folder (`Path`): Files of this visitor.
        study_id (`str`): Hash of the voxels.
        truth (`str`, *optional*): The true report, of a phantom.
        caveats (`list[str]`): What to know before reading: not the region the model knows, thick slices.
        selected (`tuple`, *optional*): Turn, reply and sentence whose evidence is shown.
        heat (`np.ndarray`, *optional*): That evidence on the grid of the volume, uint8.
        stop (`threading.Event`): Set when the visitor has read enough of an answer.
        revision (`int`): Counts the volumes; goes into addresses, so that nothing old is shown.
    """

    key: str
    folder: Path
    volume: Volume | None = None
    study_id: str = ""
    truth: str | None = None
    caveats: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    selected: tuple[int, int, int] | None = None
    heat: np.ndarray | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    revision: int = 0
    last_used: float = field(default_factory=time.monotonic)

    def show(self, volume: Volume, study_id: str, truth: str | None, caveats: list[str]) -> None:
        """Put a study in the place of the last one; its voxels live on disk, not in memory."""
        self.clear()
        stored = self._store("volume", volume.array)
        self.volume = Volume(stored, volume.affine, volume.spacing, volume.provenance)
        self.study_id, self.truth, self.caveats = study_id, truth, caveats

    def select(self, selected: tuple[int, int, int] | None, heat: np.ndarray | None = None) -> None:
        """Choose the sentence whose evidence is shown, or none."""
        self.selected = selected
        self.heat = None if heat is None else self._store("heat", heat)
        self.revision += 1

    def _store(self, name: str, array: np.ndarray) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        path.unlink(missing_ok=True)  # who still reads the old one keeps it
        np.save(path, array)
        return np.load(path, mmap_mode="c")  # copy on write: torch warns of arrays that it may not write to

    def clear(self) -> None:
        """Forget the study, its conversation and its files."""
        self.volume, self.study_id, self.truth, self.selected, self.heat = None, "", None, None, None
        self.turns, self.caveats = [], []
        self.revision += 1
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)


class Sessions:
    """All visitors of one process. Safe to use from several threads.

    Args:
        most (`int`): Visitors kept; the longest idle goes first.
        idle_s (`float`): Seconds without a request after which a visitor is forgotten.
    """

    def __init__(self, most: int, idle_s: float):
        remove_abandoned()
        self.root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}_"))
        self.uploads = self.root / "uploads"
        self.uploads.mkdir()
        self._most, self._idle_s = most, idle_s
        self._of_visitor: dict[str, Session] = {}
        self._lock = threading.Lock()

    def of(self, visitor: str) -> Session:
        """Return the session of a visitor, a new one at the first request."""
        self.sweep()
        with self._lock:
            session = self._of_visitor.get(visitor)
            if session is None:
                session = Session(secrets.token_urlsafe(24), self.root / secrets.token_hex(8))
                session.folder.mkdir()
                self._of_visitor[visitor] = session
            session.last_used = time.monotonic()
            by_age = sorted(self._of_visitor, key=lambda name: self._of_visitor[name].last_used)
            leaving = [self._of_visitor.pop(name) for name in by_age[: -self._most]]
        _delete(leaving)
        return session

    def blank(self) -> Session:
        """Return a session without a visitor, for the page as it first appears; its key opens nothing."""
        return Session("", self.root)

    def by_key(self, key: str) -> Session | None:
        """Return the session whose addresses carry `key`."""
        with self._lock:
            for session in self._of_visitor.values():
                if secrets.compare_digest(session.key, key):
                    session.last_used = time.monotonic()
                    return session
        return None

    @contextmanager
    def passing(self) -> Iterator[Session]:
        """Give a session to one API request; it is gone when the request is answered, or fails."""
        visitor = f"request {secrets.token_hex(8)}"
        try:
            yield self.of(visitor)
        finally:
            self.leave(visitor)

    def leave(self, visitor: str) -> None:
        """Forget a visitor."""
        with self._lock:
            session = self._of_visitor.pop(visitor, None)
        _delete([session] if session else [])

    def sweep(self) -> None:
        """Forget visitors who stayed away, and uploads nobody came back for."""
        now = time.monotonic()
        with self._lock:
            idle = [
                visitor
                for visitor, session in self._of_visitor.items()
                if now - session.last_used > self._idle_s
            ]
            leaving = [self._of_visitor.pop(visitor) for visitor in idle]
        _delete(leaving)
        for upload in self.uploads.iterdir():
            try:
                age = time.time() - max(path.stat().st_mtime for path in (upload, *upload.rglob("*")))
            except FileNotFoundError:  # just read, by another request
                continue
            if age > self._idle_s:
                shutil.rmtree(upload, ignore_errors=True)

    def close(self) -> None:
        """Forget everyone and remove the folder."""
        with self._lock:
            self._of_visitor.clear()
        shutil.rmtree(self.root, ignore_errors=True)


def remove_abandoned() -> None:
    """Remove what a demo that was killed left behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).split("_")[0]
        if pid.isdigit() and folder.stat().st_uid == os.getuid() and not _is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _delete(sessions: list[Session]) -> None:
    for session in sessions:
        session.volume = None
        shutil.rmtree(session.folder, ignore_errors=True)
    if sessions:
        return_memory()
