"""A stand-in for the Hub on this machine: enough of its HTTP interface to create, upload, list and download.

Set `HF_ENDPOINT` to `server.endpoint`, `HF_TOKEN` to `TOKEN` and `HF_HUB_DISABLE_XET=1` in the environment of a
subprocess: `huggingface_hub` reads them when it is imported. What was uploaded is in `server.repos`.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_localtest"
_GIT_TEXT = (".md", ".json", ".jsonl", ".txt", ".py", ".yaml", ".jinja", ".csv", ".gitattributes")


@dataclass
class Repo:
    """One repository: its files, and how they came."""

    kind: str
    name: str
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        return hashlib.sha1("\n".join(["", *self.commits]).encode()).hexdigest()


class HubServer:
    """Serve repositories from memory until `close`; also a context manager."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def environment(self, home: str | os.PathLike[str]) -> dict[str, str]:
        """Return the environment of a process that talks to this server, with its caches under `home`."""
        offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        return {
            **{name: value for name, value in os.environ.items() if name not in offline},
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._dispatch()

    def do_HEAD(self) -> None:
        self._dispatch()

    def do_POST(self) -> None:
        self._dispatch()

    def do_PUT(self) -> None:
        self._dispatch()

    def log_message(self, *arguments: object) -> None:
        pass

    def _dispatch(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        is_write = self.command in ("POST", "PUT") and not path.startswith("/lfs/")
        if is_write and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(401, "RepoNotFound", "Invalid credentials")
            return
        self.query = parse_qs(url.query)
        for methods, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods:
                handle(self, *match.groups())
                return
        self._error(404, "EntryNotFound", f"no route for {self.command} {path}")

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _repo(self, kind: str, name: str) -> Repo | None:
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            self._error(404, "RepoNotFound", f"no {kind} `{name}`")
        return repo

    def whoami(self) -> None:
        self._json({"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        wanted = json.loads(self.body)
        kind = wanted.get("type") or "model"
        name = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.hub.endpoint}/{prefix}{name}"
        if (kind, name) in self.hub.repos:
            self._json({"error": "You already created this repo", "url": url}, 409)
            return
        is_private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.hub.repos[kind, name] = Repo(kind, name, is_private, extra=wanted)
        self._json({"url": url, "name": name, "id": name})

    def validate_yaml(self) -> None:
        self._json({"errors": [], "warnings": []})

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        if repo := self._repo(kind, name):
            if revision not in (None, "main", repo.sha):
                self._error(404, "RevisionNotFound", f"no revision `{revision}`")
                return
            facts = {"id": name, "sha": repo.sha, "private": repo.private, "gated": False, "disabled": False}
            lists = {"tags": [], "siblings": [{"rfilename": path} for path in sorted(repo.files)]}
            self._json(facts | lists | {"downloads": 0, "likes": 0, "cardData": {}})

    def refs(self, kind: str, name: str) -> None:
        if repo := self._repo(kind, name):
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.sha}
            self._json({"branches": [branch], "converts": [], "tags": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        if repo := self._repo(kind, name):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "regular" if file["path"].endswith(_GIT_TEXT) else "lfs",
                    "shouldIgnore": False,
                    "oid": _entry(repo, file["path"])["oid"] if file["path"] in repo.files else None,
                }
                for file in json.loads(self.body)["files"]
            ]
            self._json({"files": files})

    def lfs_batch(self, prefix: str, name: str) -> None:
        objects = []
        for item in json.loads(self.body)["objects"]:
            action = {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}", "header": {}}}
            objects.append(item if item["oid"] in self.hub.objects else item | {"actions": action})
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._error(400, "BadDigest", "the content does not have the announced digest")
            return
        self.hub.objects[oid] = self.body
        self._send(200, b"", {})

    def commit(self, kind: str, name: str, revision: str) -> None:
        if repo := self._repo(kind, name):
            summary = ""
            for line in self.body.splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "header":
                    summary = value["summary"]
                elif operation["key"] == "file":
                    repo.files[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    repo.files[value["path"]] = self.hub.objects[value["oid"]]
                    repo.lfs.add(value["path"])
                elif operation["key"] == "deletedFile":
                    repo.files.pop(value["path"])
            repo.commits.append(summary)
            url = f"{self.hub.endpoint}/{kind}s/{name}/commit/{repo.sha}"
            self._json({"success": True, "commitUrl": url, "commitOid": repo.sha})

    def tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        if repo := self._repo(kind, name):
            start = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
            below = [path for path in sorted(repo.files) if path.startswith(start)]
            if start and not below:
                self._error(404, "EntryNotFound", f"no folder `{folder}`")
                return
            is_deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
            parents = {str(parent) for path in below for parent in PurePosixPath(path).parents} - {"."}
            inner = {path for path in parents if path.startswith(start)}
            folders = {path for path in inner if is_deep or "/" not in path[len(start) :]}
            entries: list[dict[str, Any]] = [_folder(path) for path in sorted(folders)]
            entries += [_entry(repo, path) for path in below if is_deep or "/" not in path[len(start) :]]
            self._json(entries)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        if repo := self._repo(kind, name):
            form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
            wanted = parse_qs(self.body.decode())["paths"] if form else json.loads(self.body)["paths"]
            entries = []
            for path in [wanted] if isinstance(wanted, str) else wanted:
                if path in repo.files:
                    entries.append(_entry(repo, path))
                elif any(file.startswith(f"{path}/") for file in repo.files):
                    entries.append(_folder(path))
            self._json(entries)

    def resolve(self, prefix: str | None, name: str, revision: str, path: str) -> None:
        repo = self._repo((prefix or "models/")[:-2], name)
        if repo is None:
            return
        if path not in repo.files:
            self._error(404, "EntryNotFound", f"no file `{path}`")
            return
        content = repo.files[path]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": repo.sha}
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(206, content[first : last + 1], headers)
        else:
            self._send(200, content, headers)


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


def _entry(repo: Repo, path: str) -> dict[str, Any]:
    content = repo.files[path]
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": path, "oid": blob, "size": len(content)}
    if path in repo.lfs:
        oid = hashlib.sha256(content).hexdigest()
        return entry | {"oid": oid, "lfs": {"oid": oid, "size": len(content), "pointerSize": 134}}
    return entry


_KIND, _NAME = r"(model|dataset|space)s", r"([^/]+/[^/]+)"
_ROUTES = (
    (("GET",), "/api/whoami-v2", _Handler.whoami),
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
    (("GET",), f"/api/{_KIND}/{_NAME}/refs", _Handler.refs),
    (("GET",), f"/api/{_KIND}/{_NAME}/tree/([^/]+)(/.*)?", _Handler.tree),
    (("POST",), f"/api/{_KIND}/{_NAME}/paths-info/([^/]+)", _Handler.paths_info),
    (("POST",), f"/api/{_KIND}/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    (("POST",), f"/api/{_KIND}/{_NAME}/commit/([^/]+)", _Handler.commit),
    (("GET",), f"/api/{_KIND}/{_NAME}(?:/revision/([^/]+))?", _Handler.info),
    (("POST",), rf"/(datasets/|spaces/)?{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), "/lfs/([0-9a-f]{64})", _Handler.lfs_put),
    (("GET", "HEAD"), rf"/(datasets/|spaces/)?{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
)
