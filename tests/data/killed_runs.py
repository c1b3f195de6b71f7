"""Runs that are killed with SIGKILL at random moments, and the undisturbed one they must equal in the end."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_mu2.files import PARTIAL

# Forked runs have everything imported, so that the kills meet the work. Their workers are started anew.
PROCESSES = multiprocessing.get_context("fork")
Run = Callable[[list[dict[str, Any]], Path, int], None]


class KilledRuns:
    """One folder of work, killed and begun again.

    Args:
        run (`Callable`): Does the work; called with rows, folder and number of workers.
        unfinished (`str`): Pattern of the files that tell that something is being written.
    """

    def __init__(
        self, run: Run, rows: list[dict[str, Any]], out: Path, workers: int, unfinished: str = f"{PARTIAL}*"
    ):
        self.run, self.rows, self.out, self.workers, self.unfinished = run, rows, out, workers, unfinished
        self.undisturbed = out.with_name("undisturbed")
        self.rng = random.Random(0)
        started = time.monotonic()
        self.finish().rename(self.undisturbed)
        self.seconds = time.monotonic() - started

    def kill(self, times: int) -> int:
        """Kill this many runs, every other one just when something is being written; count those that were writing."""
        kills = writing = 0
        while kills < times:
            process = self._start()
            if kills % 2:
                while process.is_alive() and not self._is_writing():
                    time.sleep(0.0005)
                time.sleep(self.rng.choice([0.0, self.rng.uniform(0, 0.02)]))
            else:
                time.sleep(self.rng.uniform(0, self.seconds))
            is_alive = is_writing = False
            with suppress(ProcessLookupError):  # it ended first
                os.killpg(process.pid, signal.SIGSTOP)
                is_alive, is_writing = process.is_alive(), self._is_writing()
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
            if is_alive and process.exitcode == -signal.SIGKILL:
                kills += 1
                writing += is_writing
            else:
                shutil.rmtree(self.out)
        return writing

    def finish(self) -> Path:
        """Let one run end."""
        process = self._start()
        process.join()
        assert process.exitcode == 0
        return self.out

    def _start(self) -> Any:
        ready = PROCESSES.Event()
        process = PROCESSES.Process(target=self._work, args=(ready,))
        process.start()
        ready.wait()
        return process

    def _work(self, ready: Any) -> None:
        os.setsid()  # its workers are killed with it
        ready.set()
        self.run(self.rows, self.out, self.workers)

    def _is_writing(self) -> bool:
        return self.out.exists() and any(self.out.rglob(self.unfinished))
