"""Write the report of a volume: what the model says, a picture of what it saw, and the record of the run.

Reads: a NIfTI file, a DICOM folder or zip, or a folder of volumes; a checkpoint.
Writes: report.txt, montage.png and run.json. Names of files, which often are those of patients, stay out of all three.
"""

import hashlib
import io
import os
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_mu2.files import replace_file
from hf_mu2.model.volume_mu2 import OutOfDomainWarning, Volume, guess_body_region
from hf_mu2.reporting.environment import describe_command, library_versions
from hf_mu2.reporting.inference import Reader, to_json
from hf_mu2.reporting.montage import draw_montage

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".zip")
# Options of people's own words: kept out of the record, for they may name a patient.
_FREE_TEXT = ("question", "indication", "technique", "prior_report", "series")


@dataclass(frozen=True)
class Request:
    """What to ask about a volume. Empty fields leave the prompt as the model was trained on it.

    `series`, `channel`, `spacing` and `orientation` are those of `load_volume`.
    """

    question: str | None = None
    indication: str | None = None
    technique: str | None = None
    prior_report: str | None = None
    series: str | None = None
    channel: int | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str | None = None
    max_new_tokens: int = 512


@dataclass(frozen=True)
class Report:
    """The report of one volume, with everything needed to say how it came about."""

    notice: str
    study_id: str
    text: str
    finish_reason: str
    warnings: list[str]
    run: dict[str, Any]
    volume: Volume = field(repr=False)
    question: str = field(repr=False)  # as the model read it; stays out of records, for it may name a patient

    def to_dict(self) -> dict[str, Any]:
        """Lay out the machine-readable form, the notice first."""
        return {
            "notice": self.notice,
            "study_id": self.study_id,
            "report": self.text,
            "finish_reason": self.finish_reason,
            "warnings": self.warnings,
            **self.run,
        }


def find_volumes(source: str | Path) -> list[Path]:
    """List the volumes behind a path: the file itself, the NIfTI and zip files of a folder, or one DICOM folder."""
    source = _with_name(source)
    if not source.exists():
        raise ValueError(
            f"The volume must be a file or folder that exists, got `{source}`. "
            "Pass a NIfTI file, a DICOM folder or zip, or a folder of such files."
        )
    if source.is_file():
        return [source]
    volumes = sorted(
        path
        for path in source.iterdir()
        if path.name.endswith(VOLUME_SUFFIXES) and not path.name.startswith(".") and path.is_file()
    )
    return volumes or [source]


def name_of(path: Path) -> str:
    """Name a volume as its owner did, without the ending; for folders on the owner's own disk, never for records."""
    return path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".zip")


def report_volume(source: str | Path, reader: Reader, request: Request = Request()) -> Report:
    """Load one volume and generate its report; bad input raises the loader's `VolumeError`."""
    started, source = time.perf_counter(), _with_name(source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OutOfDomainWarning)
        volume = reader.load_volume(
            source,
            spacing=request.spacing,
            orientation=request.orientation,
            series=request.series,
            channel=request.channel,
        )
    messages = [*reader.caveats, *(without_name(str(warning.message), source) for warning in caught)]
    region = guess_body_region(volume)
    messages += out_of_domain(reader, region)
    read = time.perf_counter()
    conversation = reader.processor.build_messages(
        volume,
        question=request.question,
        indication=request.indication,
        technique=request.technique,
        prior_report=request.prior_report,
    )
    answer = reader.answer(reader.prepare([conversation]), request.max_new_tokens)[0]
    done = time.perf_counter()
    run = {
        "model": reader.name,
        "model_revision": reader.revision,
        "trained_on_synthetic_only": reader.model.config.trained_on_synthetic_only,
        "command": _describe_request(request, reader.name),
        "volume": {**volume.provenance, "body_region": region},
        "timings_s": {"read": round(read - started, 3), "generate": round(done - read, 3)},
        "versions": library_versions(),
    }
    asked = "".join(part.get("text", "") for part in conversation[0]["content"])
    return Report(
        reader.notice, content_id(volume), answer.text, answer.finish_reason, messages, run, volume, asked
    )


def write_report(report: Report, out: str | Path) -> dict[str, Path]:
    """Write report.txt, montage.png and run.json into a folder; run.json comes last and marks it complete."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    picture = io.BytesIO()
    draw_montage(report.volume, report.notice, report.study_id).save(picture, "PNG", optimize=True)
    files = {"report": out / "report.txt", "montage": out / "montage.png", "run": out / "run.json"}
    replace_file(files["report"], f"{report.notice}\n\n{report.text}\n")
    replace_file(files["montage"], picture.getvalue())
    record = report.to_dict()
    record["timings_s"] = record["timings_s"] | {"draw": round(time.perf_counter() - started, 3)}
    replace_file(files["run"], to_json(record))
    return files


def out_of_domain(reader: Reader, region: str) -> list[str]:
    """Say so where a volume shows another body region than the checkpoint was trained on."""
    known = reader.model.config.body_region
    if known in (None, region):
        return []
    return [
        f"Out of domain: this checkpoint was trained on the {known}, and the volume looks like {region}. "
        "Its report says nothing about this study: use a checkpoint trained on that region (`--model`)."
    ]


def without_name(message: str, source: str | Path) -> str:
    """Say VOLUME where a message names a file or folder: records outlive it, and its name may be a patient's."""
    path = Path(str(source).split("::")[-1])  # datasets writes "gzip://ct.nii::/data/ct.nii.gz"
    for name in (str(source), str(path), path.name):
        message = message.replace(name, "VOLUME") if name else message
    return message


def content_id(volume: Volume) -> str:
    """Name a volume by its voxels and geometry: stable across copies, and silent about whose it is."""
    digest = hashlib.blake2b(np.ascontiguousarray(volume.array).data, digest_size=6)
    digest.update(np.asarray(volume.affine, dtype=np.float64).round(4).tobytes())
    return f"ct-{digest.hexdigest()}"


def _with_name(source: str | Path) -> Path:
    """Give `.` and `..` their names; links keep their own, which resolving them would lose."""
    return Path(os.path.abspath(source))  # noqa: PTH100


def _describe_request(request: Request, model: str) -> str:
    """Restate the command without paths, and without the free text that may name a patient."""
    options = {
        name: name.upper() if value is not None and name in _FREE_TEXT else value
        for name, value in asdict(request).items()
    }
    return describe_command("hf-mu2 report VOLUME", {"model": model} | options)
