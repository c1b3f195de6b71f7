"""Fifty clients at once against `hf-mu2 serve`: good volumes of mixed size, broken ones, huge ones and what is no CT.

    python benchmarks/serve_load.py [--clients 50] [--out FILE.json]

The endpoint runs as a process of its own on loopback, with the embedded checkpoint and the default limits but for
uploads of at most 24 MB. Half of the good requests stream. A client that is told 429 comes back after the seconds it
was told. Printed: what became of every kind of request, that no file is left, and the resident memory before the load,
at its peak and a few seconds after.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from hf_mu2.data.nifti import save_nifti
from hf_mu2.data.phantom import make_phantom
from hf_mu2.files import replace_text

UPLOAD_MB = 24
SPACINGS = ((10.0, 7.0, 7.0), (5.0, 4.5, 4.5), (2.5, 1.5, 1.5))
EXPECTED = {"good": {200}, "streamed": {200}, "broken": {400}, "no CT": {400}, "bomb": {400}, "huge": {413}}


def make_bodies(folder: Path) -> dict[str, list[bytes]]:
    """Make what clients send, by kind."""
    good = []
    for index, spacing in enumerate(SPACINGS):
        path = folder / f"{index}.nii.gz"
        save_nifti(make_phantom(index, spacing=spacing).nifti(), path)
        good.append(path.read_bytes())
    bomb = io.BytesIO()
    with (
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("slice.dcm", "w", force_zip64=True) as member,
    ):
        for _ in range(20):
            member.write(bytes(64 << 20))
    noise = np.random.default_rng(0).bytes((UPLOAD_MB + 8) << 20)
    return {
        "good": good,
        "streamed": good,
        "broken": [body[: len(body) // 2] for body in good[:2]],
        "no CT": [b"%PDF-1.7 a letter", b"\x89PNG\r\n\x1a\n" + bytes(4000)],
        "bomb": [bomb.getvalue()],
        "huge": [noise],
    }


def send(client: httpx.Client, kind: str, body: bytes) -> tuple[str, int, int, float]:
    """Send one request until it is answered; return kind, status, how often it was sent back, and seconds."""
    started, refusals = time.perf_counter(), 0
    while True:
        try:
            if kind == "streamed":
                status, wait = stream(client, body)
            else:
                answer = client.post(
                    "/v1/reports", files={"file": ("x.nii.gz", body)}, data={"max_tokens": "48"}
                )
                status, wait = answer.status_code, int(answer.headers.get("Retry-After", 0))
        except httpx.WriteError:  # refused while it was still being sent
            status, wait = 413, 0
        if status != 429:
            return kind, status, refusals, time.perf_counter() - started
        refusals += 1
        time.sleep(wait)


def stream(client: httpx.Client, body: bytes) -> tuple[int, int]:
    """Upload, ask, read the stream to its end, delete."""
    uploaded = client.post("/v1/files", files={"file": ("x.nii.gz", body)})
    if uploaded.status_code != 200:
        return uploaded.status_code, int(uploaded.headers.get("Retry-After", 0))
    file_id = uploaded.json()["id"]
    content = [{"type": "file", "file": {"file_id": file_id}}, {"type": "text", "text": "Write the report."}]
    request = {"messages": [{"role": "user", "content": content}], "stream": True, "max_tokens": 48}
    with client.stream("POST", "/v1/chat/completions", json=request) as answer:
        lines = list(answer.iter_lines())
    client.delete(f"/v1/files/{file_id}")
    if answer.status_code != 200:
        return answer.status_code, int(answer.headers.get("Retry-After", 0))
    return (200 if "data: [DONE]" in lines else 500), 0


def resident(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--port", type=int, default=8899)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bodies = make_bodies(Path(folder))
        private = Path(folder) / "tmp"
        private.mkdir()
        options = ["--port", str(arguments.port), "--upload-mb", str(UPLOAD_MB)]
        command = [sys.executable, "-m", "hf_mu2.cli", "serve", *options]
        server = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(private)})
        try:
            facts = load(arguments.clients, arguments.port, bodies, server.pid, private)
        finally:
            server.terminate()
            server.wait(30)
        facts["files_after_stop"] = len([path for path in private.rglob("*") if path.is_file()])
    print(json.dumps(facts, indent=2))
    if arguments.out:
        replace_text(arguments.out, json.dumps(facts, indent=2) + "\n")
    wrong = {
        kind for kind, statuses in facts["statuses"].items() if set(map(int, statuses)) != EXPECTED[kind]
    }
    if wrong or facts["files_after_load"] or facts["files_after_stop"]:
        sys.exit(f"Not as expected: {wrong or 'files are left'}")


def load(clients: int, port: int, bodies: dict[str, list[bytes]], pid: int, private: Path) -> dict:
    """Send everything at once and watch the server."""
    kinds = (["good"] * 5 + ["streamed"] * 5 + ["broken"] * 2 + ["no CT"] * 2 + ["bomb", "huge"]) * (
        1 + clients // 16
    )
    requests = [(kind, bodies[kind][index % len(bodies[kind])]) for index, kind in enumerate(kinds[:clients])]
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", timeout=600, limits=httpx.Limits(max_connections=None)
    ) as client:
        while True:
            try:
                client.get("/health")
                break
            except httpx.ConnectError:
                time.sleep(0.2)
        send(client, "good", bodies["good"][-1])  # code and weights are in memory from here on
        before, peak = resident(pid), 0.0
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            pending = [pool.submit(send, client, *request) for request in requests]
            while not all(future.done() for future in pending):
                peak = max(peak, resident(pid))
                time.sleep(0.05)
        seconds = time.perf_counter() - started
        answers = [future.result() for future in pending]
        time.sleep(3)
        health = client.get("/health").json()
        after = resident(pid)
    good = sorted(answer[3] for answer in answers if answer[1] == 200)
    return {
        "clients": clients,
        "statuses": {
            kind: dict(Counter(str(status) for name, status, *_ in answers if name == kind))
            for kind in EXPECTED
        },
        "sent_back_429": sum(answer[2] for answer in answers),
        "seconds": round(seconds, 1),
        "seconds_of_good_ones": {"median": round(good[len(good) // 2], 1), "longest": round(good[-1], 1)},
        "admitted_after_load": health["admitted"],
        "files_after_load": len([path for path in private.rglob("*") if path.is_file()]),
        "resident_mb": {"before": round(before), "peak": round(peak), "after": round(after)},
    }


if __name__ == "__main__":
    main()
