"""Open a dataset as studies and read them batch by batch, volumes already in their prompts.

Reads: a folder that `datasets.load_dataset` opens (column `images`), or a folder of volumes.
Writes: nothing. Studies are known by their `study_id`, else by their number: file names often are those of patients.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import BatchFeature

from hf_mu2.model.features_mu2 import is_features, parse_features
from hf_mu2.model.volume_mu2 import Volume, VolumeError, source_path
from hf_mu2.reporting.inference import Reader, digest
from hf_mu2.reporting.report import content_id, find_volumes, without_name

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Studies:
    """The studies of a dataset: ids at hand, volumes and prompt of one study on request.

    `digest` tells the dataset from others: its ids and questions, the names and sizes of its files, the split.
    `describe` returns what the dataset says of a study beside that: `patient_id` and `egress`, where it has them.
    """

    ids: list[str]
    read: Callable[[int], tuple[list[Any], Messages | None]]
    digest: str
    split: str | None = None
    describe: Callable[[int], dict[str, Any]] = lambda index: {}


@dataclass(frozen=True)
class LoadedStudy:
    """One study ready for the model, or the reason why not; `volume_ids` name the voxels that were read.

    `sources` and `prompt` are the volumes and the question as the dataset has them, `prompt` `None` where it has none.
    """

    study_id: str
    conversation: Messages
    volume_ids: list[str]
    error: str | None = None
    sources: list[Any] = field(default_factory=list)
    prompt: Messages | None = None


@dataclass(frozen=True)
class Batch:
    """Studies and their model inputs, which are missing where every study was refused; `refused` says why per study."""

    studies: list[LoadedStudy]
    inputs: BatchFeature | None
    refused: dict[str, str]


def open_studies(dataset: str | Path, split: str | None = None) -> Studies:
    """Open a folder with `metadata.jsonl`, csv, Parquet or prepared volumes through `datasets`, any other as volumes.

    Rows without a `study_id` are numbered in their order, volumes of a folder in that of their names.
    """
    dataset = Path(dataset)
    if not dataset.is_dir():
        raise ValueError(
            f"The dataset must be a folder, got `{dataset}`. Make one with `hf-mu2 phantom --out DIR`, or fetch one "
            "with `hf download --repo-type dataset`."
        )
    if _is_dataset(dataset):
        return _open_dataset(dataset, split)
    paths = find_volumes(dataset)
    ids = _number(len(paths))
    return Studies(ids, lambda index: ([paths[index]], None), digest([ids, _list_files(dataset)]))


def read_batches(
    studies: Studies, indices: list[int], reader: Reader, question: str | None, batch_size: int
) -> Iterator[Batch]:
    """Yield the studies at `indices` in batches, while threads read the volumes of the next one."""

    def load(index: int) -> LoadedStudy:
        try:
            return load_study(studies, index, reader, question)
        except (ValueError, OSError) as error:
            return LoadedStudy(studies.ids[index], [], [], str(error))

    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    with ThreadPoolExecutor(max_workers=batch_size) as pool:
        pending = [pool.submit(load, index) for batch in batches[:1] for index in batch]
        for following in [*batches[1:], []]:
            loaded = [future.result() for future in pending]
            pending = [pool.submit(load, index) for index in following]
            if loaded:
                refused = {study.study_id: study.error for study in loaded if study.error is not None}
                yield _prepare([study for study in loaded if study.error is None], refused, reader)


def load_study(studies: Studies, index: int, reader: Reader, question: str | None = None) -> LoadedStudy:
    """Load the volumes of one study and put them into its prompt; `question` replaces the dataset's prompt.

    Cached features stay references, which the processor reads.
    """
    sources, prompt = studies.read(index)
    if not sources:
        raise VolumeError(
            f"A study must have at least one volume, got none for `{studies.ids[index]}`. "
            "Drop the row, or name its files in `images_file_names`."
        )
    volumes = [source if is_features(source) else _load_volume(source, reader) for source in sources]
    if prompt is None or question is not None:
        conversation = reader.processor.build_messages(volumes, question=question)
    else:
        conversation = place_volumes(prompt, volumes)
    volume_ids = [
        content_id(volume) if isinstance(volume, Volume) else parse_features(volume)["volume"]
        for volume in volumes
    ]
    return LoadedStudy(studies.ids[index], conversation, volume_ids, sources=sources, prompt=prompt)


def place_volumes(messages: Messages, volumes: list[Any]) -> Messages:
    """Put volumes into the image blocks of a prompt, or before its first user text where it has none."""
    blocks_of = [
        [{"type": "text", "text": content}] if isinstance(content := message["content"], str) else content
        for message in messages
    ]
    num_slots = sum(_is_image(block) for blocks in blocks_of for block in blocks)
    if num_slots not in (0, len(volumes)):
        raise ValueError(
            f"A prompt must have one image block per volume or none at all, got {num_slots} blocks for "
            f"{len(volumes)} volumes. Add `{{'type': 'image'}}` blocks or drop them all."
        )
    remaining = [{"type": "image", "image": volume} for volume in volumes]
    placed = []
    for message, blocks in zip(messages, blocks_of):
        filled = [remaining.pop(0) if _is_image(block) else block for block in blocks]
        if message["role"] == "user" and num_slots == 0:
            filled, remaining = [*remaining, *filled], []
        placed.append({"role": message["role"], "content": filled})
    if remaining:
        raise ValueError(
            f"A prompt must have a turn of the user, who shows the volumes, got {[m['role'] for m in messages]}. "
            'Add `{"role": "user", "content": "..."}`.'
        )
    return placed


def _load_volume(source: Any, reader: Reader) -> Volume:
    """Load one volume; what is wrong with it is told without its name."""
    try:
        return reader.load_volume(source)
    except (ValueError, OSError) as error:
        path = source_path(source)
        raise VolumeError(without_name(str(error), path) if path else str(error)) from error


def _prepare(studies: list[LoadedStudy], refused: dict[str, str], reader: Reader) -> Batch:
    """Turn loaded studies into one batch; one that the processor refuses is left out, and the others go on."""
    if not studies:
        return Batch([], None, refused)
    try:
        return Batch(studies, reader.prepare([study.conversation for study in studies]), refused)
    except (ValueError, OSError) as error:
        if len(studies) == 1:
            return Batch([], None, refused | {studies[0].study_id: str(error)})
    alone = [_prepare([study], {}, reader) for study in studies]
    for batch in alone:
        refused = refused | batch.refused
    fine = [study for batch in alone for study in batch.studies]
    return Batch(fine, reader.prepare([study.conversation for study in fine]) if fine else None, refused)


def _is_dataset(folder: Path) -> bool:
    """Tell a folder with a table of rows, e.g. of prepared volumes, whose card names it, from one of volumes alone."""
    card = folder / "README.md"
    if card.is_file() and "data_files:" in card.read_text(encoding="utf-8", errors="replace"):
        return True
    return any(path.suffix == ".parquet" or path.stem == "metadata" for path in folder.rglob("*.*"))


def _open_dataset(folder: Path, split: str | None) -> Studies:
    try:
        from datasets import List, Nifti, load_dataset
    except ImportError as error:
        raise ImportError(
            f'Reading `{folder}` as a dataset needs the `datasets` package: pip install "hf_mu2[train]".'
        ) from error

    splits = load_dataset(str(folder))
    if split not in splits and (split is not None or len(splits) > 1):
        raise ValueError(
            f"`--split` must name a split where there are several, got {split or 'none'} for `{folder}`. "
            f"Choose one of {sorted(splits)}."
        )
    rows = splits[split or next(iter(splits))]
    names = rows.column_names
    if "images" not in names:
        raise ValueError(
            f"A dataset must have the column `images` (a list of volumes), got {names} in `{folder}`. "
            'In a folder of NIfTI files, metadata.jsonl names them: {"images_file_names": ["ct.nii.gz"], ...}.'
        )
    # Paths and bytes, not nibabel objects: the volume loader reads them itself, in its own threads.
    rows = rows.cast_column("images", List(Nifti(decode=False)))
    ids = list(rows["study_id"]) if "study_id" in names else _number(len(rows))
    if len(set(ids)) < len(ids):
        twice = next(study_id for study_id in ids if ids.count(study_id) > 1)
        raise ValueError(
            f"Every row must have its own `study_id`, got `{twice}` more than once in `{folder}`. "
            "Put all volumes of a study into one row."
        )

    def read(index: int) -> tuple[list[Any], Messages | None]:
        row = rows[index]
        prompt = row["prompt"] if "prompt" in names else None
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        elif prompt is None and "messages" in names:
            prompt = list(takewhile(lambda message: message["role"] != "assistant", row["messages"]))
        return row["images"], prompt

    told = [name for name in ("patient_id", "egress") if name in names]
    descriptions = rows.select_columns(told)

    def describe(index: int) -> dict[str, Any]:
        return descriptions[index] if told else {}

    asked = rows.select_columns([name for name in ("prompt", "messages") if name in names])
    facts = [split, ids, list(asked), _list_files(folder)]
    return Studies(ids, read, digest(facts), split, describe)


def _number(count: int) -> list[str]:
    return [f"{index:06d}" for index in range(count)]


def _list_files(folder: Path) -> list[list[Any]]:
    """List names and sizes of the files that make a dataset: neither hidden ones nor what our commands write."""
    relative = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [
        [path.as_posix(), (folder / path).stat().st_size]
        for path in relative
        if path.suffix not in (".json", ".jsonl", ".npz")
        and not any(part.startswith(".") for part in path.parts)
    ]


def _is_image(block: dict[str, Any]) -> bool:
    return block["type"] == "image"
