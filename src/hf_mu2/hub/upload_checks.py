"""What may not leave this machine by accident: secrets, what names a patient, links to elsewhere."""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hf_mu2.files import PARTIAL
from hf_mu2.tables import read_rows

Problem = str

_IGNORED_FOLDERS = {".git", ".cache", "__pycache__", ".ipynb_checkpoints"}
_IGNORED_FILES = {".DS_Store", "Thumbs.db"}
_SECRET_FILES = re.compile(
    r"\.env(\..*)?|\.netrc|id_(rsa|dsa|ecdsa|ed25519)|credentials(\.json)?|.*\.(pem|key|p12|pfx)"
)
_SECRETS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "an AWS key": re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a GitHub token": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})"),
    "a Google API key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}\b"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{32,}"),
    "a Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{20,}"),
}
_TEXTS = {
    ".md",
    ".txt",
    ".json",
    ".jsonl",
    ".yaml",
    ".yml",
    ".toml",
    ".ini",
    ".cfg",
    ".py",
    ".sh",
    ".csv",
    ".tsv",
    "",
}
_TABLES = {".json", ".jsonl", ".csv", ".tsv", ".parquet"}
_PATIENT = re.compile(
    r"(other)?patients?(name|s?birth.*|address|telephone.*|phone.*|mothers.*|ids|names)"
    r"|dob|dateofbirth|birthdate|mrn|.*medicalrecord.*|ssn|socialsecurity.*|accession(number)?"
    r"|(referring|performing|reading|attending)?physicians?(name|ofrecord)|operatorsname|firstname|lastname|surname"
)
_MAX_NAMED = 5


def list_files(folder: Path, home: Path | None = None) -> tuple[list[str], list[str]]:
    """Return the files of a folder to upload and those to leave, relative, sorted, with forward slashes.

    Unfinished files, caches and what editors and systems leave behind stay.

    Args:
        home (`Path`, *optional*): Links may lead anywhere in here, by default in the folder itself.

    Raises:
        ValueError: if a link leads out of the folder.
    """
    wanted: list[str] = []
    left: list[str] = []
    home = (home or folder).resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.resolve().is_relative_to(home):
            raise ValueError(
                f"Everything to upload lies inside its folder, `{name}` is a link that leaves `{folder}`. Copy the "
                "file into the folder or remove the link."
            )
        if not path.is_file():
            continue
        parts = name.split("/")
        is_left = (
            _IGNORED_FOLDERS & set(parts) or parts[-1] in _IGNORED_FILES or parts[-1].startswith(PARTIAL)
        )
        (left if is_left else wanted).append(name)
    return wanted, left


def find_secrets(folder: Path, files: Iterable[str]) -> list[Problem]:
    """Return what looks like a credential: files of that name, and tokens in text."""
    problems = []
    for name in files:
        path = folder / name
        if _SECRET_FILES.fullmatch(path.name):
            problems.append(f"`{name}` is named like a file of credentials")
        elif path.suffix.lower() in _TEXTS:
            with path.open(encoding="utf-8", errors="replace") as lines:
                for number, line in enumerate(lines, start=1):
                    found = [what for what, pattern in _SECRETS.items() if pattern.search(line)]
                    problems.extend(f"`{name}` holds {what} in line {number}" for what in found)
    return problems


def find_patient_data(folder: Path, files: Iterable[str]) -> list[Problem]:
    """Return what is made to name a patient: keys of tables, DICOM files, DICOM in NIfTI headers, closed archives."""
    problems: list[Problem] = []
    for name in files:
        path = folder / name
        suffixes = "".join(path.suffixes).lower()
        if suffixes.endswith((".nii", ".nii.gz")):
            problems.extend(f"`{name}` {reason}" for reason in _nifti_problems(path))
        elif path.suffix.lower() in _TABLES:
            keys = sorted({key for row in read_documents(path) for key in patient_keys(row)})
            if keys:
                problems.append(f"`{name}` has keys that name patients: {', '.join(keys[:_MAX_NAMED])}")
        elif path.suffix.lower() in (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar"):
            problems.append(f"`{name}` is an archive, which is not looked into: upload its files")
        else:
            with path.open("rb") as stream:
                if stream.read(132)[128:] == b"DICM":
                    problems.append(f"`{name}` is DICOM, whose header names the patient: convert it to NIfTI")
    return problems


def patient_keys(value: Any) -> Iterator[str]:
    """Yield the keys that name a patient, at any depth, in JSON kept as text too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            plain = re.sub(r"[^a-z0-9]", "", str(key).lower())
            # `patient_id` is the column of our schema, a name that a corpus made up; `PatientID` is a DICOM tag.
            if _PATIENT.fullmatch(plain) or (plain == "patientid" and key != "patient_id"):
                yield str(key)
            yield from patient_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from patient_keys(inner)
    elif isinstance(value, str) and value.startswith(("{", "[")):
        try:
            yield from patient_keys(json.loads(value))
        except json.JSONDecodeError:
            return


def read_documents(path: Path) -> Iterator[Any]:
    """Yield the rows of a table, or the one document of a JSON file; of a Parquet file the names of its columns.

    Raises:
        ValueError: if it is not what its name says.
    """
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        schema = pq.ParquetFile(path).schema
        paths = (schema.column(index).path for index in range(len(schema)))
        yield {part: None for path in paths for part in path.split(".")}
    elif path.suffix.lower() == ".json":
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"A JSON file must be readable before it is uploaded, `{path.name}` is not. Mend or remove it."
            ) from error
    else:
        yield from read_rows(path)


def _nifti_problems(path: Path) -> Iterator[str]:
    """Say what a NIfTI-1 header holds besides geometry: Analyze's patient field, DICOM extensions."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(360)
    except (OSError, EOFError, zlib.error):
        yield "cannot be read"
        return
    if len(head) < 348:
        yield "is no NIfTI"
        return
    if head[14:32].strip(b"\0 "):
        yield "has a text in `db_name`, where converters put the patient's name"
    if len(head) >= 360 and head[348] and int.from_bytes(head[356:360], "little") in (2, 2 << 24):
        yield "carries a DICOM header as an extension: save the volume anew without it"
