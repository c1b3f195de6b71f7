"""CT-RATE: chest CT volumes of 21,304 patients with reports and 18 predicted labels, in both released versions.

Reads: `dataset/{train,valid}[_fixed]`, `radiology_text_reports`, `multi_abnormality_labels`, `metadata` and `vqa`, as
on the Hub (`ibrahimhamamci/CT-RATE`, gated).
Licence: CC BY-NC-SA 4.0; research only, no redistribution, no re-identification.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .corpus import CorpusError, CorpusInfo, Drops, cut_validation, inside
from .csv_index import CsvIndex
from .ct_rate_geometry import GEOMETRY_COLUMNS, GeometryError, choice_order, is_long, v1_reference
from .ct_rate_names import PARTS, VolumeName, by_scan, find_spelled, spelled, volume_key, volume_name
from .ct_rate_vqa import VqaIndex
from .study import FINDING_LABELS, make_study

INFO = CorpusInfo(
    name="ct_rate",
    title="CT-RATE",
    licence="cc-by-nc-sa-4.0",
    terms="Gated: research only, no redistribution, no re-identification; derived work under the same licence.",
    url="https://huggingface.co/datasets/ibrahimhamamci/CT-RATE",
    citation="Hamamci et al., 2024, https://huggingface.co/papers/2403.17834",
    egress=False,
    redistributable=False,
    regions=("chest",),
    split_policy="Official validation is test; a share of the patients of official train is validation.",
)
# As src/hlip_train/data_chest_ct.py of HLIP leaves them out.
DAMAGED = frozenset(("train_1267_a_4", "train_11755_a_3", "train_11755_a_4"))


_TABLES = {
    "reports": "radiology_text_reports/{}_reports.csv",
    "labels": "multi_abnormality_labels/{}_predicted_labels.csv",
    "metadata": "metadata/{}_metadata.csv",
    "no_chest": "metadata/no_chest_{}.txt",
    "vqa": "vqa/{}_vqa.json",
}
_VERSIONS = {"fixed": "{}_fixed", "v1": "{}"}
_TEXT_COLUMNS = {
    "findings": "Findings_EN",
    "impression": "Impressions_EN",
    "indication": "ClinicalInformation_EN",
    "technique": "Technique_EN",
}
_LABEL_CELLS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "": None, "nan": None}
_STRAY = re.compile(r"[•\"“”]")
_FACTS = {
    "sex": "PatientSex",
    "age": "PatientAge",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "kernel": "ConvolutionKernel",
    "slice_spacing_mm": "ZSpacing",
}


def read_studies(
    root: Path,
    drops: Drops,
    *,
    version: str = "auto",
    reconstructions: str = "one",
    require_volumes: bool = True,
    require_reports: bool = True,
    vqa: bool = False,
    validation_share: float = 0.05,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yield the scans of CT-RATE in the order of part, patient, scan and reconstruction.

    Every scan (every volume, with `reconstructions="all"`) is yielded once or dropped once.

    Args:
        root (`Path`): The folder that holds `dataset`, or `dataset` itself.
        version (`str`): `"fixed"` (HU, geometry in the header), `"v1"` (blank headers: spacing and rescale from the
            metadata csv), or `"auto"`: fixed where the file is there, v1 otherwise.
        reconstructions (`str`): `"one"` per scan: of those that are there, one series before a stack of several, then
            the thinnest slices, then a soft kernel, then the lowest number. Or `"all"`, a study each.
        require_volumes (`bool`): Drop scans without a volume. With `False` they are kept, `images` empty.
        require_reports (`bool`): Drop scans without a report. With `False` labels or questions are enough.
        vqa (`bool`): Attach the questions of `vqa/*.json`.
        validation_share (`float`): Share of the patients of official train that become `"validation"`.
        seed (`int`): Of the cut.

    Raises:
        CorpusError: if a needed table is missing, damaged or lacks a column.
    """
    for option, value, known in (
        ("version", version, ("auto", *_VERSIONS)),
        ("reconstructions", reconstructions, ("one", "all")),
    ):
        if value not in known:
            raise CorpusError(f"`{option}` is one of {known}, got {value!r}. Pass one of them.")
    base = dataset_folder(root)
    versions = tuple(_VERSIONS) if version == "auto" else (version,)
    if require_volumes and not any(_folders(base, part, versions) for part in PARTS):
        raise CorpusError(
            f"`{base}` must hold volumes under {', '.join(spelled(_VERSIONS[versions[0]], *PARTS))}, it has "
            f"{sorted(entry.name for entry in base.iterdir())}. Download them, pass the other `version`, or "
            "`require_volumes=False` for text and labels alone."
        )
    is_there = False
    for name in PARTS:
        with ExitStack() as stack:
            part = _Part(base, name, versions, stack, drops, vqa=vqa, need_reports=require_reports)
            is_there |= part.is_there
            for scan in part.scans():
                for study in [[volume] for volume in scan] if reconstructions == "all" else [scan]:
                    study_id = study[0].text if reconstructions == "all" else study[0].scan
                    usable = part.usable(study_id, study, require_volumes)
                    if not usable:
                        continue
                    chosen = min(usable, key=part.preference)
                    split = (
                        cut_validation(chosen.patient, validation_share, seed) if name == "train" else "test"
                    )
                    row = part.row(study_id, split, chosen, scan, usable[chosen])
                    if require_reports and not (row["findings"] or row["impression"]):
                        drops.drop("no report, or an empty one", study_id)
                    else:
                        yield row
    if not is_there:
        raise _missing(base, PARTS, "reports" if require_reports else "labels", "")


@dataclass(frozen=True)
class LabelTable:
    """The 18 labels of every scan.

    Args:
        study_ids, patient_ids, splits (`list[str]`): One per scan, as `read_studies` names and orders them.
        labels (`np.ndarray` of shape `(scans, 18)`, int8): 1 present, 0 absent, -1 unknown, in the order of
            `FINDING_LABELS`.
    """

    study_ids: list[str]
    patient_ids: list[str]
    splits: list[str]
    labels: np.ndarray


def label_table(root: str | Path, *, validation_share: float = 0.05, seed: int = 0) -> LabelTable:
    """Read the labels of all scans from the label tables alone.

    Scans that `read_studies` would drop are among them; join by study id.

    Raises:
        CorpusError: if there is no label table, or one that is damaged.
    """
    base = dataset_folder(Path(root))
    scans: list[VolumeName] = []
    labels: list[list[int]] = []
    for name in PARTS:
        path = find_spelled(base, name, _TABLES["labels"])
        if path is None:
            continue
        with CsvIndex(path, "VolumeName", FINDING_LABELS, volume_key, Drops()) as table:
            for scan in by_scan(table):
                scans.append(scan[0])
                values = _labels(table.rows(scan[0].text)[0], path.name)
                labels.append([-1 if value is None else value for value in values.values()])
    if not scans:
        raise _missing(base, PARTS, "labels", "")
    return LabelTable(
        [scan.scan for scan in scans],
        [scan.patient for scan in scans],
        [
            cut_validation(scan.patient, validation_share, seed) if scan.part == "train" else "test"
            for scan in scans
        ],
        np.array(labels, np.int8),
    )


def dataset_folder(root: Path) -> Path:
    """Return `root/dataset`, or `root` if it is that folder."""
    return root / "dataset" if (root / "dataset").is_dir() else root


class _Part:
    """The tables and volumes of one official part."""

    def __init__(
        self,
        base: Path,
        name: str,
        versions: tuple[str, ...],
        stack: ExitStack,
        drops: Drops,
        *,
        vqa: bool,
        need_reports: bool,
    ):
        self.base, self.name, self.drops = base, name, drops
        self.volumes = _volumes(_folders(base, name, versions), name, drops)
        paths = {table: find_spelled(base, name, _TABLES[table]) for table in _TABLES}
        self.is_there = bool(self.volumes) or any(paths.values())
        if self.is_there and need_reports and paths["reports"] is None:
            raise _missing(base, [name], "reports", "or pass `require_reports=False` for labels alone")
        if self.is_there and paths["reports"] is None and paths["labels"] is None:
            raise _missing(base, [name], "labels", "a volume without report and labels is no study")
        if self.volumes and paths["no_chest"] is None:
            drops.note(f"no_chest_{name}.txt is missing: heads and others are not left out", name)
        if vqa and self.is_there and paths["vqa"] is None:
            raise _missing(base, [name], "vqa", "or pass `vqa=False`")

        def table(kind: str, columns: Sequence[str]) -> CsvIndex | None:
            path = paths[kind]
            if path is None:
                return None
            return stack.enter_context(CsvIndex(path, "VolumeName", columns, volume_key, drops))

        self.reports = table("reports", (_TEXT_COLUMNS["findings"], _TEXT_COLUMNS["impression"]))
        self.labels = table("labels", FINDING_LABELS)
        self.metadata = table("metadata", GEOMETRY_COLUMNS)
        self.not_chest = _no_chest(paths["no_chest"], drops)
        self.questions = None
        if vqa and paths["vqa"] is not None:
            self.questions = stack.enter_context(VqaIndex(paths["vqa"], volume_key, drops))

    def scans(self) -> Iterator[list[VolumeName]]:
        """Yield the volumes of each scan that a report, a label or a file names."""
        return by_scan({*(self.reports or ()), *(self.labels or ()), *self.volumes})

    def usable(self, study_id: str, study: list[VolumeName], require_volumes: bool) -> dict[VolumeName, str]:
        """Return the reconstructions that can be used and the image of each, `""` for none; count the others."""
        images, refusals = {}, {}
        for volume in study:
            try:
                images[volume] = self._image(volume, require_volumes)
            except _Refused as error:
                refusals[volume] = str(error)
        if not images:
            self.drops.drop(refusals[study[0]], study_id)
        else:
            for volume, reason in refusals.items():
                self.drops.note(f"another reconstruction is used: {reason}", volume.text)
        return images

    def _image(self, volume: VolumeName, required: bool) -> str:
        if volume.text in self.not_chest:
            raise _Refused("on the no_chest list")
        if volume.text in DAMAGED:
            raise _Refused("damaged, as HLIP found")
        for folder in self.volumes.get(volume.text, ()):
            try:
                path = inside(self.base, folder / _nested(volume))
            except CorpusError:
                raise _Refused("a link that leaves the root") from None
            if folder.name.endswith("_fixed"):
                return str(path)
            if self.metadata is None:
                raise _missing(
                    self.base, [self.name], "metadata", "v1 headers are blank; or use the fixed files"
                )
            try:
                return v1_reference(path, self._facts(volume) or {})
            except GeometryError as error:
                raise _Refused(f"v1: {error}") from None
        if required:
            raise _Refused("the volume is missing")
        return ""

    def _facts(self, volume: VolumeName) -> dict[str, str] | None:
        rows = self.metadata.rows(volume.text) if self.metadata else []
        return rows[0] if rows else None

    def preference(self, volume: VolumeName) -> tuple[bool, float, int, int]:
        return *choice_order(self._facts(volume)), volume.reconstruction

    def row(
        self, study_id: str, split: str, chosen: VolumeName, scan: list[VolumeName], image: str
    ) -> dict[str, Any]:
        """Make the row of a study; text and labels come from another reconstruction where the chosen has none."""
        facts = self._facts(chosen) or {}
        if facts and is_long(facts):
            self.drops.note("longer than a chest: several series, or more of the body", study_id)
        if not image:
            self.drops.note("kept without its volume", study_id)
        texts: dict[str, Any] = self._texts(study_id, chosen, scan)
        metadata: dict[str, Any] = {
            name: facts[column] for name, column in _FACTS.items() if facts.get(column)
        }
        metadata |= {"volume": chosen.text, "reconstructions": len(scan)}
        if image:
            metadata["version"] = "v1" if image.startswith("{") else "fixed"
        return make_study(
            study_id,
            corpus=INFO.name,
            split=split,
            egress=INFO.egress,
            patient_id=chosen.patient,
            images=[image] if image else [],
            labels=self._study_labels(study_id, chosen, scan),
            questions=self.questions.questions(name.text for name in scan) if self.questions else (),
            region="chest",
            metadata=metadata,
            **texts,
        )

    def _texts(self, study_id: str, chosen: VolumeName, scan: list[VolumeName]) -> dict[str, str]:
        rows = self._rows(self.reports, study_id, chosen, scan)
        if not rows:
            return {}
        texts = {}
        for name, column in _TEXT_COLUMNS.items():
            texts[name], remark = clean_text(rows[0].get(column, ""))
            if remark and name in ("findings", "impression"):
                self.drops.note(f"{name}: {remark}", study_id)
        return texts

    def _study_labels(
        self, study_id: str, chosen: VolumeName, scan: list[VolumeName]
    ) -> dict[str, int | None]:
        rows = self._rows(self.labels, study_id, chosen, scan)
        if not rows:
            self.drops.note("without labels", study_id)
            return {}
        values = _labels(rows[0], self.labels.path.name)
        if None in values.values():
            self.drops.note("a label is empty: unknown", study_id)
        return values

    def _rows(
        self, table: CsvIndex | None, study_id: str, chosen: VolumeName, scan: list[VolumeName]
    ) -> list[dict[str, str]]:
        """Return the rows of a scan, the chosen reconstruction first, and count those that disagree or repeat."""
        if table is None:
            return []
        found: list[dict[str, str]] = []
        for volume in (chosen, *(other for other in scan if other != chosen)):
            rows = table.rows(volume.text)
            if len(rows) > 1:
                self.drops.note(f"repeated in {table.path.name}: its first row is used", volume.text)
            found += rows[:1]
        if any({**row, "VolumeName": ""} != {**found[0], "VolumeName": ""} for row in found[1:]):
            self.drops.note(f"reconstructions differ in {table.path.name}", study_id)
        return found


class _Refused(Exception):
    """Why a reconstruction is not used."""


def clean_text(text: str) -> tuple[str, str]:
    """Return report text without what the release left in it, and a remark about what that was, if anything.

    "Not given." and NaN become empty; stray quotation marks and bullets go; white space becomes single spaces.
    """
    plain = " ".join(text.split())
    if plain.lower() in ("", "nan"):
        return "", "empty"
    if plain.lower().rstrip(".") == "not given":
        return "", "not given"
    tidy = " ".join(_STRAY.sub(" ", plain).split())
    return tidy, "" if tidy == plain else "stray quotation marks or bullets removed"


def _labels(row: Mapping[str, str], table: str) -> dict[str, int | None]:
    """Read 18 cells of 0 and 1; an empty one is unknown."""
    values = {}
    for label in FINDING_LABELS:
        text = row[label].strip()
        if text not in _LABEL_CELLS:
            raise CorpusError(
                f"Labels in `{table}` must be 0 or 1, `{label}` of {row['VolumeName']} is {text[:20]!r}. Threshold "
                "probabilities first, or download the table again."
            )
        values[label] = _LABEL_CELLS[text]
    return values


def _volumes(folders: list[Path], part: str, drops: Drops) -> dict[str, tuple[Path, ...]]:
    """Find the volumes below the folders of a part; each with the folders that have it, best first."""
    volumes: dict[str, tuple[Path, ...]] = {}
    for folder in folders:
        for path in folder.glob("*/*/*.nii.gz"):
            name = volume_name(path.name)
            if name is None or name.part != part or folder / _nested(name) != path:
                drops.drop("file whose name or folder is not CT-RATE's", path.name[:60])
            else:
                volumes[name.text] = (*volumes.get(name.text, ()), folder)
    return volumes


def _nested(name: VolumeName) -> str:
    """Return the place of a volume below the folder of its part."""
    return f"{name.patient}/{name.scan}/{name.text}.nii.gz"


def _no_chest(path: Path | None, drops: Drops) -> frozenset[str]:
    """Read a list of volumes, one name or path per line."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
    names = [(line, volume_key(line.strip().rsplit("/", 1)[-1])) for line in lines if line.strip()]
    for line, name in names:
        if name is None:
            drops.note("line of a no_chest list that names no volume", line[:60])
    return frozenset(name for _, name in names if name)


def _folders(base: Path, part: str, versions: Iterable[str]) -> list[Path]:
    """Return the folders of volumes that are there, in the order of `versions`."""
    names = [name for version in versions for name in spelled(_VERSIONS[version], part)]
    return [base / name for name in names if (base / name).is_dir()]


def _missing(base: Path, parts: Iterable[str], table: str, way_out: str) -> CorpusError:
    names = " or ".join(f"`{name}`" for name in spelled(_TABLES[table], *parts))
    there = sorted(entry.name for entry in base.iterdir())[:12] if base.is_dir() else "no such folder"
    return CorpusError(
        f"CT-RATE needs {names} under `{base}`, found {there}. Download it into the same folder"
        f"{f', {way_out}' if way_out else ''}."
    )
