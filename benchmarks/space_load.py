"""50 requests at once against the Space's endpoint, broken, huge and non-CT uploads among them.

    python benchmarks/space_load.py [--rounds 2] [--model CHECKPOINT]

Starts `hf-mu2 demo` on loopback, sends every request of a round at the same moment, and prints what became of each
kind, how long it took, how many files are left and what memory the server holds before and after.
Reads: volumes made in code. Writes: nothing that outlives it.
"""

import argparse
import gzip
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np

from hf_mu2.data.phantom import make_phantom

LIMIT_MB = 64
_PATIENCE_S = 1800
PATIENT = "DOE_JANE_1970"
# How our refusals begin, so that they are told from any other error.
_OURS = (
    "A volume",
    "A CT volume",
    "A zip",
    "A compressed file",
    "A file must",
    "A folder or zip",
    "A NIfTI",
    "An upload",
    "Names in a zip",
)


@dataclass(frozen=True)
class Kind:
    """One kind of upload: how many of it, whether it is to be answered or refused."""

    name: str
    count: int
    content: bytes
    is_good: bool
    ending: str = ".nii.gz"


def make_kinds() -> list[Kind]:
    """Make 50 uploads."""
    coarse = make_phantom(300_000_011, spacing=(6.0, 5.0, 5.0), labels=["Cardiomegaly"])
    fine = make_phantom(300_000_010, spacing=(2.5, 1.5, 1.5), labels=["Pleural effusion"])
    small = gzip.compress(coarse.nifti().to_bytes(), 1)
    medium = gzip.compress(fine.nifti().to_bytes(), 1)
    large = gzip.compress(_enlarge(fine.nifti(), 2).to_bytes(), 1)
    positive = nib.Nifti1Image((np.asarray(coarse.nifti().dataobj) + 1100).astype(np.int16), coarse.affine)
    huge = nib.Nifti1Header()
    huge.set_data_dtype(np.int16)
    huge.set_data_shape((4096, 4096, 4096))
    return [
        Kind("chest, 0.4 MB of voxels", 16, small, True),
        Kind(f"chest, {fine.volume.nbytes / 2**20:.0f} MB of voxels", 8, medium, True),
        Kind(f"chest, {8 * fine.volume.nbytes / 2**20:.0f} MB of voxels", 2, large, True),
        Kind("zip of a DICOM series", 4, _dicom_zip(coarse), True, ".zip"),
        Kind("cut off", 4, medium[: len(medium) // 2], False),
        Kind("random bytes", 3, np.random.default_rng(0).bytes(200_000), False),
        Kind("not in HU", 3, gzip.compress(positive.to_bytes(), 1), False),
        Kind("PNG picture", 2, b"\x89PNG\r\n\x1a\n" + bytes(5000), False, ".nii"),
        Kind("zip that leaves its folder", 2, _zip({"../../../tmp/owned": b"x"}), False, ".zip"),
        Kind(
            "zip bomb, 1.3 GB from 6 MB", 2, _zip({f"{i}.dcm": bytes(2**28) for i in range(5)}), False, ".zip"
        ),
        Kind("header of 128 GB", 2, gzip.compress(huge.binaryblock + bytes(4)), False),
        Kind(f"{LIMIT_MB + 16} MB, above the limit", 2, bytes((LIMIT_MB + 16) * 2**20), False, ".nii"),
    ]


def _enlarge(image: nib.Nifti1Image, times: int) -> nib.Nifti1Image:
    voxels = np.asarray(image.dataobj)
    for axis in range(3):
        voxels = voxels.repeat(times, axis)
    return nib.Nifti1Image(voxels, image.affine @ np.diag([1 / times] * 3 + [1.0]))


def _zip(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _dicom_zip(phantom) -> bytes:
    """Write a phantom as an axial series (LPS, as scanners do)."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    mm_z, mm_y, mm_x = phantom.spacing
    series, members = generate_uid(), {}
    corner = phantom.affine @ [phantom.volume.shape[2] - 1, phantom.volume.shape[1] - 1, 0, 1]
    for index, plane in enumerate(phantom.volume):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        pixels = np.ascontiguousarray(plane[::-1, ::-1]) + 1024
        tags = {
            "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "PatientName": PATIENT, "Modality": "CT", "SeriesInstanceUID": series, "SeriesNumber": 3,
            "SeriesDescription": PATIENT, "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "ImagePositionPatient": [-corner[0], -corner[1], corner[2] + index * mm_z],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [mm_y, mm_x], "SliceThickness": mm_z,
            "Rows": plane.shape[0], "Columns": plane.shape[1], "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
            "PixelRepresentation": 0, "RescaleSlope": 1, "RescaleIntercept": -1024,
            "PixelData": pixels.astype(np.uint16).tobytes(),
        }  # fmt: skip
        for name, value in tags.items():
            setattr(file, name, value)
        stream = io.BytesIO()
        file.save_as(stream, enforce_file_format=True)
        members[f"{PATIENT}/{index}.dcm"] = stream.getvalue()
    return _zip(members)


@dataclass(frozen=True)
class Outcome:
    """What became of a request: `"answered"`, `"refused"` in words, or whatever else happened."""

    kind: Kind
    what: str
    seconds: float


def ask(url: str, kind: Kind, start: threading.Barrier) -> Outcome:
    """Upload, call `/report` and read its stream to the end, as `gradio_client` does."""
    start.wait()
    started = time.perf_counter()
    try:
        what = _ask(url, kind)
    except httpx.HTTPError as error:
        what = type(error).__name__
    return Outcome(kind, what, time.perf_counter() - started)


def _ask(url: str, kind: Kind) -> str:
    # A connection each, as `gradio_client` does: one kept alive may be closed while a busy machine looks elsewhere.
    uploaded = httpx.post(
        f"{url}gradio_api/upload", files={"files": (PATIENT + kind.ending, kind.content)}, timeout=_PATIENCE_S
    )
    if uploaded.status_code == 413:
        return "refused"
    volume = {"path": uploaded.json()[0], "meta": {"_type": "gradio.FileData"}}
    call = httpx.post(
        f"{url}gradio_api/call/report", json={"data": [volume, "", "", ""]}, timeout=_PATIENCE_S
    )
    event, data = "", ""
    address = f"{url}gradio_api/call/report/{call.json()['event_id']}"
    with httpx.stream("GET", address, timeout=_PATIENCE_S) as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: "):
                data = line[6:]
    if PATIENT in data or "/hf_mu2_demo_" in data:
        return "told a name or a path"
    if event == "complete":
        record = json.loads(data)[0]
        return "answered" if record["finish_reason"] == "eos" and record["report"] else "answered in part"
    if event == "error" and any(words in data for words in _OURS):
        return "refused"
    return f"{event}: {data[:80]}"


def memory_mb(pid: int, field: str = "VmRSS") -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def count_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def run_round(url: str, kinds: list[Kind]) -> tuple[list[Outcome], float]:
    requests = [kind for kind in kinds for _ in range(kind.count)]
    order = np.random.default_rng(1).permutation(len(requests))
    start = threading.Barrier(len(requests))
    started = time.perf_counter()
    with ThreadPoolExecutor(len(requests)) as pool:
        outcomes = list(pool.map(lambda i: ask(url, requests[i], start), order))
    return outcomes, time.perf_counter() - started


def print_table(kinds: list[Kind], outcomes: list[Outcome]) -> None:
    print("| upload | sent | as it should be | else | median s | longest s |")
    print("|---|---:|---:|---|---:|---:|")
    for kind in kinds:
        mine = [outcome for outcome in outcomes if outcome.kind is kind]
        wanted = "answered" if kind.is_good else "refused"
        others = sorted({outcome.what for outcome in mine} - {wanted})
        seconds = [outcome.seconds for outcome in mine]
        print(
            f"| {kind.name} | {len(mine)} | {sum(outcome.what == wanted for outcome in mine)} {wanted} "
            f"| {', '.join(others) or '-'} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model")
    options = parser.parse_args()
    kinds = make_kinds()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "hf_mu2.cli",
            "demo",
            "--port",
            str(port),
            "--max-upload-mb",
            str(LIMIT_MB),
        ]
        command += ["--model", options.model] if options.model else []
        server = subprocess.Popen(command, env=os.environ | {"TMPDIR": folder}, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: httpx.get(url).status_code == 200, server)
            warm = [ask(url, kind, threading.Barrier(1)).what for kind in kinds if kind.is_good]
            print(
                f"warm: {warm}, {memory_mb(server.pid):.0f} MB, {count_files(Path(folder))} files\n",
                flush=True,
            )
            right = True
            for number in range(options.rounds):
                outcomes, wall = run_round(url, kinds)
                print(f"Round {number + 1}: {len(outcomes)} requests at once, {wall:.0f} s\n")
                print_table(kinds, outcomes)
                time.sleep(10)
                files = count_files(Path(folder))
                right &= files == 0 and server.poll() is None
                right &= all(o.what == ("answered" if o.kind.is_good else "refused") for o in outcomes)
                now, most = memory_mb(server.pid), memory_mb(server.pid, "VmHWM")
                print(
                    f"\n10 s later: {now:.0f} MB (most ever {most:.0f} MB), {files} files left\n", flush=True
                )
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        left = [path.name for path in Path(folder).iterdir() if path.name.startswith("hf_mu2")]
        print(f"After its end: {len(left)} folders of visitors")
    return 0 if right else 1


def wait_until(is_ready: Callable[[], bool], server: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            if is_ready():
                return
        except httpx.HTTPError:
            pass
        if server.poll() is not None:
            raise RuntimeError(
                f"`hf-mu2 demo` must start, it ended with code {server.returncode}. Run it by hand."
            )
        time.sleep(0.5)
    raise RuntimeError("`hf-mu2 demo` must start within five minutes. Run it by hand.")


if __name__ == "__main__":
    sys.exit(main())
