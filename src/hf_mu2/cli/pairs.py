"""The command `pairs`: scored candidates to preference pairs."""

import sys
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, BatchSize, MaxNewTokens, app, complain, print_result


class Policy(StrEnum):
    """Which candidates of a study are paired."""

    BEST_WORST = "best-worst"
    BEST_RANDOM = "best-random"
    ALL = "all"


@app.command()
def pairs(
    scored: Annotated[Path, typer.Argument(help="Rows of `hf-mu2 score`, JSONL or Parquet.")],
    out: Annotated[Path, typer.Option(help="Folder to write, for load_dataset and TRL.")],
    policy: Annotated[
        Policy, typer.Option(help="Which candidates are paired; all: every two with the margin.")
    ] = Policy.BEST_WORST,
    min_margin: Annotated[float, typer.Option(min=0, help="Least difference of scores.")] = 0.15,
    chosen_above: Annotated[float, typer.Option(help="The chosen one scores more than this.")] = 0.0,
    max_pairs: Annotated[int, typer.Option(min=1, help="At most so many per study, of --policy all.")] = 4,
    min_length_ratio: Annotated[
        float, typer.Option(min=0, help="Shortest candidate, in words per reference word.")
    ] = 0.4,
    max_length_ratio: Annotated[
        float, typer.Option(min=0, help="Longest candidate, in words per reference word.")
    ] = 2.5,
    max_repetition: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of 4-grams that were said before.")
    ] = 0.25,
    validation_share: Annotated[float, typer.Option(min=0, help="Share of the patients to hold out.")] = 0.1,
    noise: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint that wrote the candidates: also reject what it reports of noise.",
            show_default="no such pairs",
        ),
    ] = None,
    other_patient: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Also reject reports of patients who differ in so many labels.",
            show_default="no such pairs",
        ),
    ] = None,
    batch_size: BatchSize = 4,
    max_new_tokens: MaxNewTokens = 512,
    seed: Annotated[int, typer.Option(help="Decides draws and the split.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Turn scored candidates into preference pairs.

    With a report on length bias, findings and margins in OUT/report.
    """
    from hf_mu2.files import check_new_folder
    from hf_mu2.preference.pairs import PairRules, make_pairs
    from hf_mu2.preference.pairs_filters import FilterRules

    filters = FilterRules(min_length_ratio, max_length_ratio, max_repetition)
    rules = PairRules(policy.value, min_margin, chosen_above, max_pairs, filters, seed)
    check_new_folder(out)
    noise_reports = None
    if noise is not None:
        from hf_mu2.preference.pairs_sources import write_noise_reports
        from hf_mu2.reporting.inference import load_reader

        noise_reports = out.with_name(f"{out.name}.noise.jsonl")
        if not noise_reports.exists():
            write_noise_reports(
                scored,
                noise_reports,
                load_reader(noise),
                seed=seed,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                show_progress=sys.stderr.isatty(),
            )
    has_matplotlib = find_spec("matplotlib") is not None
    if not has_matplotlib:
        complain('No figure: it needs matplotlib, pip install "hf_mu2[report]".')
    made = make_pairs(
        scored,
        out,
        rules,
        validation_share=validation_share,
        noise=noise_reports,
        other_patient_differences=other_patient,
        with_figure=has_matplotlib,
    )
    complain(made.account.sentence())
    counted = ", ".join(f"{count:,} {split}" for split, count in made.num_pairs.items())
    facts = {"out": str(made.folder), "num_pairs": made.num_pairs, **made.summary}
    print_result(facts, f"{counted} pairs: {made.folder}", as_json)
