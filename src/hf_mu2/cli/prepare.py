"""Commands that read every volume of a dataset: data prepare, data check, data relocate."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .data import data_app
from .shared import AsJson, Model, complain, print_result, refuse_failed

if TYPE_CHECKING:
    from datasets import DatasetDict


class Form(StrEnum):
    """How prepared volumes are stored."""

    TENSORS = "tensors"
    PREPROCESSED = "preprocessed"
    PREPROCESSED_NUMPY = "preprocessed_numpy"


class Rows(StrEnum):
    """What a corpus's studies become."""

    SFT = "sft"
    VQA = "vqa"
    STUDIES = "studies"


class Executor(StrEnum):
    """Where the work runs."""

    LOCAL = "local"
    SLURM = "slurm"
    RAY = "ray"


Source = Annotated[str, typer.Argument(help="Folder that `load_dataset` opens, or a corpus with --root.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the corpus.", show_default="SOURCE is a folder")]
Workers = Annotated[int, typer.Option(min=1, help="Processes, or tasks at a time on a cluster.")]
Where = Annotated[Executor, typer.Option(help="datatrove's executor.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Argument of the executor, e.g. time=04:00:00.",
        show_default=False,
    ),
]
Splits = Annotated[
    list[str] | None, typer.Option("--split", help="Split, may be repeated.", show_default="all")
]


@data_app.command()
def prepare(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder to write; an interrupted run goes on there.")],
    root: Root = None,
    model: Model = None,
    view: Annotated[Rows, typer.Option(help="What the studies of a corpus become.")] = Rows.SFT,
    split: Splits = None,
    form: Annotated[
        Form, typer.Option(help="tensors for training mu2, the others for NIfTI or numpy readers.")
    ] = (Form.TENSORS),
    volumes_per_shard: Annotated[int, typer.Option(min=1, help="About 20 MB each as tensors.")] = 24,
    workers: Workers = 1,
    executor: Where = Executor.LOCAL,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Turn volumes into a processor's tensors once.

    Training then reads them from memory maps, with `trl` or with ours.
    """
    from transformers import AutoProcessor

    import hf_mu2
    from hf_mu2.data.executors import parse_options
    from hf_mu2.data.prepare import prepare as prepare_split

    options = parse_options(settings or [])
    processor = None
    if form is Form.TENSORS:
        processor = AutoProcessor.from_pretrained(model or hf_mu2.embedded_checkpoint()).image_processor
    failed: dict[str, str] = {}
    facts: dict[str, dict[str, object]] = {}
    for name, rows in open_rows(source, root, split, view).items():
        done = prepare_split(
            rows,
            out,
            processor,
            split=name,
            form=form.value,
            volumes_per_shard=volumes_per_shard,
            workers=workers,
            executor=executor.value,
            options=options,
        )
        failed |= done.left_out
        facts[name] = {"finished": done.is_finished, "rows": done.num_rows, "volumes": done.num_volumes}
        facts[name]["left_out"] = len(done.left_out)
    state = ", ".join(
        f"{name}: {fact['rows']} rows, {fact['volumes']} volumes"
        if fact["finished"]
        else f"{name}: submitted"
        for name, fact in facts.items()
    )
    print_result({"prepared": str(out), "splits": facts}, f"{state}: {out}", as_json)
    refuse_failed(failed)


@data_app.command()
def check(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder to write; an interrupted check goes on there.")],
    root: Root = None,
    split: Splits = None,
    workers: Workers = 1,
    executor: Where = Executor.LOCAL,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Open every volume and write a table of defects.

    Ends with exit code 2 if a volume cannot be read; warnings alone are no failure.
    """
    from hf_mu2.data.check import check_volumes
    from hf_mu2.data.executors import parse_options

    rows = (row for part in open_rows(source, root, split, Rows.STUDIES).values() for row in part)
    done = check_volumes(
        rows, out, workers=workers, executor=executor.value, options=parse_options(settings or [])
    )
    defects = [
        {"severity": severity, "defect": defect, "volumes": count} for severity, defect, count in done.defects
    ]
    facts = {
        "checked": str(out),
        "finished": done.is_finished,
        "volumes": done.num_volumes,
        "defects": defects,
    }
    line = (
        f"{done.num_volumes} volumes, {done.num_errors} unreadable: {out}"
        if done.is_finished
        else f"submitted: {out}"
    )
    print_result(facts, line, as_json)
    for defect in defects:
        complain(f"{defect['severity']}: {defect['defect']}, {defect['volumes']} volumes")
    if done.num_errors:
        raise ValueError(
            f"{done.num_errors} volumes cannot be read; see {out / 'defects.csv'} for which and why."
        )


@data_app.command()
def relocate(
    folder: Annotated[Path, typer.Argument(help="A prepared folder that was moved or copied.")],
    as_json: AsJson = False,
) -> None:
    """Point the rows of a moved prepared folder at where it lies now."""
    from hf_mu2.data.prepare import relocate as relocate_rows

    count = relocate_rows(folder)
    print_result({"folder": str(folder), "rows": count}, f"{count} rows: {folder}", as_json)


def open_rows(source: str, root: Path | None, splits: list[str] | None, view: Rows) -> "DatasetDict":
    """Open a folder or a corpus as rows with undecoded images, by split."""
    try:
        from datasets import DatasetDict, load_dataset
    except ImportError as error:
        raise ImportError('Opening a dataset needs `datasets`: pip install "hf_mu2[train]".') from error
    from hf_mu2.data.build import CORPORA, load_corpus
    from hf_mu2.data.views import view_dataset
    from hf_mu2.data.work_list import undecoded

    if root is not None:
        opened = load_corpus(source, root)
        opened = opened if view is Rows.STUDIES else view_dataset(opened, view.value)
    elif Path(source).is_dir():
        opened = load_dataset(source)
    else:
        raise ValueError(
            f"A source is a folder that `load_dataset` opens, or a corpus ({', '.join(CORPORA)}) with `--root`; got "
            f"`{source}`. Check the path, or add `--root DIR`."
        )
    unknown = sorted(set(splits or []) - set(opened))
    if unknown:
        raise ValueError(
            f"`--split` names a split of the dataset, got {unknown}. Choose from {sorted(opened)}."
        )
    return DatasetDict({name: undecoded(rows) for name, rows in opened.items() if name in (splits or opened)})
