"""Upload a folder of volumes and metadata to the Hub as a dataset, after looking at what is in it.

Reads: a folder that `load_dataset` opens, with its card in `README.md`.
Writes: a dataset repository that holds the same files; nothing is packed into Parquet.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from hf_mu2.data.build import CORPORA, corpus_info
from hf_mu2.tables import TableError

from .terms import names_of, plain_name
from .upload import CARD, PublishError, UploadPlan, card_data, refuse, upload
from .upload_checks import find_patient_data, find_secrets, list_files, read_documents

MAX_TABLE_BYTES = 2**30
_ROWS = (".jsonl", ".csv", ".tsv")
_SOURCE_KEYS = (
    "corpus",
    "corpora",
    "dataset",
    "datasets",
    "pretty_name",
    "source",
    "sources",
    "source_datasets",
)


def plan_dataset(folder: str | Path) -> UploadPlan:
    """List what an upload of a folder would send, and refuse what must not be sent. Touches no network.

    Raises:
        PublishError: naming every reason: no card or licence, a corpus that may not be redistributed, text that may not
            leave the machine, credentials, what names patients, links to outside, one giant table, nothing to load.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PublishError(f"A dataset to publish is a folder, `{folder}` is none. Check the path.")
    files, left = list_files(folder)
    try:
        problems = [*_card_problems(folder), *_source_problems(folder, files)]
        problems += [*find_secrets(folder, files), *find_patient_data(folder, files)]
    except TableError as error:  # a table that cannot be read, and so not be looked into
        raise PublishError(f"`{folder}` is not uploaded, and nothing was sent. {error}") from error
    problems += [
        f"`{name}` is one table of {(folder / name).stat().st_size / 2**30:.1f} GiB: keep volumes as files beside "
        "their metadata, so that readers fetch what they need"
        for name in files
        if name.endswith((".parquet", ".arrow")) and (folder / name).stat().st_size > MAX_TABLE_BYTES
    ]
    refuse(folder, problems)
    sizes = tuple((name, (folder / name).stat().st_size) for name in files)
    return UploadPlan(folder, sizes, tuple(left), (folder / CARD).read_text(encoding="utf-8"))


def publish_dataset(
    folder: str | Path, repo_id: str, *, private: bool = True, token: str | None = None
) -> str:
    """Upload a folder as a dataset and return its address. A broken upload continues when it is run again.

    Args:
        private (`bool`): Make the repository private. One that exists must already be what is asked for.
        token (`str`, *optional*): Access token with the right to write; that of `hf auth login` when not given.

    Raises:
        PublishError: if the folder may not be uploaded, see `plan_dataset`, or the repository is public where a
            private one was asked for, or the reverse.
    """
    return upload(plan_dataset(folder), repo_id, "dataset", private=private, token=token)


def _card_problems(folder: Path) -> Iterator[str]:
    path = folder / CARD
    if not path.is_file():
        yield f"it has no card: write `{CARD}` with `hf-mu2 publish dataset-card`"
    elif not card_data(path).get("license"):
        yield f"its card `{CARD}` names no `license` in its header"


def _source_problems(folder: Path, files: list[str]) -> Iterator[str]:
    """Say which corpora a folder comes from that may not be handed on, and how much of its text may not leave."""
    infos = [info for info in map(corpus_info, CORPORA) if not info.redistributable]
    closed = {name: info for info in infos for name in names_of(info)}
    named: dict[str, list[str]] = {}  # corpus -> where it is named

    def look(values: Iterable[str], place: str) -> None:
        for title in {closed[name].title for name in map(plain_name, values) if name in closed}:
            named.setdefault(title, []).append(place)

    if (folder / CARD).is_file():
        text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
        look(_sources(card_data(folder / CARD)), f"the header of `{CARD}`")
        look((info.name for info in infos if info.url and info.url in text), f"`{CARD}`")
    for name in files:
        if name.endswith(".json") and "manifest" in PurePosixPath(name).name:
            look((text for value in read_documents(folder / name) for text in _sources(value)), f"`{name}`")
        elif name.endswith(_ROWS):
            corpora, num_kept = set(), 0
            for row in read_documents(folder / name):
                corpora.add(str(row.get("corpus", "")))
                num_kept += str(row.get("egress")).lower() == "false"
            look(sorted(corpora), f"`{name}`")
            if num_kept:
                yield f"`{name}` has {num_kept} rows whose text may not leave this machine (`egress` is false)"
    for title, places in named.items():
        yield (
            f"it comes from {title}, which may not be redistributed, according to {', '.join(dict.fromkeys(places))}: "
            "share the code that makes it, not the data"
        )


def _sources(value: Any, key: str = "") -> Iterator[str]:
    """Yield every text that stands under a key of `_SOURCE_KEYS`, at any depth."""
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            yield from _sources(inner, str(inner_key))
    elif isinstance(value, list):
        for inner in value:
            yield from _sources(inner, key)
    elif isinstance(value, str) and key in _SOURCE_KEYS:
        yield value
