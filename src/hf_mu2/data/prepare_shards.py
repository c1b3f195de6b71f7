"""Write one shard of prepared volumes, whole or not at all.

Reads: the volumes of a shard of a plan.
Writes: `00000.safetensors`, or a file per volume for the storage forms; then `00000.json`, which states what was
written and from what. A shard without its statement, or of another size than it says, is unfinished.
"""

from __future__ import annotations

import json
import os
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hf_mu2.files import replace_text, replacing
from hf_mu2.model.volume_mu2 import OutOfDomainWarning, VolumeError, shard_metadata

from .work_list import Plan, fingerprint, source_files, to_line

FORMS = ("tensors", "preprocessed", "preprocessed_numpy")
LOSS = {
    "tensors": "HU rounded to integers: at most 0.5 HU off; values beyond +-32,768 HU are clipped",
    "preprocessed": "HU clamped to +-1000 and rounded to integers: at most 0.5 HU off",
    "preprocessed_numpy": "HU clamped to +-1000 and divided by 1000, float32: no rounding",
}
CLAMP_HU = 1000.0  # METHOD: [-1000, 1000]
_ROOM = 8192  # bytes of a shard's header kept per volume, and once more

Prepare = Callable[[str], tuple[np.ndarray, dict[str, Any]]]


@dataclass(frozen=True)
class ShardWork:
    """What every shard of a split is made with: the plan, the folder, the form and the settings it depends on."""

    plan: Plan
    out: Path
    split: str
    form: str
    preparation: Mapping[str, Any]

    def statement(self, number: int) -> Path:
        return self.out / "shards" / self.split / f"{number:05d}.json"

    def fingerprint(self, number: int) -> str:
        return fingerprint(self.plan.shard(number), {"form": self.form, **self.preparation})

    def is_done(self, number: int) -> bool:
        """Tell whether a shard is there, whole by its size, and made from the sources and settings of today."""
        try:
            statement = json.loads(self.statement(number).read_text(encoding="utf-8"))
            sizes = [(self.out / file["path"]).stat().st_size == file["bytes"] for file in statement["files"]]
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        return all(sizes) and statement["fingerprint"] == self.fingerprint(number)

    def volumes(self, number: int) -> list[dict[str, Any]]:
        """Return what became of each volume of a finished shard: its name in the store, or why it was refused."""
        return json.loads(self.statement(number).read_text(encoding="utf-8"))["volumes"]

    def write(self, number: int, prepare: Prepare) -> None:
        """Prepare the volumes of a shard and write it; what is wrong with a volume is stated in its place."""
        statement = self.statement(number)
        statement.unlink(missing_ok=True)  # from here on the shard is unfinished
        lines = self.plan.shard(number)
        records: list[dict[str, Any]] = []
        items = _prepared(lines, prepare, records)
        if self.form == "tensors":
            files = self._write_tensors(statement.with_suffix(".safetensors"), items, len(lines))
        else:
            files = [self._write_file(number, *item) for item in items]
        stated = {
            "fingerprint": self.fingerprint(number),
            "files": [
                {
                    "path": path.relative_to(self.out).as_posix(),
                    "bytes": path.stat().st_size,
                    "sha256": _digest(path),
                }
                for path in files
            ],
            "volumes": records,
        }
        replace_text(statement, to_line(stated))

    def _write_tensors(
        self, path: Path, items: Iterator[tuple[str, np.ndarray, dict[str, Any]]], count: int
    ) -> list[Path]:
        """Write volumes one after the other into a safetensors file; its header, known last, is kept room for."""
        room = _ROOM * (count + 1)
        header: dict[str, Any] = {}
        facts: dict[str, dict[str, Any]] = {}
        end = 0
        with replacing(path) as partial, partial.open("wb") as stream:
            stream.write((room).to_bytes(8, "little") + b" " * room)
            for name, hu, fact in items:
                stream.write(np.ascontiguousarray(hu).data)
                header[name] = {
                    "dtype": "I16",
                    "shape": list(hu.shape),
                    "data_offsets": [end, end + hu.nbytes],
                }
                facts[name] = fact
                end += hu.nbytes
            header["__metadata__"] = shard_metadata(self.preparation, facts)
            text = to_line(header)[:-1].encode()
            assert len(text) <= room, f"a header of {len(text)} bytes for {count} volumes"
            stream.seek(8)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        return [path]

    def _write_file(self, number: int, name: str, hu: np.ndarray, fact: dict[str, Any]) -> Path:
        """Write one volume in a storage form."""
        clamped = np.clip(hu, -CLAMP_HU, CLAMP_HU)
        ending = ".nii.gz" if self.form == "preprocessed" else ".npy"
        path = self.out / "volumes" / self.split / f"{number:05d}" / f"{name}{ending}"
        with replacing(path) as partial:
            if self.form == "preprocessed_numpy":  # (z, x, y), as the paper saves them
                np.save(partial, (clamped / np.float32(CLAMP_HU)).transpose(0, 2, 1))
            else:
                import nibabel

                voxels = np.rint(clamped).astype(np.int16).transpose(2, 1, 0)
                nibabel.save(nibabel.Nifti1Image(voxels, np.array(fact["affine"])), partial)
        return path


def _prepared(
    lines: list[str], prepare: Prepare, records: list[dict[str, Any]]
) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Yield name, HU and facts of every readable volume, and note one record per volume, readable or not."""
    written: set[str] = set()
    for volume in map(json.loads, lines):
        try:
            name = content_key(volume["source"])
            if name not in written:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", OutOfDomainWarning)  # what `hf-mu2 data check` tells
                    hu, facts = prepare(volume["source"])
                yield name, hu, facts
                written.add(name)
            records.append({"volume": name})
        except ValueError as error:  # an OSError, such as a full disk, ends the run instead
            records.append({"reason": str(error), **{key: volume[key] for key in ("study_id", "image")}})


def content_key(source: str) -> str:
    """Name a volume by the content of its files and what its reference adds, wherever the files lie.

    Raises:
        VolumeError: if nothing is there, or an archive lacks the member.
    """
    fields = json.loads(source) if source.startswith("{") else {"path": source}
    digest = sha256(to_line({name: value for name, value in fields.items() if name != "path"}).encode())
    files = source_files(source)
    if not files:
        raise VolumeError(
            f"A volume must exist on this machine, nothing is at `{fields['path']}`. Check the path."
        )
    for file in files:
        with file.open("rb") as stream:
            part = (
                _member_digest(stream, file, fields["member"])
                if "member" in fields
                else _stream_digest(stream)
            )
        digest.update(part)
    return digest.hexdigest()[:32]


def _member_digest(stream: BinaryIO, path: Path, name: str) -> bytes:
    try:
        with tarfile.open(fileobj=stream) as archive:
            member = next((info for info in archive if info.name == name), None)
            content = archive.extractfile(member) if member is not None else None
            if content is not None:
                return _stream_digest(content)
    except tarfile.TarError as error:
        raise VolumeError(
            f"`{path.name}` is no tar archive or is damaged ({error}). Download it again."
        ) from error
    raise VolumeError(f"An archive must hold the volume it is asked for, `{path.name}` has no `{name}`.")


def _stream_digest(stream: Any) -> bytes:
    return file_digest(stream, "sha256").digest()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()
