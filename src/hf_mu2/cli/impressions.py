"""The command that derives impressions from findings: impressions."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .shared import AsJson, BatchSize, MaxNewTokens, Split, app, print_result


@app.command()
def impressions(
    source: Annotated[
        str,
        typer.Argument(
            help="A corpus such as openi, a folder of its impression view, or the JSONL that predict wrote."
        ),
    ],
    model: Annotated[str, typer.Option(help="Language model or adapter: folder or Hub id.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write; a killed run continues where it was.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the corpus.")] = None,
    split: Split = None,
    batch_size: BatchSize = 16,
    max_new_tokens: MaxNewTokens = 128,
    as_json: AsJson = False,
) -> None:
    """Derive impressions from findings.

    Text only, greedy and resumable. `hf-mu2 evaluate` scores the result.
    """
    from hf_mu2.reporting.impressions import load_writer, open_findings, write_impressions

    rows = open_findings(source, root, split)
    manifest = write_impressions(
        rows,
        out,
        load_writer(model),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        show_progress=sys.stderr.isatty(),
    )
    facts = {"out": str(out), **manifest}
    print_result(facts, f"{manifest['num_studies']} impressions: {out}", as_json)
