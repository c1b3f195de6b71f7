"""Does the evidence lie where the lesion is? Maps of the demo checkpoint on phantoms, whose lesions are known.

    python benchmarks/evidence.py --work WORK_DIR [--phantoms 100 --draws 9 --out docs/results/evidence_phantom]

Two answers per phantom are explained, the sentences alone that state a finding which is there:

- the checkpoint's own report: what a user sees when it is right (it names the finding; side and size may be wrong);
- the true report, forced: every finding, whether the checkpoint knows it or not.

A map scores by its mass inside the lesion (voxels of the volume's own grid, positive heat over the whole volume) and by
the pointing game (does its top block hold a voxel of the lesion?). Random: even heat over the body, a random block of
the body. Intervals: 1,000 bootstraps over phantoms. Resumable; several processes take `--part i/n` each.

Reads: nothing; phantoms are computed from seeds of the test split, which no training uses.
Writes: rows in WORK_DIR; the tables at `--out`.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hf_mu2.data.phantom import FIRST_SEED, Phantom, make_phantom
from hf_mu2.explain.blocks import BlockGrid
from hf_mu2.explain.evidence import as_blocks, explain_forced, path_maps, trace_forced
from hf_mu2.explain.faithfulness import INSIDE
from hf_mu2.explain.forced import ForcedAnswer, force_answer
from hf_mu2.files import replace_file
from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.reporting.inference import Reader, load_reader
from hf_mu2.scoring.labels import find_labels, label_report
from hf_mu2.scoring.resampling import bootstrap, interval

METHODS = ("evidence", "value path", "attention", "question", "random")


def stating(forced: ForcedAnswer, phantom: Phantom) -> tuple[ForcedAnswer | None, list[list[str]]]:
    """Keep the sentences that state findings of the phantom, and say which."""
    present = {finding.label for finding in phantom.findings if phantom.mask(finding.label).any()}
    found = [e for e in find_labels(forced.answer) if e.status == "positive" and e.label in present]
    labels = [sorted({e.label for e in found if start <= e.span[0] < end}) for start, end in forced.sentences]
    keep = [index for index, names in enumerate(labels) if names]
    if not keep:
        return None, []
    spans = tuple(forced.sentences[index] for index in keep)
    return replace(forced, sentences=spans, sentence_tokens=forced.sentence_tokens[keep]), [
        labels[index] for index in keep
    ]


def attention_maps(forced: ForcedAnswer, grid: BlockGrid) -> np.ndarray:
    """Average attention plainly: the sentence's on each soft prompt over layers and heads, then down the value path."""
    path, _ = trace_forced(forced)
    layers = [layer[..., forced.is_image[0]].mean(dim=0) for layer in forced.answer_attention()]
    weights = forced.sentence_tokens @ torch.stack(layers).mean(dim=0)
    return as_blocks(path.patches(path.push(weights)), grid)


def score(
    heat: np.ndarray, inside: np.ndarray, everywhere: np.ndarray, share: np.ndarray
) -> dict[str, float]:
    positive = heat.clip(min=0)
    mass = float((positive * inside).sum() / max(float((positive * everywhere).sum()), 1e-12))
    return {"mass": mass, "hit": float(share.flat[positive.argmax()] > 0)}


def study_rows(reader: Reader, seed: int, num_draws: int) -> list[dict[str, Any]]:
    """Explain the own and the true report of one phantom."""
    phantom = make_phantom(seed)
    volume = reader.load_volume(phantom.nifti())
    own = force_answer(reader, volume, DEFAULT_QUESTION)
    named = label_report(own.answer)
    true = force_answer(reader, volume, DEFAULT_QUESTION, phantom.report.text)
    rows = []
    for source, forced in (("own", own), ("true", true)):
        kept, labels = stating(forced, phantom)
        if kept is None:
            continue
        explanation = explain_forced(kept, num_draws=num_draws if source == "own" else 0)
        grid = explanation.grid
        body = grid.body >= INSIDE
        everywhere = grid.gather(np.ones(volume.array.shape, bool))
        maps = {"evidence": np.stack([sentence.blocks for sentence in explanation.sentences])}
        maps |= {"value path": path_maps(kept, grid), "attention": attention_maps(kept, grid)}
        maps["question"] = np.broadcast_to(explanation.question_blocks.sum(axis=0), maps["evidence"].shape)
        for index, (names, sentence) in enumerate(zip(labels, explanation.sentences)):
            mask = np.logical_or.reduce([phantom.mask(name) for name in names])
            share = grid.share(mask)
            inside = grid.gather(mask)
            scores = {name: score(heat[index], inside, everywhere, share) for name, heat in maps.items()}
            scores["random"] = {"mass": float(share[body].mean()), "hit": float((share[body] > 0).mean())}
            check = sentence.faithfulness
            rows.append(
                {
                    "seed": seed,
                    "source": source,
                    "labels": names,
                    "is_named": all(named[name] == 1 for name in names),
                    "share": sentence.share,
                    "scores": scores,
                    "faithfulness": None if check is None else check.to_dict(),
                }
            )
    return rows


def measure(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> dict[str, float]:
    """Average over sentences, with the interval over phantoms."""
    columns = {"sums": np.array([[value(row), 1.0] for row in rows])}
    mean = columns["sums"][:, 0].mean()
    draws = bootstrap(
        columns,
        [str(row["seed"]) for row in rows],
        lambda sums: {"mean": sums["sums"][..., 0] / np.maximum(sums["sums"][..., 1], 1)},
        num_resamples=1000,
        seed=0,
    )
    low, high = interval(draws["mean"])
    return {"value": float(mean), "low": low, "high": high}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    own = [row for row in rows if row["source"] == "own"]
    true = [row for row in rows if row["source"] == "true"]
    groups = {
        "own report, findings it has right": own,
        "true report, findings the checkpoint names": [row for row in true if row["is_named"]],
        "true report, findings it misses": [row for row in true if not row["is_named"]],
        "true report, all": true,
    }
    tables = {
        name: {
            "sentences": len(group),
            "phantoms": len({row["seed"] for row in group}),
            "methods": {
                method: {
                    kind: measure(group, lambda row: row["scores"][method][kind])  # noqa: B023  called at once
                    for kind in ("mass", "hit")
                }
                for method in METHODS
            },
            "difference": {
                f"evidence - {method}": {
                    kind: measure(
                        group,
                        lambda row: row["scores"]["evidence"][kind] - row["scores"][method][kind],  # noqa: B023
                    )
                    for kind in ("mass", "hit")
                }
                for method in METHODS[1:]
            },
        }
        for name, group in groups.items()
        if group
    }
    single = [row for row in true if len(row["labels"]) == 1]
    findings = {}
    for label in sorted({row["labels"][0] for row in single}):
        group = [row for row in single if row["labels"] == [label]]
        findings[label] = {
            "sentences": len(group),
            "named": float(np.mean([row["is_named"] for row in group])),
            **{
                f"{kind} {method}": float(np.mean([row["scores"][method][kind] for row in group]))
                for kind in ("mass", "hit")
                for method in ("evidence", "attention", "random")
            },
            "mass - random": measure(
                group, lambda row: row["scores"]["evidence"]["mass"] - row["scores"]["random"]["mass"]
            ),
        }
    checks = [row for row in own if row["faithfulness"]]
    facts = {
        "top": lambda row: row["faithfulness"]["top_nats"],
        "random": lambda row: row["faithfulness"]["random_mean_nats"],
        "top - random": lambda row: row["faithfulness"]["top_nats"] - row["faithfulness"]["random_mean_nats"],
        "confirmed": lambda row: float(row["faithfulness"]["is_confirmed"]),
    }
    faithfulness = {
        name: {"sentences": len(group)} | {key: measure(group, fact) for key, fact in facts.items()}
        for name, group in (
            ("all", checks),
            ("confirmed maps alone", [row for row in checks if row["faithfulness"]["is_confirmed"]]),
        )
        if group
    }
    confirmed = {}
    for verdict in (True, False):
        group = [row for row in checks if row["faithfulness"]["is_confirmed"] is verdict]
        if group:
            confirmed["confirmed" if verdict else "not confirmed"] = {
                "sentences": len(group),
                "mass": measure(group, lambda row: row["scores"]["evidence"]["mass"]),
                "hit": measure(group, lambda row: row["scores"]["evidence"]["hit"]),
            }
    return {
        "groups": tables,
        "findings": findings,
        "faithfulness": faithfulness,
        "localisation by verdict": confirmed,
    }


def to_markdown(summary: dict[str, Any]) -> str:
    def cell(figure: dict[str, float]) -> str:
        return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"

    lines = [f"# Evidence on PhantomCT\n\n{summary['notice']}\n\n`{summary['command']}`"]
    for name, table in summary["groups"].items():
        lines.append(f"\n## {name}: {table['sentences']} sentences of {table['phantoms']} phantoms\n")
        lines.append("| map | mass inside | pointing game |\n|---|---|---|")
        for method, figures in (table["methods"] | table["difference"]).items():
            lines.append(f"| {method} | {cell(figures['mass'])} | {cell(figures['hit'])} |")
    lines.append("\n## By finding, true report\n")
    lines.append(
        "| finding | sentences | named | mass | attention | random | mass - random | pointing | attention | random |"
    )
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for label, row in summary["findings"].items():
        numbers = [
            row[f"{kind} {m}"] for kind in ("mass", "hit") for m in ("evidence", "attention", "random")
        ]
        mass, hit = numbers[:3], numbers[3:]
        shown = [f"{x:.4f}" for x in mass], [f"{x:.2f}" for x in hit]
        lines.append(
            f"| {label} | {row['sentences']} | {row['named']:.2f} | {' | '.join(shown[0])} | "
            f"{cell(row['mass - random'])} | {' | '.join(shown[1])} |"
        )
    lines.append("\n## Faithfulness, own report\n")
    lines.append("| sentences | nats lost, top blocks | nats lost, random blocks | difference | confirmed |")
    lines.append("|---|---|---|---|---|")
    for name, row in summary["faithfulness"].items():
        cells = " | ".join(cell(row[key]) for key in ("top", "random", "top - random", "confirmed"))
        lines.append(f"| {name}, {row['sentences']} | {cells} |")
    lines.append("\n| verdict | sentences | mass inside | pointing game |\n|---|---|---|---|")
    for name, row in summary["localisation by verdict"].items():
        lines.append(f"| {name} | {row['sentences']} | {cell(row['mass'])} | {cell(row['hit'])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--phantoms", type=int, default=100)
    parser.add_argument("--draws", type=int, default=9)
    parser.add_argument("--model", help="Checkpoint; by default the embedded one.")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md from all rows in WORK_DIR.")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    reader = load_reader(arguments.model)
    part, parts = map(int, arguments.part.split("/"))
    first = FIRST_SEED["test"] + 100  # the first hundred were looked at when the maps were chosen
    for seed in tqdm(range(first + part, first + arguments.phantoms, parts), disable=None):
        path = arguments.work / f"{reader.digest}_{arguments.draws}_{seed}.json"
        if not path.exists():
            replace_file(path, json.dumps(study_rows(reader, seed, arguments.draws)))
    if not arguments.out:
        return
    rows = [
        row
        for seed in range(first, first + arguments.phantoms)
        for row in json.loads((arguments.work / f"{reader.digest}_{arguments.draws}_{seed}.json").read_text())
    ]
    command = (
        f"python benchmarks/evidence.py --work WORK_DIR --phantoms {arguments.phantoms} "
        f"--draws {arguments.draws} --out OUT"
    )
    summary = {"notice": reader.notice, "command": command, "checkpoint": reader.name} | summarise(rows)
    markdown = to_markdown(summary)
    replace_file(arguments.out.with_suffix(".json"), json.dumps(summary, indent=1) + "\n")
    replace_file(arguments.out.with_suffix(".md"), markdown)
    print(markdown)


if __name__ == "__main__":
    main()
