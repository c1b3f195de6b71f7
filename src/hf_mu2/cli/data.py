"""Commands about data: phantom, and inspect, build and overlap of `data`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .shared import AsJson, Split, app, print_result, refuse_failed

data_app = typer.Typer(
    name="data",
    help="Corpora: count, write, check, prepare.",
    no_args_is_help=True,
)
app.add_typer(data_app)


Corpus = Annotated[str, typer.Argument(help="ct_rate, amos_mm, openi, ... or folder, for one of your own.")]
Root = Annotated[Path, typer.Option(help="Folder of the archive, as its owners lay it out.")]
BuilderOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="Option of the corpus; repeat for several."),
]
BuilderOptionsA = Annotated[
    list[str] | None, typer.Option("--option-a", metavar="NAME=VALUE", help="Option of A.")
]
BuilderOptionsB = Annotated[
    list[str] | None, typer.Option("--option-b", metavar="NAME=VALUE", help="Option of B.")
]


class CorpusView(StrEnum):
    """What a corpus is written as: its studies, or rows for a trainer."""

    STUDY = "study"
    SFT = "sft"
    IMPRESSION = "impression"
    VQA = "vqa"


@data_app.command()
def inspect(corpus: Corpus, root: Root, option: BuilderOptions = None, as_json: AsJson = False) -> None:
    """Count studies, texts, labels and missing files.

    With licence and terms, and what is left out and why. No volume is opened.
    """
    from hf_mu2.data.inspect import describe, inspect_corpus

    facts = inspect_corpus(corpus, root, **parse_options(option))
    print_result(facts, describe(facts), as_json)


@data_app.command()
def build(
    corpus: Corpus,
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder to write; a killed run continues where it was.")],
    view: Annotated[CorpusView, typer.Option(help="Studies with all columns, or rows for training.")] = (
        CorpusView.STUDY
    ),
    split: Split = None,
    copy_volumes: Annotated[
        bool, typer.Option("--copy-volumes", help="Put the volumes into the folder, so that it stands alone.")
    ] = False,
    option: BuilderOptions = None,
    as_json: AsJson = False,
) -> None:
    """Write a corpus as a folder for load_dataset and TRL.

    The folder opens without this package. Volumes stay where they are and are named by path, unless copied.
    """
    from hf_mu2.data.export import export_corpus

    manifest = export_corpus(
        corpus, root, out, view=view.value, split=split, copy_volumes=copy_volumes, **parse_options(option)
    )
    rows = ", ".join(f"{count:,} rows of {part}" for part, count in manifest["rows"].items())
    print_result({"dataset": str(out), **manifest}, f"{rows}: {out}", as_json)
    refuse_failed(manifest["failed"])


@data_app.command()
def overlap(
    corpus_a: Corpus,
    corpus_b: Corpus,
    root_a: Root,
    root_b: Root,
    option_a: BuilderOptionsA = None,
    option_b: BuilderOptionsB = None,
    read_volumes: Annotated[
        bool, typer.Option("--volumes/--no-volumes", help="Compare volumes too, not only reports.")
    ] = True,
    min_words: Annotated[int, typer.Option(min=1, help="Shortest report to compare.")] = 20,
    cache: Annotated[
        Path | None, typer.Option(help="JSONL of finished hashes; a killed search continues from it.")
    ] = None,
    num_workers: Annotated[int, typer.Option(min=1, help="Processes that read volumes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Find volumes and reports that two corpora share.

    By content: names, compression, orientation and spacing may differ.
    """
    from hf_mu2.data.overlap import find_overlap

    found = find_overlap(
        corpus_a,
        root_a,
        corpus_b,
        root_b,
        options_a=parse_options(option_a),
        options_b=parse_options(option_b),
        read_volumes=read_volumes,
        min_words=min_words,
        cache=cache,
        num_workers=num_workers,
    )
    lines = [
        f"{corpus_a}: {found['a']['volumes']:,} volumes and {found['a']['reports']:,} reports compared; "
        f"{corpus_b}: {found['b']['volumes']:,} and {found['b']['reports']:,}.",
        f"Shared: {len(found['volumes'])} volumes, {len(found['reports'])} reports.",
    ]
    for kind in ("volumes", "reports"):
        lines += [f"  {kind[:-1]}  {', '.join(pair['a'])}  =  {', '.join(pair['b'])}" for pair in found[kind]]
    print_result(found, "\n".join(lines), as_json)
    refuse_failed(found["unreadable"])


_NO_OPTIONS = (
    "name",
    "root",
    "drops",
    "visit",
    "out",
    "view",
    "split",
    "copy_volumes",
)  # arguments of their own


def parse_options(settings: list[str] | None) -> dict[str, Any]:
    """Read NAME=VALUE pairs: values are JSON (0.1, true, null, ["a"]), anything else is text."""
    options: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not name or not equals or name in _NO_OPTIONS:
            raise ValueError(
                f"An option of a corpus is written NAME=VALUE, got `{setting}`. E.g. `--option validation_share=0.1`."
            )
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options
