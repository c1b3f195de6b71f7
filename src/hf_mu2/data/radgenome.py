"""RadGenome-ChestCT: CT-RATE volumes with one report per region, masks of the regions and questions.

Reads: `dataset/{train,valid}_preprocessed`, `{train,valid}_region_mask` and `radgenome_files`, as on the Hub
(`RadGenome/RadGenome-ChestCT`). Volumes hold HU.
Licence: derived from CT-RATE, so CC BY-NC-SA 4.0 whatever a later card says; research only.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .corpus import CorpusError, CorpusInfo, Drops, cut_validation, inside
from .csv_index import CsvIndex
from .ct_rate import DAMAGED, clean_text, dataset_folder
from .ct_rate_names import PARTS, VolumeName, by_scan, find_spelled, spelled, volume_key, volume_name
from .study import make_study

INFO = CorpusInfo(
    name="radgenome",
    title="RadGenome-ChestCT",
    licence="cc-by-nc-sa-4.0",
    terms="Derived from CT-RATE: research only, no redistribution, no re-identification.",
    url="https://huggingface.co/datasets/RadGenome/RadGenome-ChestCT",
    citation="Zhang et al., 2024, https://huggingface.co/papers/2404.16754",
    egress=False,
    redistributable=False,
    regions=("chest",),
    split_policy="As CT-RATE: official validation is test; a share of the patients of train is validation.",
)
REGIONS = (
    "abdomen",
    "bone",
    "breast",
    "esophagus",
    "heart",
    "lung",
    "mediastinum",
    "pleura",
    "thyroid",
    "trachea and bronchie",  # sic
)

_KEY = "Volumename"
_REPORTS = "radgenome_files/{}_region_report.csv"
_DISORDERS = "radgenome_files/{}_case_disorders.csv"
_QUESTIONS = {
    "abnormality": ("Anatomy", "Abnormality"),
    "location": ("Anatomy", "Abnormality"),
    "presence": ("Anatomy", "Finding", "Presence"),
    "size": ("Anatomy", "Abnormality", "Size"),
}


def read_studies(
    root: Path,
    drops: Drops,
    *,
    require_volumes: bool = True,
    vqa: bool = False,
    validation_share: float = 0.05,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yield the scans of RadGenome-ChestCT in the order of part, patient and scan, each once or dropped once.

    Study and patient ids are those of CT-RATE, and with the same share and seed so are the splits. `sections` holds
    the text of each region, `metadata` the disorders and the folder of the region masks, relative to the root.

    Args:
        root (`Path`): The folder that holds `dataset`, or `dataset` itself.
        require_volumes (`bool`): Drop scans without a volume. With `False` they are kept, `images` empty.
        vqa (`bool`): Attach the questions of `*_vqa_*.csv`.
        validation_share (`float`): Share of the patients of official train that become `"validation"`.
        seed (`int`): Of the cut.

    Raises:
        CorpusError: if a needed table is missing, damaged or lacks a column.
    """
    base = dataset_folder(root)
    found = False
    for part in PARTS:
        path = find_spelled(base, part, _REPORTS)
        if path is None:
            continue
        found = True
        with ExitStack() as stack:
            reports = stack.enter_context(CsvIndex(path, _KEY, ("Anatomy", "Sentence"), volume_key, drops))
            disorders = _optional(base, part, _DISORDERS, ("Disorders",), stack, drops)
            questions = _question_tables(base, part, stack, drops) if vqa else {}
            volumes = _volumes(base, part, drops)
            for scan in by_scan({*reports, *volumes}):
                chosen = _choose(base, scan, volumes, require_volumes, drops)
                if chosen is None:
                    continue
                name, image = chosen
                rows = next(filter(None, (reports.rows(other.text) for other in (name, *scan))), [])
                findings, sections = _texts(rows, name, drops)
                if not findings:
                    drops.drop("no report, or an empty one", name.scan)
                    continue
                metadata: dict[str, Any] = {"volume": name.text}
                if disorders and (named := disorders.rows(name.text)):
                    metadata["disorders"] = [text.strip() for text in named[0]["Disorders"].split(",")]
                if masks := _masks(base, part, name):
                    metadata["masks"] = str(masks.relative_to(root))
                yield make_study(
                    name.scan,
                    corpus=INFO.name,
                    split=cut_validation(name.patient, validation_share, seed) if part == "train" else "test",
                    egress=INFO.egress,
                    patient_id=name.patient,
                    images=[image] if image else [],
                    findings=findings,
                    sections=sections,
                    questions=_questions(questions, name),
                    region="chest",
                    metadata=metadata,
                )
    if not found:
        names = " or ".join(f"`{name}`" for part in PARTS for name in spelled(_REPORTS, part))
        raise CorpusError(
            f"RadGenome-ChestCT needs {names} under `{base}`, found "
            f"{sorted(entry.name for entry in base.iterdir())[:12]}. Pass the folder that holds `dataset`, or download "
            "the missing part."
        )


def _choose(
    base: Path, scan: list[VolumeName], volumes: Mapping[str, Path], required: bool, drops: Drops
) -> tuple[VolumeName, str] | None:
    """Return the first volume of a scan that can be used, and its path; count the others."""
    usable, refusals = [], {}
    for name in scan:
        path = volumes.get(name.text)
        if name.text in DAMAGED:
            refusals[name] = "damaged, as HLIP found"
        elif path is None and required:
            refusals[name] = "the volume is missing"
        else:
            try:
                usable.append((name, str(inside(base, path)) if path else ""))
            except CorpusError:
                refusals[name] = "a link that leaves the root"
    if not usable:
        drops.drop(refusals[scan[0]], scan[0].scan)
        return None
    for name, _ in usable[1:]:
        refusals[name] = "one is enough"
    for name, reason in refusals.items():
        drops.note(f"another reconstruction is used: {reason}", name.text)
    if not usable[0][1]:
        drops.note("kept without its volume", scan[0].scan)
    return usable[0]


def _texts(
    rows: Sequence[Mapping[str, str]], name: VolumeName, drops: Drops
) -> tuple[str, list[tuple[str, str]]]:
    """Return the whole report and its parts by region; a row without a region is (part of) the whole."""
    parts: dict[str, list[str]] = {}
    for row in rows:
        sentence, _ = clean_text(row["Sentence"])
        if sentence:
            parts.setdefault(_cell(row["Anatomy"]), []).append(sentence)
    whole = " ".join(parts.pop("", []))
    known = [region for region in REGIONS if region in parts]
    others = sorted(set(parts) - set(REGIONS))
    for region in others:
        drops.note(f"region {region!r} is none of the ten", name.scan)
    sections = [(region, " ".join(parts[region])) for region in (*known, *others)]
    if sections and not whole:
        drops.note("no whole report: findings are the regions joined", name.scan)
    return whole or " ".join(text for _, text in sections), sections


def _question_tables(base: Path, part: str, stack: ExitStack, drops: Drops) -> dict[str, CsvIndex]:
    tables = {}
    for kind, columns in _QUESTIONS.items():
        table = _optional(base, part, f"radgenome_files/{{}}_vqa_{kind}.csv", columns, stack, drops)
        if table is not None:
            tables[kind] = table
    if not tables:
        raise CorpusError(
            f"`vqa=True` needs `radgenome_files/{PARTS[part][-1]}_vqa_*.csv` under `{base}`, found none. Download "
            "them, or pass `vqa=False`."
        )
    return tables


def _questions(tables: Mapping[str, CsvIndex], name: VolumeName) -> list[dict[str, str]]:
    """Ask what the tables say of a volume. What shares a question becomes one answer."""
    answers: dict[tuple[str, str], dict[str, None]] = {}
    for kind, table in tables.items():
        for row in table.rows(name.text):
            region = _cell(row["Anatomy"])
            where = f"the {region}" if region else "this CT"
            thing = _cell(row["Finding" if kind == "presence" else "Abnormality"])
            question, answer = {
                "abnormality": (f"Which abnormalities are there in {where}?", thing),
                "location": (f"Where is the {thing}?", region),
                "presence": (f"Is there {thing} in {where}?", _cell(row.get("Presence", ""))),
                "size": (f"How large is the {thing} in {where}?", _cell(row.get("Size", ""))),
            }[kind]
            if thing and answer:
                answers.setdefault((question, kind), {})[answer] = None
    return [
        {"question": question, "answer": ", ".join(found), "kind": kind}
        for (question, kind), found in answers.items()
    ]


def _cell(text: str) -> str:
    text = " ".join(text.split())
    return "" if text.lower() == "nan" else text


def _volumes(base: Path, part: str, drops: Drops) -> dict[str, Path]:
    """Find the volumes of a part. The folder of a scan has no underscore before its letter."""
    volumes: dict[str, Path] = {}
    for folder in spelled("{}_preprocessed", part):
        for path in (base / folder).glob("*/*/*.nii.gz"):
            name = volume_name(path.name)
            if (
                name is None
                or name.part != part
                or path.parts[-3:-1] != (name.patient, name.patient + name.letters)
            ):
                drops.drop("file whose name or folder is not RadGenome's", path.name[:60])
            else:
                volumes[name.text] = path
    return volumes


def _masks(base: Path, part: str, name: VolumeName) -> Path | None:
    """Return the folder of the region masks of a volume, `seg_<volume>` with or without `.nii.gz`."""
    for folder in spelled("{}_region_mask", part):
        for ending in ("", ".nii.gz"):
            path = base / folder / f"seg_{name.text}{ending}"
            if path.is_dir():
                return path
    return None


def _optional(
    base: Path, part: str, pattern: str, columns: Iterable[str], stack: ExitStack, drops: Drops
) -> CsvIndex | None:
    path = find_spelled(base, part, pattern)
    if path is None:
        return None
    return stack.enter_context(CsvIndex(path, _KEY, tuple(columns), volume_key, drops))
