"""Find NiiVue, the browser's CT viewer, or fetch it once with npm, which knows the registry of this machine.

Reads: the package `@niivue/niivue` (BSD-2-Clause, https://github.com/niivue/niivue) from npm, when asked to.
Writes: `~/.cache/hf_mu2/niivue/VERSION/niivue.umd.js` with its licence. Nothing is fetched by a page or at start.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from hf_mu2.files import replace_file

VERSION = "0.69.0"
# What the registry states for this version; a tampered or other package is refused.
INTEGRITY = "YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA=="
_SCRIPT, _ABOUT = "package/dist/niivue.umd.js", "package/package.json"


def niivue_path() -> Path:
    """Return where NiiVue lies once it is installed: under `HF_MU2_CACHE`, else the user's cache folder."""
    home = os.environ.get("HF_MU2_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hf_mu2"
    return Path(home).expanduser() / "niivue" / VERSION / "niivue.umd.js"


def find_niivue() -> Path | None:
    """Return the installed script, or `None`: slices are then drawn by the server."""
    path = niivue_path()
    return path if path.is_file() else None


def install_niivue() -> Path:
    """Fetch the pinned version with `npm pack`, check it, and keep its one script.

    Raises:
        RuntimeError: if npm is missing, cannot reach its registry, or returns another package than the pinned one.
    """
    if (installed := find_niivue()) is not None:
        return installed
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            "NiiVue is fetched with npm, which is not installed. Install Node.js, or go on without: slices are then "
            "drawn by the server."
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--pack-destination", folder, f"@niivue/niivue@{VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            raise RuntimeError(
                f"npm must deliver `@niivue/niivue@{VERSION}`, it ended with code {done.returncode}. Run "
                f"`npm pack @niivue/niivue@{VERSION}` to see why, or go on without: the server then draws the slices."
            )
        return unpack_niivue(archives[0])


def unpack_niivue(archive: Path) -> Path:
    """Check the package of the registry and keep its script and its description; for machines without a network too.

    Raises:
        RuntimeError: if it is not the pinned package.
    """
    content = archive.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != INTEGRITY:
        raise RuntimeError(
            f"The package must be `@niivue/niivue@{VERSION}` as published, `{archive.name}` has another hash. Fetch it "
            "again."
        )
    target = niivue_path()
    with tarfile.open(archive) as package:
        for member, path in ((_ABOUT, target.with_name("package.json")), (_SCRIPT, target)):
            stream = package.extractfile(member)
            assert stream is not None  # the hash is that of a package with both
            replace_file(path, stream.read())
    return target
