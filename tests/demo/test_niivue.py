"""NiiVue: found where it was put, taken only as published, and the server draws where it is missing."""

import base64
import hashlib
import io
import tarfile

import pytest

from hf_mu2.demo import niivue
from hf_mu2.demo.niivue import find_niivue, install_niivue, unpack_niivue


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_MU2_CACHE", str(tmp_path / "cache"))


def make_package(path):
    with tarfile.open(path, "w:gz") as package:
        for name, content in (("package/dist/niivue.umd.js", b"// viewer"), ("package/package.json", b"{}")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
    return path


def test_a_package_other_than_the_published_one_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="another hash"):
        unpack_niivue(make_package(tmp_path / "niivue.tgz"))
    assert find_niivue() is None


def test_the_published_package_is_kept_without_the_rest_of_it(tmp_path, monkeypatch):
    archive = make_package(tmp_path / "niivue.tgz")
    digest = hashlib.sha512(archive.read_bytes()).digest()
    monkeypatch.setattr(niivue, "INTEGRITY", base64.b64encode(digest).decode())
    assert unpack_niivue(archive) == find_niivue() == install_niivue()
    assert {path.name for path in find_niivue().parent.iterdir()} == {"niivue.umd.js", "package.json"}


def test_without_npm_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(niivue.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="Install Node"):
        install_niivue()
