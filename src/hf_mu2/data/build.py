"""Open any corpus as a `datasets.Dataset` with one line.

Reads: the archive of a corpus, as its owners lay it out.
Writes: the index of study rows into the `datasets` cache; volumes stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .corpus import CorpusError, CorpusInfo, Drops

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

CORPORA = (
    "ct_rate",
    "amos_mm",
    "abdomen_atlas",
    "m3d_cap",
    "radgenome",
    "mimic_cxr",
    "openi",
    "phantom_ct",
    "folder",
)


def corpus_info(name: str) -> CorpusInfo:
    """Return what is known of a corpus before any file is opened."""
    return _module(name).INFO


def read_corpus(
    name: str, root: str | Path, drops: Drops | None = None, **options: Any
) -> Iterator[dict[str, Any]]:
    """Yield the study rows of a corpus, all splits, in a stable order and in bounded memory.

    Args:
        name (`str`): One of `CORPORA`.
        root (`str` or `Path`): Folder of the archive.
        drops (`Drops`, *optional*): Receives an account of what is left out.
        options: Options of the builder, see its `read_studies`.

    Raises:
        CorpusError: if the tree is not what the corpus's layout says.
    """
    module, root = _module(name), Path(root)
    if not root.exists():
        raise CorpusError(
            f"`root` must be the folder of the corpus, got `{root}`, which does not exist. Check the path."
        )
    yield from module.read_studies(root, Drops() if drops is None else drops, **options)


def load_corpus(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
    """Open a corpus as a dataset with the columns of [`~hf_mu2.data.study.make_study`].

    Args:
        name (`str`): One of `CORPORA`.
        root (`str` or `Path`): Folder of the archive.
        split (`str`, *optional*): `"train"`, `"validation"` or `"test"`; all of them, by name, when not given.
        streaming (`bool`): Read rows as they are asked for instead of writing an index first.
        options: Options of the builder, see its `read_studies`.

    Raises:
        CorpusError: if the tree is not what the corpus's layout says, or the split has no study.
    """
    raise NotImplementedError


def _module(name: str) -> ModuleType:
    if name not in CORPORA:
        raise CorpusError(
            f"A corpus is one of {', '.join(CORPORA)}, got `{name}`. Use `folder` for one of your own."
        )
    return import_module(f".{name}", __package__)
