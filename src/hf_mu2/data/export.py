"""Write a corpus, or a training view of it, as a folder that `load_dataset` and TRL open without this package.

Reads: the archive of a corpus.
Writes: `data/<split>-00000-of-00001.parquet` whose `images` are the paths of the archive; or, with the volumes copied,
`<split>/metadata.parquet` beside NIfTI files; or `<split>.jsonl` for text alone. And `manifest.json`.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from hf_mu2.files import replace_text, replacing
from hf_mu2.model.volume_mu2 import load_volume
from hf_mu2.tables import in_batches

from .build import corpus_info, is_nifti_path, write_tables
from .corpus import CorpusError
from .nifti import save_nifti
from .views import view_dataset

MANIFEST = "manifest.json"


def export_corpus(
    name: str,
    root: str | Path,
    out: str | Path,
    *,
    view: str = "study",
    split: str | None = None,
    copy_volumes: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Write a corpus as a folder for `load_dataset`.

    Without copies the folder is small and names the archive's files where they are now: it serves this machine. With
    copies it stands alone. A plain NIfTI is copied byte by byte; anything else (a reference with spacing or rescale, a
    DICOM series) is written as NIfTI in HU, with the geometry in its header. A killed run continues where it was.

    Args:
        view (`str`): `"study"` (the schema's own columns), `"sft"`, `"impression"` (text alone) or `"vqa"`.
        split (`str`, *optional*): Only this split.
        copy_volumes (`bool`): Put the volumes into the folder.
        options: Options of the builder, see its `read_studies`.

    Returns:
        `dict`: the manifest. `failed` maps studies whose volumes could not be read, and which are left out, to why.

    Raises:
        CorpusError: if the corpus is not what its layout says, the split is empty, or `out` holds something else.
    """
    from datasets import Dataset, DatasetDict

    out, info = Path(out), corpus_info(name)
    with TemporaryDirectory(prefix="hf_mu2_") as cache:
        survey, tables = write_tables(name, root, Path(cache), **options)
        wanted = [part for part in survey.studies if split in (None, part)]
        if not wanted:
            raise CorpusError(
                f"A split must have studies, `{split or 'every split'}` of `{name}` has none; there are "
                f"{survey.studies or 'no studies at all'}. See `hf-mu2 data inspect {name}`."
            )
        studies = DatasetDict({part: Dataset.from_file(str(tables / f"{part}.arrow")) for part in wanted})
        rows = studies if view == "study" else view_dataset(studies, view)
        settings = {
            "corpus": name,
            "view": view,
            "splits": wanted,
            "copy_volumes": copy_volumes,
            "options": options,
            "rows_digest": survey.digest,
        }
        claim_folder(out, settings)
        failed: dict[str, str] = {}
        counts: dict[str, int] = {}
        for part, dataset in rows.items():
            batches = dataset.with_format("arrow").iter(batch_size=256)
            plain = (row for table in batches for row in table.to_pylist())
            if "images" not in dataset.features:
                counts[part] = write_lines(out / f"{part}.jsonl", plain)
            elif copy_volumes:
                copied = _copy_volumes(
                    out / part, tqdm(plain, total=len(dataset), desc=part, disable=None), failed
                )
                counts[part] = write_parquet(
                    out / part / "metadata.parquet", copied, _copied(dataset.features)
                )
            else:
                place = out / "data" / f"{part}-00000-of-00001.parquet"
                counts[part] = write_parquet(place, plain, dataset.features)
    manifest = {
        **settings,
        "complete": True,
        "rows": counts,
        "failed": failed,
        **survey.drops.to_dict(),
        "licence": info.licence,
        "terms": info.terms,
        "split_policy": info.split_policy,
        "root": Path(root).name,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {
            package: version(package) for package in ("hf-mu2", "datasets", "pyarrow", "numpy", "nibabel")
        },
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    replace_text(out / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def claim_folder(out: Path, settings: Mapping[str, Any]) -> None:
    """Begin a folder, or continue one that was begun with the same settings on the same rows."""
    if out.is_dir() and any(out.iterdir()):
        record = out / MANIFEST
        try:
            begun = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        except ValueError:  # not ours, or damaged
            begun = {}
        if not isinstance(begun, dict) or {key: begun.get(key) for key in settings} != json.loads(
            json.dumps(settings)
        ):
            raise CorpusError(
                f"A folder is continued only with the corpus and settings it was begun with, `{out}` holds something "
                "else. Choose an empty folder."
            )
    else:
        replace_text(out / MANIFEST, json.dumps({**settings, "complete": False}, indent=2) + "\n")


def _copied(features: Any) -> Any:
    """Rename `images` as `load_dataset` wants it beside files: a column of names that becomes `List(Nifti())`."""
    from datasets import Features, List, Value

    names = {"images_file_names": List(Value("string"))}
    return Features(names | {column: kind for column, kind in features.items() if column != "images"})


def _copy_volumes(
    folder: Path, rows: Iterable[dict[str, Any]], failed: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Put the volumes of every row into `folder`; rows of one study, such as its questions, share them."""
    for row in rows:
        study_id = row["study_id"]
        entries = [entry["path"] if isinstance(entry, dict) else entry for entry in row.pop("images")]
        try:
            names = [_copy_volume(entry, folder, f"{study_id}.{k}") for k, entry in enumerate(entries)]
        except (ValueError, OSError) as error:
            failed[study_id] = str(error)
            continue
        yield {"images_file_names": names, **row}


def _copy_volume(entry: str, folder: Path, stem: str) -> str:
    """Copy a NIfTI with its time stamp, which tells a finished copy; write anything else as NIfTI in HU."""
    if not is_nifti_path(entry):
        place = folder / f"{stem}.nii.gz"
        if not place.exists():
            _write_nifti(entry, place)
        return place.name
    source = Path(entry)
    place = folder / (stem + (".nii.gz" if source.name.lower().endswith(".gz") else ".nii"))
    wanted = source.stat()
    if (
        place.exists()
        and place.stat().st_size == wanted.st_size
        and place.stat().st_mtime_ns == wanted.st_mtime_ns
    ):
        return place.name
    with replacing(place) as partial:
        shutil.copyfile(source, partial)
        shutil.copystat(source, partial)
    return place.name


def _write_nifti(entry: str, place: Path) -> None:
    import nibabel as nib

    volume = load_volume(entry, clamp=False)
    image = nib.Nifti1Image(np.ascontiguousarray(volume.array.transpose(2, 1, 0)), volume.affine)
    image.header.set_xyzt_units("mm")
    save_nifti(image, place)


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], features: Any) -> int:
    """Write rows with the given `datasets.Features`, a few at a time; return how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count = features.arrow_schema, 0
    with replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for batch in in_batches(rows, 256):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as JSON lines; return how many."""
    count = 0
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
