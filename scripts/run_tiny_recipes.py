"""Run every `-tiny` recipe once and write the tables of docs/recipes.md: steps, seconds, loss before and after.

    python scripts/run_tiny_recipes.py --work DIR --openi FOLDER_OR_TGZ --page docs/recipes.md

Reads: OpenI's archive; everything else is computed (PhantomCT, the embedded checkpoint).
Writes: `DIR/runs/<recipe>`, `DIR/tiny_recipes.json`, and the tables between the marks of the page. A recipe whose run
is in the JSON is not run again; `--only NAME` runs one.
"""

import argparse
import json
import math
import os
import time
import traceback
from pathlib import Path
from typing import Any

from hf_mu2.data.phantom import FIRST_SEED, write_benchmark, write_phantoms
from hf_mu2.data.phantom.benchmark import RESOLUTIONS
from hf_mu2.files import replace_text
from hf_mu2.training.recipe import RECIPES, train_recipe
from hf_mu2.training.record import describe_hardware

MARKS = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in ("recipes", "tiny recipes")}


def tiny_recipes() -> list[str]:
    """List the twins; by name, stage 2 comes after the stage 1 it starts from."""
    return sorted(path.stem for path in RECIPES.glob("*-tiny.yaml"))


def run(name: str) -> dict[str, Any]:
    """Train a recipe in the current folder, with an evaluation before the first step."""
    started = time.perf_counter()
    try:
        folder = train_recipe(name, ["--eval_on_start", "true"])
    except Exception as error:  # the table says which recipe fails, and how
        traceback.print_exc()
        return {"recipe": name, "error": f"{type(error).__name__}: {error}"}
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    return {
        "recipe": name,
        "steps": state["global_step"],
        "seconds": round(time.perf_counter() - started, 1),
        "loss_before": losses[0],
        "loss_after": losses[-1],
    }


def render(record: dict[str, Any]) -> str:
    """Write the table."""
    where = f"{record['hardware']}, shared with other work, {record['threads']} thread(s)"
    lines = [
        f"`{record['command']}`: {where}.",
        "Loss is that of the evaluation split, before the first and after the last step.",
        "",
        "| recipe | steps | seconds | loss before | loss after |",
        "|---|---|---|---|---|",
    ]
    for row in record["runs"]:
        if "error" in row:
            lines.append(f"| `{row['recipe']}` | failed: {row['error'][:80]} | | | |")
            continue
        losses = [
            f"{row[key]:.4f}" if math.isfinite(row[key]) else "none" for key in ("loss_before", "loss_after")
        ]
        lines.append(f"| `{row['recipe']}` | {row['steps']} | {row['seconds']:.0f} | {' | '.join(losses)} |")
    return "\n".join(lines)


def render_recipes() -> str:
    """List the recipes with the first line of each file."""
    lines = ["| recipe | what |", "|---|---|"]
    for path in sorted(RECIPES.glob("*.yaml")):
        if not path.stem.endswith("-tiny"):
            about = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
            lines.append(f"| `{path.stem}` | {about} |")
    return "\n".join(lines)


def write_page(page: Path, tables: dict[str, str]) -> None:
    """Put each table between its marks."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = MARKS[name]
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table}\n{end}{after}"
    replace_text(page, text)


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--openi", type=Path, help="folder with NLMCXR_reports.tgz, or the file")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    page = arguments.page and arguments.page.resolve()
    openi = arguments.openi and arguments.openi.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.work)
    write_benchmark("phantoms", "tiny", resolution="coarse")
    for split, count in (("train", 24), ("validation", 8)):  # for the recipes of DPO
        write_phantoms(
            "phantom_pairs",
            count,
            FIRST_SEED[split],
            split=split,
            spacing=RESOLUTIONS["coarse"],
            view="preference",
        )
    if openi and not Path("OpenI").is_symlink():
        Path("OpenI").symlink_to(openi)
    results = Path("tiny_recipes.json")
    runs = {}
    if results.exists():
        runs = {row["recipe"]: row for row in json.loads(results.read_text())["runs"] if "error" not in row}
    wanted = arguments.only or tiny_recipes()
    for name in wanted:
        if name not in runs:
            runs[name] = run(name)
            record = {
                "command": "python scripts/run_tiny_recipes.py --work DIR --openi NLMCXR_reports.tgz",
                "hardware": describe_hardware(),
                "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
                "runs": [runs[key] for key in sorted(runs)],
            }
            replace_text(results, json.dumps(record, indent=2) + "\n")
            print(json.dumps(runs[name]), flush=True)
    if page:
        record = json.loads(results.read_text(encoding="utf-8"))
        write_page(page, {"recipes": render_recipes(), "tiny recipes": render(record)})


if __name__ == "__main__":
    main()
