"""Run a frozen vision tower once per volume, and train from what it made.

Reads: a model, its processor, a dataset whose `images` name volumes.
Writes: `FOLDER/<key>-<type>/<volume>.safetensors`, shards of features, each volume named by its source's content. The
key hashes tower and processor, so that one folder serves several of both and no features are mistaken for others'.

Trainers see references in `images` where the paths were; the processor turns them into `vision_hidden_states`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_mu2.data.prepare_shards import content_key
from hf_mu2.data.work_list import source_files, source_text, undecoded
from hf_mu2.files import PARTIAL, replacing
from hf_mu2.model.features_mu2 import (
    check_reference,
    differences,
    feature_key,
    feature_reference,
    is_features,
    open_shard,
    shard_metadata,
)
from hf_mu2.model.prepared_mu2 import is_prepared
from hf_mu2.model.volume_mu2 import OutOfDomainWarning

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_mu2.model.processing_mu2 import Mu2Processor

_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
# What a tower's output in evaluation mode does not depend on.
_NO_EFFECT = {"frames_per_chunk", "attention_dropout", "initializer_range"}


def cache_features(
    model: nn.Module,
    processor: Mu2Processor,
    dataset: Dataset,
    folder: str | Path,
    *,
    batch_size: int = 4,
    dtype: torch.dtype = torch.bfloat16,
    num_workers: int = 0,
    volumes_per_shard: int = 32,
    device: torch.device | str | None = None,
) -> Dataset:
    """Run the vision tower once per distinct volume, without augmentation, and let the rows refer to its output.

    Volumes that the folder holds features of are not read again. A run that was killed loses at most one shard.

    Args:
        model (`nn.Module`): A mu2 model, in an adapter or not. The tower runs in the type of its weights.
        dataset (`Dataset`): Rows with `images`: paths, volume references or references to prepared volumes.
        folder (`str` or `Path`): Where the features are; all processes that train must see it. Only one may write.
        batch_size (`int`): Volumes per pass through the tower.
        dtype (`torch.dtype`): `torch.bfloat16` halves the folder and rounds to 8 significant bits, `torch.float32` is
            exact.
        num_workers (`int`): Processes that read volumes.
        volumes_per_shard (`int`): One of the 1B preset takes up to 25 MB in bfloat16.
        device (`torch.device`, *optional*): Where the tower runs; where it is, by default.

    Returns:
        `Dataset`: The rows with references to features in `images`, every other column as it was.

    Raises:
        ValueError: if rows have no `images`, a volume cannot be read, or the model has no vision tower.
    """
    from datasets import List, Value

    if dtype not in _TYPES:
        raise ValueError(
            f"Features are stored as one of {', '.join(map(str, _TYPES))}, got {dtype}. Choose one."
        )
    settings, tower = feature_settings(model, processor), vision_tower(model)
    key = feature_key(settings)
    store = Path(os.path.abspath(folder)) / f"{key}-{_TYPES[dtype]}"  # noqa: PTH100
    shards, known = _read_store(store)
    rows = list(_sources(dataset))
    names = {
        source: _name(source, known) for source in dict.fromkeys(source for row in rows for source in row)
    }
    todo = {name: source for source, name in names.items() if name not in shards}
    origin, was_training = next(tower.parameters()).device, tower.training
    tower.eval().to(device or origin)
    try:
        computed = _compute(tower, processor, todo, batch_size, dtype, num_workers)
        while batch := dict(islice(computed, volumes_per_shard)):
            path = store / f"{next(iter(batch))}.safetensors"
            fingerprints = {name: _fingerprint(todo[name]) for name in batch}
            with replacing(path) as partial:
                save_file(batch, partial, shard_metadata(settings, fingerprints))
            shards |= dict.fromkeys(batch, path)
    finally:
        tower.train(was_training).to(origin)
    references = [[feature_reference(shards[names[text]], names[text], key) for text in row] for row in rows]
    dataset = dataset.add_column("_features", references, feature=List(Value("string")))
    return dataset.remove_columns("images").rename_column("_features", "images")


def check_features(dataset: Dataset, model: nn.Module, processor: Mu2Processor) -> None:
    """Refuse cached features that this training would not compute itself. Rows with volumes pass.

    Call it after freezing and before training; recipes do.

    Raises:
        ValueError: if only some rows have features, the tower is trained, the features are of another tower or another
            processor, or they are not there.
    """
    from datasets import List, Value

    if (dataset.features or {}).get("images") != List(Value("string")):
        return
    rows = list(dataset["images"])
    num_features = sum(all(map(is_features, images)) for images in rows)
    references = dict.fromkeys(image for images in rows for image in images if is_features(image))
    if not references:
        return
    if num_features != len(rows):
        raise ValueError(
            f"A dataset holds volumes or cached features, never both, got features in {num_features} of {len(rows)} "
            "rows. Cache the features of all rows, or of none."
        )
    trained = [name for name, parameter in vision_tower(model).named_parameters() if parameter.requires_grad]
    if trained:
        raise ValueError(
            f"Cached features need a frozen vision tower, {len(trained)} of its tensors are trained, e.g. "
            f"`{trained[0]}`. Choose a stage that freezes the tower, e.g. `tokenizer`, or train on the volumes."
        )
    own = feature_settings(model, processor)
    for reference in references:
        its = check_reference(reference)
        if its != own:
            raise ValueError(
                "Cached features must come from the tower and the processor that are trained, these were made with "
                f"{_difference(its, own)}. Cache them again with this checkpoint, or start from the one they are of."
            )


def feature_settings(model: nn.Module, processor: Mu2Processor) -> dict[str, Any]:
    """Return all that cached features depend on: weights and sizes of the tower, settings of the processor."""
    tower = vision_tower(model)
    fields = tower.config.to_dict()
    return {
        "tower": _digest(tower),
        "vision": {
            name: fields[name] for name in type(tower.config).__annotations__ if name not in _NO_EFFECT
        },
        "pixels": processor.image_processor.pixel_settings,
    }


def vision_tower(model: nn.Module) -> nn.Module:
    """Find the vision tower of a mu2 model, in an adapter or not.

    Raises:
        ValueError: if there is none.
    """
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] == "vision_tower":
            return module
    raise ValueError(
        f"Features are cached of a mu2 model's `vision_tower`, a {type(model).__name__} has none. Train it on volumes."
    )


def _read_store(store: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the shard of every volume that is there, and the volume of every known fingerprint."""
    shards: dict[str, Path] = {}
    known: dict[str, str] = {}
    for path in sorted(store.glob("*.safetensors")):
        if not path.name.startswith(PARTIAL):
            _, _, fingerprints = open_shard(path)
            shards |= dict.fromkeys(fingerprints, path)
            known |= {fingerprint: name for name, fingerprint in fingerprints.items()}
    return shards, known


def _sources(dataset: Dataset) -> Iterator[list[str]]:
    """Yield the volumes of each row, as paths or references that hold from any working directory."""
    columns = [name for name in ("images", "study_id") if name in dataset.column_names]
    if "images" not in columns:
        raise ValueError(
            f"Volumes are read from a column `images`, got columns {dataset.column_names}. Rename the column that "
            "holds them."
        )
    for number, row in enumerate(undecoded(dataset.select_columns(columns))):
        study_id = str(row.get("study_id", f"row {number}"))
        images = row["images"] if isinstance(row["images"], list) else [row["images"]]
        yield [image if is_prepared(image) else source_text(image, study_id) for image in images]


def _name(source: str, known: Mapping[str, str]) -> str:
    """Name a volume by its content; one that is prepared or was seen before is not read for it."""
    if is_prepared(source):
        fields = json.loads(source)
        return sha256(f"{fields['volume']} {fields['key']}".encode()).hexdigest()[:32]
    return known.get(_fingerprint(source)) or content_key(source)


def _fingerprint(source: str) -> str:
    """Hash a source with the sizes and times of writing of its files."""
    statuses = [file.stat() for file in source_files(source)] if not is_prepared(source) else []
    return sha256(f"{source} {[(s.st_size, s.st_mtime_ns) for s in statuses]}".encode()).hexdigest()


@torch.no_grad()
def _compute(
    tower: nn.Module,
    processor: Mu2Processor,
    volumes: Mapping[str, str],
    batch_size: int,
    dtype: torch.dtype,
    num_workers: int,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and features of each volume: (slabs, patches per slab, width), slabs that hold anatomy alone."""
    device, names = next(tower.parameters()).device, iter(volumes)
    collate = partial(_load, processor.image_processor)
    batches = DataLoader(list(volumes.values()), batch_size, collate_fn=collate, num_workers=num_workers)
    with tqdm(total=len(volumes), desc="features", unit=" volumes", disable=None) as bar:
        for pixel_values, mask in batches:
            states = tower(pixel_values.to(device), mask.to(device)).last_hidden_state.to("cpu", dtype)
            slabs = states.unflatten(2, (mask.shape[2], -1)).flatten(1, 2)  # (B, T * slabs, N / slabs, E)
            for name, own, is_anatomy in zip(islice(names, len(slabs)), slabs, mask.flatten(1)):
                yield name, own[is_anatomy]
            bar.update(len(slabs))


def _load(image_processor: Any, sources: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutOfDomainWarning)  # what `hf-mu2 data check` tells
        batch = image_processor(sources, return_tensors="pt")
    return batch["pixel_values"], batch["pixel_attention_mask"]


def _digest(tower: nn.Module) -> str:
    """Hash names, types, shapes and values of all weights."""
    digest = sha256()
    for name, value in sorted(tower.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _difference(its: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    found = [differences(its[part], own[part]) for part in ("vision", "pixels")]
    if its["tower"] != own["tower"]:
        found.insert(0, "other weights of the tower")
    return "; ".join(filter(None, found))
