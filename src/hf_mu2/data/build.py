"""Open any corpus as a `datasets.Dataset` with one line.

Reads: the archive of a corpus, as its owners lay it out.
Writes: the index of study rows into the `datasets` cache; volumes stay where they are.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hf_mu2.files import PARTIAL, replace_text, replacing

from .corpus import CorpusError, CorpusInfo, Drops
from .study import SPLITS, study_features

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict

logger = logging.getLogger(__name__)

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
        CorpusError: if the tree is not what the corpus's layout says, an option is unknown, or an id comes twice.
    """
    module, root = _module(name), Path(root).resolve()
    if not root.exists():
        raise CorpusError(
            f"`root` must be the folder of the corpus, got `{root}`, which does not exist. Check the path."
        )
    known = [
        option for option in signature(module.read_studies).parameters if option not in ("root", "drops")
    ]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise CorpusError(f"Options of `{name}` are {known or 'none'}, got {unknown}. Check the spelling.")
    for option, value in options.items():
        parameter = signature(module.read_studies).parameters[option]
        default = parameter.default
        if not _is_like(value, default) and not (value is None and "None" in str(parameter.annotation)):
            raise CorpusError(
                f"Option `{option}` of `{name}` is a {type(default).__name__} such as {default!r}, got {value!r}. "
                "Mend its value."
            )
    seen: set[str] = set()
    for row in module.read_studies(root, Drops() if drops is None else drops, **options):
        if row["study_id"] in seen:
            raise CorpusError(
                f"A study id comes once in a corpus, `{row['study_id']}` comes again in `{name}`. "
                "Merge or rename the rows of its index."
            )
        seen.add(row["study_id"])
        yield row


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

    The index is read anew at every call, so what is served is what is on disk; rows that have not changed keep their
    cached table, and with it what `map` has cached on top. `images` is `List(Nifti())`, opened lazily, where every
    entry of the corpus is the path of a NIfTI, and text otherwise: the processor takes either.

    Args:
        name (`str`): One of `CORPORA`.
        root (`str` or `Path`): Folder of the archive.
        split (`str`, *optional*): `"train"`, `"validation"` or `"test"`; all of them, by name, when not given.
        streaming (`bool`): Read rows as they are asked for instead of writing a table. The index is read once before
            the first row, to know the splits and the type of `images`.
        cache_dir (`str` or `Path`, *optional*): Where tables are kept, with the account of what was left out as
            `drops.json`; the `datasets` cache when not given.
        options: Options of the builder, see its `read_studies`.

    Raises:
        CorpusError: if the tree is not what the corpus's layout says, or the split has no study.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            'Opening a corpus as a dataset needs the `datasets` package: pip install "hf_mu2[train]".'
        ) from error

    if streaming:
        survey = survey_corpus(name, root, **options)
        streams = {
            part: datasets.IterableDataset.from_generator(
                _stream_split,
                features=study_features(lazy_nifti=survey.is_lazy),
                gen_kwargs={"name": name, "root": str(root), "split": part, "options": options},
                split=datasets.NamedSplit(part),
            )
            for part in _wanted(survey, name, root, split)
        }
        return datasets.IterableDatasetDict(streams) if split is None else streams[split]

    home = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "hf_mu2" / name
    survey, tables = write_tables(name, root, home, **options)
    opened = {
        part: datasets.Dataset.from_file(str(tables / f"{part}.arrow"), split=datasets.NamedSplit(part))
        for part in _wanted(survey, name, root, split)
    }
    return datasets.DatasetDict(opened) if split is None else opened[split]


def write_tables(name: str, root: str | Path, home: Path, **options: Any) -> tuple[Survey, Path]:
    """Write an Arrow table per split and `drops.json` into a folder of `home` named by the rows; return the folder."""
    home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=PARTIAL, dir=home, ignore_cleanup_errors=True) as folder:
        staging = Path(folder)
        with _Tables(staging, study_features(lazy_nifti=False)) as tables:
            survey = survey_corpus(name, root, tables.add, **options)
        final = home / survey.digest
        if not final.exists():
            if survey.is_lazy:
                for part in survey.studies:
                    _make_lazy(staging / f"{part}.arrow", study_features())
            replace_text(staging / "drops.json", json.dumps(survey.drops.to_dict(), indent=2) + "\n")
            with suppress(OSError):  # another process was first with the same tables
                staging.rename(final)
    return survey, final


@dataclass(frozen=True)
class Survey:
    """What one pass over a corpus tells: studies per split, whether all volumes are NIfTI paths, a digest."""

    studies: dict[str, int]
    is_lazy: bool
    digest: str
    drops: Drops


def survey_corpus(
    name: str, root: str | Path, visit: Callable[[dict[str, Any]], None] | None = None, **options: Any
) -> Survey:
    """Read all rows of a corpus once, and show each to `visit`."""
    from hf_mu2 import __version__

    drops, studies, digest, is_lazy = Drops(), Counter[str](), sha256(__version__.encode()), True
    rows = read_corpus(name, root, drops, **options)
    for row in tqdm(rows, desc=name, unit=" studies", disable=None, leave=False):
        digest.update(json.dumps(row, sort_keys=True).encode())
        studies[row["split"]] += 1
        is_lazy = is_lazy and all(map(is_nifti_path, row["images"]))
        if visit is not None:
            visit(row)
    ordered = {split: studies[split] for split in SPLITS if studies[split]}
    return Survey(ordered, is_lazy, digest.hexdigest()[:32], drops)


def is_nifti_path(entry: str) -> bool:
    """Tell a plain NIfTI path from a reference, a DICOM folder or a prepared volume."""
    return not entry.startswith("{") and entry.lower().endswith((".nii", ".nii.gz"))


def _is_like(value: Any, default: Any) -> bool:
    """Tell whether a value may stand for a default: whole numbers for fractions, anything for `None`."""
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return not isinstance(default, bool | int | str) or type(value) is type(default)


def _wanted(survey: Survey, name: str, root: str | Path, split: str | None) -> list[str]:
    """Return the splits asked for, warning of what was left out; refuse one without studies."""
    wanted = list(survey.studies) if split is None else [split]
    if not wanted or not set(wanted) <= set(survey.studies):
        left_out = f" Left out: {survey.drops.summary()}." if survey.drops.reasons else ""
        raise CorpusError(
            f"A split must have studies, `{split or 'every split'}` of `{name}` has none under `{root}`; there are "
            f"{survey.studies or 'no studies at all'}.{left_out} Choose another split, or see `hf-mu2 data inspect`."
        )
    if survey.drops.reasons:
        logger.warning(
            "Left out of %s: %s. To see which: hf-mu2 data inspect %s --root %s",
            *(name, survey.drops.summary(), name, root),
        )
    return wanted


def _stream_split(name: str, root: str, split: str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    return (row for row in read_corpus(name, root, **options) if row["split"] == split)


class _Tables:
    """One Arrow file per split, written a few rows at a time so that memory does not grow with the corpus."""

    def __init__(self, folder: Path, features: Features, batch_size: int = 256) -> None:
        self._folder, self._schema, self._batch_size = folder, features.arrow_schema, batch_size
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._writers: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Tables:
        return self

    def add(self, row: dict[str, Any]) -> None:
        waiting = self._waiting.setdefault(row["split"], [])
        waiting.append(row)
        if len(waiting) == self._batch_size:
            self._write(row["split"])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None:
                for split in self._waiting:
                    self._write(split)

    def _write(self, split: str) -> None:
        import pyarrow as pa

        if split not in self._writers:
            path = str(self._folder / f"{split}.arrow")
            self._writers[split] = self._stack.enter_context(pa.ipc.new_stream(path, self._schema))
        self._writers[split].write_batch(
            pa.RecordBatch.from_pylist(self._waiting[split], schema=self._schema)
        )
        self._waiting[split].clear()


def _make_lazy(path: Path, features: Features) -> None:
    """Rewrite a table so that the paths in `images` are what `datasets.Nifti` stores."""
    import pyarrow as pa

    schema = features.arrow_schema
    index = schema.get_field_index("images")
    with (
        replacing(path) as partial,
        pa.OSFile(str(path)) as source,
        pa.ipc.open_stream(source) as batches,
        pa.ipc.new_stream(str(partial), schema) as writer,
    ):
        for batch in batches:
            paths = batch.column(index).values
            nifti = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], ["bytes", "path"])
            columns = batch.columns
            columns[index] = pa.ListArray.from_arrays(batch.column(index).offsets, nifti)
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _module(name: str) -> ModuleType:
    if name not in CORPORA:
        raise CorpusError(
            f"A corpus is one of {', '.join(CORPORA)}, got `{name}`. Use `folder` for one of your own."
        )
    return import_module(f".{name}", __package__)
