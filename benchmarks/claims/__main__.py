"""Run rows of the grid, or all of them, and write what they say.

    python -m benchmarks.claims --out claims --rows everything

Without `--rows` it reproduces the first row and says what the whole grid costs. A killed grid continues. On a machine
with a GPU the protocol `large` is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hf_mu2.files import replace_text

from .collect import collect
from .example import make_example, rows_to_show
from .figures import draw_example, draw_strip
from .ground import Ground
from .names import CORPUS_TITLES, reports_of
from .page import write_page
from .rows import LARGE, ROWS, SEEDS, TINY
from .run import is_done, order_of_runs, ready_runs, run_one, start_worker

ROOT = Path(__file__).resolve().parents[2]
FIRST_ROW = "all"
SHOWN = ("macro_f1", "coverage", "crg", "rougeL", "changed_finding", "image_dependence")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("claims"), help="folder of the grid")
    parser.add_argument(
        "--rows", nargs="+", default=[FIRST_ROW], help="names, letters of claims, or everything"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), choices=SEEDS)
    parser.add_argument("--jobs", type=int, default=None, help="runs at once; one per core, or one on a GPU")
    parser.add_argument("--docs", type=Path, default=None, help="also write the page and its figures there")
    options = parser.parse_args()
    names = choose_rows(options.rows)
    on_gpu = torch.cuda.is_available()
    jobs = options.jobs or (1 if on_gpu else os.cpu_count() or 1)
    out = options.out.absolute()
    ground = Ground(out, LARGE if on_gpu else TINY, read_commit())
    runs = order_of_runs(names, tuple(options.seeds))
    todo = [run for run in runs if not is_done(ground, *run)]
    print(
        f"{len(runs)} runs of {len(names)} rows, {len(todo)} to do, {jobs} at once, protocol {ground.protocol.name}"
    )
    began, failed = time.perf_counter(), []
    if todo:
        corpora = {ROWS[name].corpus for name, _ in todo}
        # What rows start from was trained on the ordinary studies.
        ground.prepare(corpora | {"ordinary"}, jobs)
        print(f"Studies and features: {time.perf_counter() - began:.0f} s", flush=True)
        failed = run_all(ground, todo, jobs)
    result = collect(ground)
    replace_text(out / "claims.json", json.dumps(result, indent=1) + "\n")
    committed = read_committed(result["protocol"])
    show(result, [name for name in names if not ROWS[name].is_choice], committed)
    if options.docs is not None:
        result["example"] = make_example(ground, rows_to_show(result))
        publish(result, options.docs)
    print(cost(result, committed, jobs))
    if failed:
        raise SystemExit(
            f"{len(failed)} of {len(todo)} runs failed: {', '.join(failed)}. Read `log.txt` in their folders under "
            f"{out / 'runs'}, then give the same command again."
        )


def choose_rows(asked: list[str]) -> list[str]:
    """Turn names, letters of claims and `everything` into names of rows, in the order they were asked for."""
    letters = {row.claim for row in ROWS.values()}
    unknown = sorted(set(asked) - set(ROWS) - letters - {"everything"})
    if unknown:
        raise SystemExit(
            f"Rows are {', '.join(ROWS)}; or the letters {', '.join(sorted(letters))} of claims; or `everything`, got "
            f"{', '.join(unknown)}."
        )
    chosen = [name for each in asked for name, row in ROWS.items() if each in ("everything", name, row.claim)]
    return list(dict.fromkeys(chosen))


def run_all(ground: Ground, todo: list[tuple[str, int]], jobs: int) -> list[str]:
    """Run each as soon as what it starts from is there; return which failed. Each process does one after the other."""
    threads = 1 if jobs > 1 else max(1, (os.cpu_count() or 1))
    waiting, running = list(todo), dict[Future[float], tuple[str, int]]()
    failed = []
    with (
        ProcessPoolExecutor(jobs, get_context("spawn"), start_worker, (threads,)) as pool,
        tqdm(total=len(todo), unit=" runs", disable=None) as bar,
    ):
        while waiting or running:
            for run in ready_runs(waiting, running.values())[: jobs - len(running)]:
                running[pool.submit(run_one, ground, *run)] = run
                waiting.remove(run)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, seed = running.pop(future)
                if error := future.exception():
                    failed.append(f"{name}, seed {seed}")
                    tqdm.write(f"{failed[-1]}: {error}")
                else:
                    tqdm.write(f"{name}, seed {seed}: {future.result():.0f} s")
                bar.update()
    return failed


def read_commit() -> str:
    """Name the commit the runner comes from, with a mark where files differ from it."""
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True,
                               text=True, check=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def show(result: dict[str, Any], names: list[str], committed: dict[str, Any] | None) -> None:
    """Print the rows that were asked for, below each what the committed page says of it, and the floors."""
    print(f"{'':32}" + "".join(f"{name:>18}" for name in SHOWN))
    for name in names:
        print(_line(name, result["rows"][name]))
        there = committed["rows"].get(name) if committed else None
        if there and there["seeds"]:
            print(_line("  as committed", there))
    for corpus in dict.fromkeys(reports_of(result["rows"][name]["corpus"]) for name in names):
        print(CORPUS_TITLES[corpus])
        for name, floor in result["floors"].get(corpus, {}).items():
            cells = [floor.get(measure) for measure in SHOWN]
            print(
                f"  {name:30}"
                + "".join(f"{'-' if cell is None else format(cell['value'], '.3f'):>18}" for cell in cells)
            )


def _line(name: str, row: dict[str, Any]) -> str:
    return f"{name:32}" + "".join(f"{_cell(row['measures'].get(measure)):>18}" for measure in SHOWN)


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    return f"{cell['mean']:.3f}" + ("" if cell["spread"] is None else f" +- {cell['spread']:.3f}")


def read_committed(protocol: dict[str, Any]) -> dict[str, Any] | None:
    """Read the results that the page was written from, if they are of this protocol."""
    path = ROOT / "docs" / "results" / "claims.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["protocol"] == json.loads(json.dumps(protocol)) else None


def cost(result: dict[str, Any], committed: dict[str, Any] | None, jobs: int) -> str:
    """Say what the whole grid costs: seconds per run taken here, and those of the committed page for the others."""
    seconds = {name: row["seconds"] for name, row in result["rows"].items() if row["seconds"]}
    if committed is not None:
        there = {name: row["seconds"] for name, row in committed["rows"].items() if row["seconds"]}
        both = [name for name in seconds if name in there]
        pace = sum(seconds[name] for name in both) / sum(there[name] for name in both) if both else 1.0
        seconds = {name: value * pace for name, value in there.items()} | seconds
    usual = sum(seconds.values()) / max(len(seconds), 1)
    runs = sum(len(row.seeds) for row in ROWS.values())
    minutes = sum(seconds.get(name, usual) * len(row.seeds) for name, row in ROWS.items()) / 60 / jobs
    return (
        f"The whole grid: {runs} runs, about {minutes:.0f} minutes like this (make claims ROWS=everything)."
    )


def publish(result: dict[str, Any], docs: Path) -> None:
    """Write the page, its figures and the file they are rendered from."""
    results, figures = docs / "results", docs / "figures"
    replace_text(results / "claims.json", json.dumps(result, indent=1) + "\n")
    draw_strip(result, figures / "claims_strip.png")
    draw_example(result, figures / "claims_example.png")
    write_page(result, results / "claims.md")


if __name__ == "__main__":
    main()
