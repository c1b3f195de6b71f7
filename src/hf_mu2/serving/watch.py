"""Watch a folder: every volume that arrives in it becomes a report.

Reads: NIfTI files, zips and DICOM folders of a folder, each once it has stopped growing.
Writes: per volume a folder with report.txt, montage.png, run.json and further formats, or `refused.txt`.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from watchfiles import watch

from hf_mu2.files import replace_file
from hf_mu2.reporting.formats import check_formats, write_formats
from hf_mu2.reporting.inference import Reader
from hf_mu2.reporting.report import VOLUME_SUFFIXES, Request, name_of, report_volume, write_report

REFUSED = "refused.txt"
DONE = "done.txt"  # holds the state of the volume that was read: a changed one is read again


@dataclass(frozen=True)
class Arrival:
    """What came of a volume: the folder of its report, or why there is none."""

    volume: Path
    folder: Path
    refusal: str | None


def watch_folder(
    inbox: str | Path,
    out: str | Path,
    reader: Reader,
    *,
    request: Request | None = None,
    formats: tuple[str, ...] = (),
    allow_demo: bool = False,
    settle_s: float = 5.0,
    stop: threading.Event | None = None,
    once: bool = False,
    told: Callable[[Arrival], None] = lambda arrival: None,
) -> None:
    """Write a report for every volume in a folder and for those that arrive, until stopped.

    A volume is read once nothing of it has changed for `settle_s` seconds. What was done before is not done again; a
    killed watch goes on where it was.

    Args:
        formats (`tuple[str, ...]`): As in `write_formats`.
        once (`bool`): Return when nothing is left to do, instead of waiting.
        told: Called with what came of each volume.

    Raises:
        ValueError: if `inbox` is no folder, or `out` lies in it.
    """
    inbox, out = Path(inbox), Path(out)
    check_formats(formats)
    if not inbox.is_dir():
        raise ValueError(f"A folder must be watched, `{inbox}` is none. Make it first.")
    if out.resolve() == inbox.resolve() or out.resolve().is_relative_to(inbox.resolve()):
        raise ValueError(
            f"Reports must lie outside the folder that is watched, got `{out}`. Name another folder."
        )
    request = Request() if request is None else request
    stop = threading.Event() if stop is None else stop
    seen: dict[Path, tuple[str, float]] = {}
    # Wakes at every change, and once a second while something is settling.
    changes = watch(inbox, stop_event=stop, rust_timeout=1000, yield_on_timeout=True, debounce=200)
    while not stop.is_set():
        waiting = False
        for path in find_arrivals(inbox):
            state = state_of(path)
            if state is None:
                continue
            known, since = seen.get(path, ("", 0.0))
            if known != state:
                seen[path] = (state, time.monotonic())
                known, since = seen[path]
            folder = out / name_of(path)
            if _is_done(folder, state):
                continue
            if time.monotonic() - since < settle_s:
                waiting = True
                continue
            told(_report(path, folder, state, reader, request, formats, allow_demo))
        if once and not waiting:
            return
        next(changes, None)


def find_arrivals(inbox: Path) -> Iterator[Path]:
    """Yield what may be a volume: files by their ending, folders as DICOM series; hidden names are being written."""
    for path in sorted(inbox.iterdir()):
        if not path.name.startswith(".") and (path.is_dir() or path.name.endswith(VOLUME_SUFFIXES)):
            yield path


def state_of(path: Path) -> str | None:
    """Hash names, sizes and times of a file or of all files of a folder; `None` where there are none (any more)."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            facts = file.stat()
            digest.update(f"{file.relative_to(path.parent)}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    except FileNotFoundError:
        return None
    return digest.hexdigest() if files else None


def _is_done(folder: Path, state: str) -> bool:
    marker = folder / DONE
    return marker.is_file() and marker.read_text(encoding="utf-8").strip() == state


def _report(
    path: Path,
    folder: Path,
    state: str,
    reader: Reader,
    request: Request,
    formats: tuple[str, ...],
    allow_demo: bool,
) -> Arrival:
    refusal = None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        report = report_volume(path, reader, request)
        write_report(report, folder)
        write_formats(report, formats, folder, path, series=request.series, allow_demo=allow_demo)
        (folder / REFUSED).unlink(missing_ok=True)
    except ValueError as error:
        refusal = str(error)
        replace_file(folder / REFUSED, refusal + "\n")
    replace_file(folder / DONE, state + "\n")
    return Arrival(path, folder, refusal)
