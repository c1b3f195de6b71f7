"""The command that says what negatives a training would see: negatives."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, app, brief, print_json


class Policy(StrEnum):
    """Whose volume may stand in for whose."""

    PAPER = "paper"
    BALANCED = "balanced"
    HARD = "hard"
    PAIRS = "pairs"


@app.command()
def negatives(
    source: Annotated[
        str,
        typer.Argument(help="ct_rate (its label tables are enough), another corpus, or a dataset folder."),
    ],
    root: Annotated[Path | None, typer.Option(help="Folder of the corpus.")] = None,
    split: Annotated[
        str, typer.Option(help="Split to draw in; all_train of ct_rate is the official one.")
    ] = "train",
    policy: Annotated[Policy, typer.Option(help="See docs/negative.md.")] = Policy.BALANCED,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and epoch draw the same.")] = 0,
    epoch: Annotated[int, typer.Option(min=0, help="Epoch of the draw, from 0.")] = 0,
    min_distance: Annotated[int, typer.Option(min=1, help="Labels that differ (paper, balanced).")] = 10,
    max_uses: Annotated[int, typer.Option(min=1, help="How often a volume may stand in (balanced).")] = 1,
    embeddings: Annotated[Path | None, typer.Option(help="Output of `hf-mu2 embed` (hard).")] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL to write, one line per study.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw negatives and describe them.

    Distances, relaxations, positive labels per negative and the effective pool of volumes.
    """
    from hf_mu2.data.negatives import describe_draw, draw_negatives, write_draw
    from hf_mu2.data.negatives_pool import ct_rate_candidates, study_candidates

    if source == "ct_rate":
        if root is None:
            raise ValueError("CT-RATE needs --root, the folder that holds `dataset`, got none. Name it.")
        candidates = ct_rate_candidates(root, split, embeddings=embeddings)
    else:
        from hf_mu2.data.build import CORPORA, load_corpus
        from hf_mu2.data.work_list import undecoded

        if source in CORPORA:
            studies = load_corpus(source, root or ".", split)
        else:
            from datasets import load_dataset

            studies = load_dataset(source, split=split)
        rows = undecoded(studies) if "images" in studies.column_names else studies
        candidates = study_candidates(rows, embeddings=embeddings)
    began = time.process_time()
    draw = draw_negatives(
        candidates, policy.value, seed=seed, epoch=epoch, min_distance=min_distance, max_uses=max_uses
    )
    facts = describe_draw(candidates, draw) | {"cpu_seconds": round(time.process_time() - began, 1)}
    if out is not None:
        settings = {"source": source, "split": split, "seed": seed, "epoch": epoch}
        write_draw(
            out, candidates, draw, settings | {"min_distance": min_distance, "max_uses": max_uses} | facts
        )
    if as_json:
        print_json(facts)
    else:
        for name, value in facts.items():
            told = (
                ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else brief(value)
            )
            typer.echo(f"{name:<24}{told}")
