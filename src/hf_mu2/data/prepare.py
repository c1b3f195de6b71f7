"""Turn the volumes of a dataset into the processor's tensors once, so that training reads them from memory maps.

Reads: rows with `images`, any columns beside it, and the volumes they name.
Writes: a folder that `load_dataset` opens, `trl` trains from and [`PreparedStudies`] reads without either:

    README.md  manifest.json          what it is, how it was made
    train.jsonl  defects/train.jsonl  the rows with references to prepared volumes; the rows that were left out
    shards/train/00000.safetensors    the volumes, int16 HU; 00000.json states where they come from
    .plan/train/                      the work list and logs, for resuming
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_mu2.files import replace_text, replacing
from hf_mu2.model.image_processing_mu2 import Mu2ImageProcessor
from hf_mu2.model.volume_mu2 import preparation_key, prepared_reference

from .executors import run_tasks
from .prepare_shards import CLAMP_HU, FORMS, LOSS, ShardWork
from .work_list import Plan, dataset_features, to_line, undecoded, write_plan

STORED_SPACING_MM = (1.5, 0.75, 0.75)  # z, y, x of both storage forms (METHOD, section 2)


@dataclass(frozen=True)
class Prepared:
    """What a run left behind: rows written, volumes, and why rows were left out, by study id."""

    folder: Path
    split: str
    is_finished: bool
    num_rows: int = 0
    num_volumes: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def prepare(
    rows: Iterable[Mapping[str, Any]],
    out: str | Path,
    processor: Mu2ImageProcessor | None = None,
    *,
    split: str = "train",
    form: str = "tensors",
    volumes_per_shard: int = 24,
    workers: int = 1,
    executor: str = "local",
    options: Mapping[str, Any] | None = None,
) -> Prepared:
    """Prepare the volumes of one split. Calling it again resumes: only unfinished or changed shards are made.

    Args:
        rows (`Iterable[Mapping]`): Rows with `images` (paths or volume references) and whatever JSON can hold, e.g. a
            training view; a `datasets.Dataset` is not decoded. They are read once and never held.
        out (`str` or `Path`): Folder to write; several splits may share it.
        processor (`Mu2ImageProcessor`, *optional*): The processor that will read them; needed for `"tensors"`.
        split (`str`): Name of the split.
        form (`str`): `"tensors"`, or a storage form of the negative-sampling paper: `"preprocessed"` (NIfTI) or
            `"preprocessed_numpy"`, at 0.75 x 0.75 x 1.5 mm within +-1000 HU.
        volumes_per_shard (`int`): About 20 MB each as tensors.
        workers (`int`): Processes, or tasks at a time on a cluster.
        executor (`str`), options (`Mapping`, *optional*): Where it runs, see [`~hf_mu2.data.executors.run_tasks`].

    Raises:
        ValueError: if the folder holds volumes that were prepared with other settings, or rows cannot be read.
    """
    if form not in FORMS:
        raise ValueError(f"`form` is one of {', '.join(FORMS)}, got {form!r}. Choose one of them.")
    if form == "tensors" and (processor is None or processor.mode == "official"):
        raise ValueError(
            "Tensors are prepared for one processor in default mode, got "
            f"{'none' if processor is None else 'mode=official'}. Pass the image processor of the checkpoint you "
            "will train."
        )
    out = Path(os.path.abspath(out))  # noqa: PTH100
    started = time.time()
    if form != "tensors" or processor is None:
        processor = Mu2ImageProcessor(spacing=STORED_SPACING_MM, antialias=False)
        preparation: dict[str, Any] = {"spacing": list(STORED_SPACING_MM), "clamp_hu": CLAMP_HU}
    else:
        preparation = processor.preparation
    _claim(out, {"form": form, "preparation": preparation})
    plan = write_plan(undecoded(rows), out / ".plan" / split, volumes_per_shard)
    work = ShardWork(plan, out, split, form, preparation)
    is_finished = run_tasks(
        _PrepareShard(work, processor.to_dict()),
        plan.num_shards,
        plan.folder / "logs",
        is_done=work.is_done,
        finish=_Finish(work, started, dataset_features(rows)),
        executor=executor,
        workers=workers,
        options=options,
        progress=" shards",
    )
    if not is_finished:
        return Prepared(out, split, False)
    facts = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["splits"][split]
    with (out / "defects" / f"{split}.jsonl").open(encoding="utf-8") as lines:
        left_out = {line["study_id"]: line["reason"] for line in map(json.loads, lines)}
    return Prepared(out, split, True, facts["rows"], facts["volumes"], left_out)


class PreparedStudies:
    """The rows of one split of a prepared folder, for a `DataLoader`: needs neither `datasets` nor nibabel.

    Rows are dictionaries with the columns they were prepared with; `images` holds references that a processor takes.
    The folder may have been moved. Rows are read from the file as they are asked for.
    """

    def __init__(self, folder: str | Path, split: str = "train"):
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100
        self.path = self.folder / f"{split}.jsonl"
        if not self.path.is_file():
            there = sorted(path.stem for path in self.folder.glob("*.jsonl"))
            raise ValueError(
                f"A prepared folder has one file of rows per split, no `{split}.jsonl` is in `{folder}`, which has "
                f"{there or 'none'}. Make one with `hf-mu2 data prepare`, or choose another split."
            )
        self._offsets = [0]
        with self.path.open("rb") as lines:
            for line in lines:
                self._offsets.append(self._offsets[-1] + len(line))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        with self.path.open("rb") as stream:
            stream.seek(self._offsets[index])
            row = json.loads(stream.read(self._offsets[index + 1] - self._offsets[index]))
        return row | {"images": [moved(image, self.folder) for image in row["images"]]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


def relocate(folder: str | Path) -> int:
    """Point the rows of a prepared folder that was moved at where it lies now; return how many rows there are."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100
    if not (folder / "manifest.json").is_file():
        raise ValueError(
            f"Only a prepared folder can be relocated, `{folder}` has no `manifest.json`. Pass the folder that "
            "`hf-mu2 data prepare` wrote."
        )
    count = 0
    for path in sorted(folder.glob("*.jsonl")):
        with replacing(path) as partial, partial.open("w", encoding="utf-8") as lines:
            for row in PreparedStudies(folder, path.stem):
                lines.write(to_line(row, sort=False))
                count += 1
    card = folder / "README.md"
    replace_text(card, re.sub(r"Rows [0-9a-f]{16}\.", _about_rows(folder), card.read_text(encoding="utf-8")))
    return count


def moved(image: str, folder: Path) -> str:
    """Write an entry of `images` as one under `folder`: the last three parts of its path stay."""
    if not image.startswith("{"):
        return str(folder.joinpath(*Path(image).parts[-4:]))
    fields = json.loads(image)
    shard = folder.joinpath(*Path(fields["prepared"]).parts[-3:])
    return prepared_reference(shard, fields["volume"], fields["key"])


@dataclass(frozen=True)
class _PrepareShard:
    """The task of one rank: its shard."""

    work: ShardWork
    processor: Mapping[str, Any]

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        processor = Mu2ImageProcessor.from_dict(dict(self.processor))
        form = "tensors" if self.work.form == "tensors" else "whole"
        self.work.write(rank, lambda source: processor.prepare(source, form))


@dataclass(frozen=True)
class _Finish:
    """The last task: rows with references, the list of defects, the manifest and the card."""

    work: ShardWork
    started: float
    features: Any

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        work, plan = self.work, self.work.plan
        key = preparation_key(work.preparation)
        images: list[str | dict[str, Any]] = []
        files: list[dict[str, Any]] = []
        for number in range(plan.num_shards):
            statement = json.loads(work.statement(number).read_text(encoding="utf-8"))
            files += statement["files"]
            by_name = {
                Path(file["path"]).name.split(".")[0]: work.out / file["path"] for file in statement["files"]
            }
            for volume in statement["volumes"]:
                if "reason" in volume:
                    images.append(volume)
                elif work.form == "tensors":
                    shard = work.out / statement["files"][0]["path"]
                    images.append(prepared_reference(shard, volume["volume"], key))
                else:
                    images.append(str(by_name[volume["volume"]]))
        num_rows = _write_rows(work.out, work.split, plan, images)
        self._clean(files)
        self._write_manifest(num_rows, files, images, key)

    def _clean(self, files: list[dict[str, Any]]) -> None:
        """Remove what an earlier run with other volumes left."""
        kept = {self.work.out / file["path"] for file in files}
        kept |= {self.work.statement(number) for number in range(self.work.plan.num_shards)}
        for folder in ("shards", "volumes"):
            for path in (self.work.out / folder / self.work.split).rglob("*"):
                if path.is_file() and path not in kept:
                    path.unlink()

    def _write_manifest(
        self, num_rows: int, files: list[dict[str, Any]], images: list[str | dict[str, Any]], key: str
    ) -> None:
        work, path = self.work, self.work.out / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["splits"][work.split] = {
            "rows": num_rows,
            "rows_left_out": work.plan.num_rows - num_rows,
            "volumes": sum(isinstance(image, str) for image in images),
            "volumes_refused": sum(not isinstance(image, str) for image in images),
            "shards": work.plan.num_shards,
            "bytes": sum(file["bytes"] for file in files),
            "files": files,
            "times": {"started": round(self.started, 1), "finished": round(time.time(), 1)},
        }
        manifest |= {"key": key, "loss": LOSS[work.form], "versions": _versions()}
        replace_text(path, json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
        replace_text(work.out / "README.md", _card(work.out, manifest, self.features))


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Begin a manifest, or check that the one at hand has the same settings."""
    path = out / "manifest.json"
    if path.exists():
        own = json.loads(path.read_text(encoding="utf-8"))
        if any(own.get(name) != settings[name] for name in settings):
            begun = {name: own.get(name) for name in settings}
            raise ValueError(
                f"A prepared folder holds one form and one processor's settings, `{out}` was begun with {begun}, now "
                f"{settings}. Choose another folder, or delete it."
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({**settings, "splits": {}}, indent=1, sort_keys=True) + "\n")


def _write_rows(out: Path, split: str, plan: Plan, images: list[str | dict[str, Any]]) -> int:
    """Write the rows whose volumes are all there, and list the others; return how many were written."""
    count = 0
    with (
        replacing(out / f"{split}.jsonl") as rows_path,
        replacing(out / "defects" / f"{split}.jsonl") as defects_path,
        rows_path.open("w", encoding="utf-8") as row_lines,
        defects_path.open("w", encoding="utf-8") as defect_lines,
    ):
        for row in plan.rows():
            own = [images[number] for number in row["images"]]
            refused = [image for image in own if isinstance(image, dict)]
            for index, image in enumerate(own):
                if isinstance(image, dict):
                    defect = {"study_id": row["study_id"], "image": index, "reason": image["reason"]}
                    defect_lines.write(to_line(defect, sort=False))
            if not refused:
                row_lines.write(to_line({**row, "images": own}, sort=False))
                count += 1
    return count


def _card(out: Path, manifest: Mapping[str, Any], features: Any) -> str:
    """Write the README that tells `load_dataset` which files are rows, and of which types."""
    from huggingface_hub import DatasetCardData

    splits = [{"split": name, "path": f"{name}.jsonl"} for name in manifest["splits"]]
    config = {"config_name": "default", "description": _about_rows(out), "data_files": splits}
    data = DatasetCardData(configs=[config])
    if features is not None:
        from datasets import DatasetInfo, List, Value
        from datasets.info import DatasetInfosDict

        stored = features.copy()
        stored["images"] = List(Value("string"))
        stored.setdefault("study_id", Value("string"))
        DatasetInfosDict(default=DatasetInfo(features=stored)).to_dataset_card_data(data)
    counts = "\n".join(
        f"- `{name}`: {facts['rows']:,} rows, {facts['volumes']:,} volumes, {facts['rows_left_out']:,} rows left out"
        for name, facts in manifest["splits"].items()
    )
    return (
        f"---\n{data.to_yaml()}\n---\n\n# Prepared volumes\n\nMade by `hf-mu2 data prepare`, form "
        f"`{manifest['form']}`. Loss: {manifest['loss']}. The terms of the corpus hold for this copy too.\n\n{counts}\n"
    )


def _about_rows(folder: Path) -> str:
    """Tell rows from other rows: `datasets` caches a folder by its name and this text, not by what its files hold."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as rows:
            digest.update(hashlib.file_digest(rows, "sha256").digest())
    return f"Rows {digest.hexdigest()[:16]}."


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("hf-mu2", "numpy", "torch", "transformers")}
