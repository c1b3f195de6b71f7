"""Uploads of clients, in one private folder: each until it is used up, deleted or too old.

Reads: streams of bytes.
Writes: files under names of its own; those of clients, which often are those of patients, are not kept.
"""

import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import Refusal
from .limits import ServingLimits


@dataclass(frozen=True)
class Upload:
    """One stored file."""

    id: str
    path: Path
    bytes: int
    created: float
    expires: float

    def describe(self) -> dict[str, object]:
        """Lay out the file object of the API."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created),
            "expires_at": int(self.expires),
            "filename": "volume",
            "purpose": "user_data",
        }


class Store:
    """A folder of uploads.

    Args:
        limits (`ServingLimits`): Sizes and age.
    """

    def __init__(self, limits: ServingLimits):
        self.limits = limits
        self.folder = Path(tempfile.mkdtemp(prefix="hf-mu2-serve-"))
        self.total_bytes = 0  # of what is stored and of what is arriving
        self._uploads: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def add(self, stream: BinaryIO) -> Upload:
        """Store a stream.

        Raises:
            Refusal: 413 if it is too large, 429 if the store is full.
        """
        self.sweep()
        most = self.limits.volumes.upload_bytes
        name = f"file-{secrets.token_hex(16)}"
        path = self.folder / name
        written = 0
        try:
            with path.open("xb") as file:
                while chunk := stream.read(1 << 20):
                    written += self._take(len(chunk))
                    if written > most:
                        raise Refusal(
                            413, f"A volume may have {most >> 20} MB, this one has more. Compress it."
                        )
                    file.write(chunk)
        except BaseException:
            path.unlink(missing_ok=True)
            self._take(-written)
            raise
        now = time.time()
        self._uploads[name] = Upload(name, path, written, now, now + self.limits.keep_s)
        return self._uploads[name]

    def copy(self, name: str) -> Upload:
        """Store an upload once more.

        Raises:
            Refusal: as [`get`] and [`add`] do.
        """
        with self.get(name).path.open("rb") as file:
            return self.add(file)

    def _take(self, count: int) -> int:
        """Count bytes of the store as taken, or give them back."""
        with self._lock:
            if count > 0 and self.total_bytes + count > self.limits.stored_bytes:
                raise Refusal(429, "Uploads fill this server's share of the disk. Come back later.", 60)
            self.total_bytes += count
        return count

    def get(self, name: str) -> Upload:
        """Look up an upload.

        Raises:
            Refusal: 404 if there is none of that id, or it has expired.
        """
        self.sweep()
        if name not in self._uploads:
            raise Refusal(404, "A file must be uploaded before it is named, and expires. Upload it again.")
        return self._uploads[name]

    def remove(self, name: str) -> None:
        """Delete an upload."""
        upload = self._uploads.pop(name, None)
        if upload is not None:
            upload.path.unlink(missing_ok=True)
            self._take(-upload.bytes)

    def sweep(self) -> None:
        """Delete what is too old."""
        now = time.time()
        for upload in list(self._uploads.values()):
            if upload.expires < now:
                self.remove(upload.id)

    def close(self) -> None:
        """Delete everything."""
        self._uploads.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
