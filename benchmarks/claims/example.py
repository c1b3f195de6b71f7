"""One patient with a finding on one side and on the other: what the lookup, the baseline and the best row write.

Reads: the checkpoints of two rows on the first seed.
Writes: `OUT/example.json`. Patient and finding are fixed here, before anything was trained.
"""

from __future__ import annotations

import json
from typing import Any

from hf_mu2.data.phantom import write_pairs
from hf_mu2.data.phantom.benchmark import RESOLUTIONS
from hf_mu2.data.phantom.folder import open_split
from hf_mu2.files import replace_text
from hf_mu2.reporting.inference import load_reader

from .ground import PAIR_SEED, Ground
from .rows import SEEDS
from .run import DEFAULT_NEW_TOKENS, answer, run_folder

SEED, LABEL = PAIR_SEED + 5_000, "Pleural effusion"


def make_example(ground: Ground, rows: list[str]) -> dict[str, Any]:
    """Let the lookup and these rows report both studies of the pair."""
    path = ground.out / "example.json"
    example: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"reports": {}}
    if list(example["reports"]) == ["lookup", *rows]:
        return example
    folder = ground.out / "studies" / "example"
    write_pairs(folder, 1, SEED, change="side", labels=[LABEL], spacing=RESOLUTIONS["coarse"])
    pair = open_split(folder, "test")
    reports = {"lookup": ground.look_up("ordinary", pair)}
    for name in rows:
        checkpoint = run_folder(ground, name, SEEDS[0]) / "model"
        reports[name] = answer(
            load_reader(checkpoint), ground.with_features(pair, "ordinary"), DEFAULT_NEW_TOKENS
        )
    example = {
        "study_ids": list(pair["study_id"]),
        "seed": SEED,
        "spacing": list(RESOLUTIONS["coarse"] or ()),
        "label": LABEL,
        "change": "side",
        "references": [completion[0]["content"] for completion in pair["completion"]],
        "reports": reports,
    }
    replace_text(path, json.dumps(example, indent=1) + "\n")
    return example


def rows_to_show(result: dict[str, Any]) -> list[str]:
    """Name the baseline and the row with the highest label macro-F1 on ordinary reports, of those that are done."""
    scores = {
        name: row["measures"]["macro_f1"]["mean"]
        for name, row in result["rows"].items()
        if row["corpus"] == "ordinary" and row["measures"]
    }
    best = sorted(scores, key=lambda name: -scores[name])[:1]
    return list(dict.fromkeys([*(["baseline"] if "baseline" in scores else []), *best]))
