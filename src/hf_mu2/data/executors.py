"""Run numbered tasks through datatrove: in local processes, on Slurm or on Ray.

Tasks are callables `(data, rank, world_size)` that hold only what pickles. Which ranks still have work is told from
the output, not from datatrove's own marks, so that a deleted file is made again.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from datatrove.executor.base import PipelineExecutor

Task = Callable[[Any, int, int], None]

# What a cluster needs unless the caller says otherwise; memory holds a 512 x 512 x 1,000 volume and its grid.
RECIPES: dict[str, dict[str, Any]] = {
    "local": {},
    "slurm": {"time": "08:00:00", "cpus_per_task": 2, "mem_per_cpu_gb": 8, "tasks_per_job": 4, "qos": None},
    "ray": {"cpus_per_task": 2, "mem_per_cpu_gb": 8, "tasks_per_job": 4},
}


def run_tasks(
    task: Task,
    num_tasks: int,
    logs: Path,
    *,
    is_done: Callable[[int], bool],
    finish: Task,
    executor: str = "local",
    workers: int = 1,
    options: Mapping[str, Any] | None = None,
    progress: str = "",
) -> bool:
    """Run the tasks that are not done, then `finish` once.

    Args:
        task (`Callable`): Called with every rank from 0 to `num_tasks - 1`, each in one process at a time.
        num_tasks (`int`): How many ranks there are.
        logs (`Path`): Folder for datatrove's logs; on a cluster every machine must see it.
        is_done (`Callable`): Tells of a rank whether its output is there.
        finish (`Callable`): Called as a task of its own when all others are done.
        executor (`str`): `"local"`, `"slurm"` or `"ray"`.
        workers (`int`): Tasks at a time.
        options (`Mapping`, *optional*): Arguments of datatrove's executor on top of those of `RECIPES`.
        progress (`str`): What to call a task on the progress bar.

    Returns:
        `bool`: whether the work is finished; on Slurm it is only submitted.

    Raises:
        ImportError: if datatrove is missing.
    """
    pending = [rank for rank in range(num_tasks) if not is_done(rank)]
    if pending:
        _mark_done(logs, set(range(num_tasks)) - set(pending))
        main = make_executor([task], num_tasks, logs, executor, workers, options)
        if executor == "slurm":
            # Slurm starts the last job when the array has ended; running it submits both.
            last = make_executor(
                [finish], 1, logs / "finish", executor, 1, {**(options or {}), "depends": main}
            )
            last.run()
            return False
        with _progress(is_done, pending, num_tasks, progress), _shared_cores(workers):
            main.run()
    finish(None, 0, 1)
    return True


def make_executor(
    pipeline: Sequence[Task],
    num_tasks: int,
    logs: Path,
    executor: str,
    workers: int,
    options: Mapping[str, Any] | None = None,
) -> PipelineExecutor:
    """Build a datatrove executor from a recipe and the caller's options.

    Raises:
        ValueError: if the executor is unknown, or an option is none of its arguments.
        ImportError: if datatrove is missing.
    """
    if executor not in RECIPES:
        raise ValueError(f"`executor` is one of {', '.join(RECIPES)}, got {executor!r}. Choose one of them.")
    try:
        from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor

        from .local_executor import QuietLocalExecutor
    except ImportError as error:
        raise ImportError(
            'Work on many volumes runs through datatrove: pip install "hf_mu2[scale]".'
        ) from error

    kinds = {"local": QuietLocalExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}
    arguments = RECIPES[executor] | dict(options or {})
    if executor == "slurm" and "partition" not in arguments:
        raise ValueError("Slurm needs the name of a partition, got none. Add `--set partition=NAME`.")
    try:
        return kinds[executor](
            pipeline=list(pipeline), tasks=num_tasks, workers=workers, logging_dir=str(logs), **arguments
        )
    except TypeError as error:
        raise ValueError(
            f"Options of the executor `{executor}` are arguments of datatrove's class, got {sorted(arguments)}: "
            f"{error}. See docs/prepare.md."
        ) from error


def parse_options(settings: Sequence[str]) -> dict[str, Any]:
    """Read `name=value` pairs: numbers, true, false and null as JSON writes them, anything else as text."""
    options: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ValueError(
                f"An executor option is written name=value, got {setting!r}. E.g. `--set time=04:00:00`."
            )
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def _mark_done(logs: Path, done: set[int]) -> None:
    """Make datatrove's completion marks say what the output says."""
    marks = logs / "completions"
    marks.mkdir(parents=True, exist_ok=True)
    for mark in marks.iterdir():
        if not mark.name.isdigit() or int(mark.name) not in done:
            mark.unlink()
    for rank in done:
        (marks / f"{rank:05d}").touch()


@contextmanager
def _shared_cores(workers: int) -> Iterator[None]:
    """Let workers that start now share the cores, unless the caller has set how many threads there are."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    unset = [name for name in names if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, str(max(1, (os.cpu_count() or 1) // workers))))
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]


@contextmanager
def _progress(is_done: Callable[[int], bool], pending: list[int], total: int, name: str) -> Iterator[None]:
    """Show on a terminal how many tasks are done, as told from the output."""
    if not sys.stderr.isatty():
        yield
        return
    stop = threading.Event()

    def watch(left: set[int]) -> None:
        with tqdm(total=total, initial=total - len(left), unit=name) as bar:
            while not stop.wait(1.0):
                done = {rank for rank in left if is_done(rank)}
                left -= done
                bar.update(len(done))
            bar.update(sum(is_done(rank) for rank in left))

    thread = threading.Thread(target=watch, args=(set(pending),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
