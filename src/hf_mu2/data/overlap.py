"""Find the volumes and reports that two corpora share: public sets were merged into one another under new names.

Reads: two corpora. Writes: optionally a file of hashes, so that a killed search continues.

Two volumes are the same if their **voxel hash** is equal: SHA-256 over the sorted lengths of the three axes and the
count of every HU value, after rounding to integers and clipping to -1024 ... 3071 HU. It does not change with the name,
compression, number type, rescale, padding below -1024, spacing, orientation or mirroring, which is what corpora change
when they take over a volume; the counts of millions of noisy voxels tell real CT apart without their order. It does
change when a volume is cropped, resampled or lossily compressed.

Two reports are the same if their **text hash** is: SHA-256 over the words of findings and impression in lower case,
without punctuation. Texts below `min_words` are left alone, since normal studies share their sentences.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hf_mu2.model.volume_mu2 import VolumeError, load_volume, parse_reference
from hf_mu2.tables import in_batches

from .build import read_corpus
from .corpus import CorpusError

_LOWEST, _HIGHEST = -1024, 3071


def find_overlap(
    name_a: str,
    root_a: str | Path,
    name_b: str,
    root_b: str | Path,
    *,
    options_a: Mapping[str, Any] | None = None,
    options_b: Mapping[str, Any] | None = None,
    read_volumes: bool = True,
    min_words: int = 20,
    cache: str | Path | None = None,
    num_workers: int = 1,
) -> dict[str, Any]:
    """Compare every volume and report of two corpora by content.

    Volumes are opened one at a time per worker, and only hashes stay in memory.

    Args:
        options_a, options_b (`Mapping`, *optional*): Options of the builders.
        read_volumes (`bool`): Compare volumes; with `False` only reports, which takes seconds.
        min_words (`int`): Shortest report to compare, findings and impression together.
        cache (`str` or `Path`, *optional*): JSON lines of finished hashes, added to as the search goes. A volume is
            read again when its file has another size or time.
        num_workers (`int`): Processes that read volumes.

    Returns:
        `dict` that JSON can hold: `volumes` and `reports`, lists of `{"a": [...], "b": [...]}` with the study and split
        (`"amos_0001 (test)"`) of all that are equal; `unreadable`, why volumes could not be compared, per study; and
        the numbers compared.
    """
    hashes = _HashFile(cache)
    volumes: dict[str, dict[str, list[str]]] = {}
    reports: dict[str, dict[str, list[str]]] = {}
    unreadable: dict[str, str] = {}
    facts: dict[str, dict[str, Any]] = {}

    def entries(
        side: str, rows: Iterable[dict[str, Any]], counts: dict[str, Any]
    ) -> Iterator[tuple[str, str]]:
        for row in rows:
            label = f"{row['study_id']} ({row['split']})"
            key = text_hash(f"{row['findings']} {row['impression']}", min_words)
            if key is not None:
                counts["reports"] += 1
                _place(reports, key, side, label)
            for entry in row["images"] if read_volumes else ():
                yield entry, label

    with ExitStack() as stack:
        run: Callable[..., Iterable[tuple[str | None, str]]] = map
        if num_workers > 1:
            run = stack.enter_context(ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))).map
        for side, name, root, options in (("a", name_a, root_a, options_a), ("b", name_b, root_b, options_b)):
            counts = facts[side] = {"corpus": name, "volumes": 0, "reports": 0}
            found = entries(side, read_corpus(name, root, **(options or {})), counts)
            shown = tqdm(found, desc=f"hash {name}", unit=" volumes", disable=None)
            for label, key, problem in _hash_volumes(shown, hashes, run, 8 * num_workers):
                if key is None:
                    unreadable[f"{side}: {label}"] = problem
                else:
                    counts["volumes"] += 1
                    _place(volumes, key, side, label)
    return {
        **facts,
        "volumes": _shared(volumes),
        "reports": _shared(reports),
        "unreadable": unreadable,
    }


def voxel_hash(entry: str) -> str:
    """Hash a volume by its shape and how often each HU value occurs; see the module for what leaves it unchanged.

    Raises:
        VolumeError: if the volume cannot be read or is not in HU.
    """
    array = load_volume(entry).array
    counts = np.zeros(_HIGHEST - _LOWEST + 1, dtype="<i8")
    for plane in array:  # one at a time: the 64-bit numbers of a whole volume would take gigabytes
        hu = np.clip(np.rint(plane), _LOWEST, _HIGHEST).astype(np.int64)
        counts += np.bincount((hu - _LOWEST).ravel(), minlength=len(counts))
    return sha256(np.sort(np.asarray(array.shape, dtype="<i8")).tobytes() + counts.tobytes()).hexdigest()


def text_hash(text: str, min_words: int = 20) -> str | None:
    """Hash the words of a report, `None` for one that is too short to tell."""
    words = re.findall(r"\w+", text.lower())
    return sha256(" ".join(words).encode()).hexdigest() if len(words) >= min_words else None


class _HashFile:
    """Finished hashes by file, size and time, added to a file line by line; a line cut off by a kill is ignored."""

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._known: dict[str, str] = {}
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        if lines and not lines[0].startswith(b'{"key": '[: len(lines[0])]):
            raise CorpusError(
                f"A cache of hashes is a file this command began, `{self._path}` is another. Name a new file."
            )
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            with self._path.open("r+b") as stream:
                stream.truncate(sum(map(len, whole)))
        for line in whole:
            record = json.loads(line)
            self._known[record["key"]] = record["voxels"]

    @staticmethod
    def key(entry: str) -> str:
        """Name the content of an entry without reading it: what it says, and size and time of its file or files."""
        reference = parse_reference(entry)
        path = Path(entry if reference is None else reference.path)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        facts = [
            [file.name, (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files if file.exists()
        ]
        return sha256(json.dumps([entry, facts]).encode()).hexdigest()

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def add(self, key: str, voxels: str) -> None:
        self._known[key] = voxels
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, "voxels": voxels}) + "\n")


def _hash_volumes(
    entries: Iterable[tuple[str, str]],
    hashes: _HashFile,
    run: Callable[..., Iterable[tuple[str | None, str]]],
    batch_size: int,
) -> Iterator[tuple[str, str | None, str]]:
    """Yield each label with the hash of its volume, or `None` and what is wrong with it."""
    for batch in in_batches(((entry, label, hashes.key(entry)) for entry, label in entries), batch_size):
        todo = [entry for entry, _, key in batch if hashes.get(key) is None]
        results = dict(zip(todo, run(_try_hash, todo)))
        for entry, label, key in batch:
            voxels, problem = hashes.get(key), ""
            if voxels is None:
                voxels, problem = results[entry]
                if voxels is not None:
                    hashes.add(key, voxels)
            yield label, voxels, problem


def _try_hash(entry: str) -> tuple[str | None, str]:
    try:
        return voxel_hash(entry), ""
    except (VolumeError, OSError) as error:
        return None, str(error)


def _place(table: dict[str, dict[str, list[str]]], key: str, side: str, label: str) -> None:
    labels = table.setdefault(key, {"a": [], "b": []})[side]
    if label not in labels:
        labels.append(label)


def _shared(table: Mapping[str, Mapping[str, list[str]]]) -> list[dict[str, list[str]]]:
    return [dict(sides) for sides in table.values() if sides["a"] and sides["b"]]
