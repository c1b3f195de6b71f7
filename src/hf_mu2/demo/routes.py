"""The addresses behind the page: uploads, slices, the volume for the browser, downloads, NiiVue; and the headers.

Reads: sessions, by the key in the address; uploads.
Writes: each upload under a name of ours. No address of a study holds a path; nothing may be fetched from another host.
"""

import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from .desk import Desk
from .downloads import make_download
from .sessions import Session
from .slices import browser_nifti, slice_png

_KINDS = {
    ".txt": "text/plain; charset=utf-8",
    ".pdf": "application/pdf",
    ".json": "application/json",
    ".gz": "application/gzip",
}
# gradio compiles templates and inlines styles; beyond that the page lives on what this server gives.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'"
)
_MOST_FILES = 4
_ENVELOPE_BYTES = 2**16  # what multipart wraps around a file
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PrivateHeaders:
    """Adds to every answer that the browser fetches nothing elsewhere and keeps no slice of a visitor."""

    def __init__(self, app: Callable[..., Any]):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                if "/files/" in scope["path"]:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def make_routes(desk: Desk, niivue: Path | None) -> list[BaseRoute]:
    """Make the routes beside gradio's own, and the one that stands before it.

    gradio stores an upload under its hash and its name: two visitors with the same file would share it, and the first
    to be answered would delete it for both. Here each gets a folder of its own, and no name is kept.
    """

    async def take_upload(request: Request) -> Response:
        length = request.headers.get("content-length", "")
        if not length.isdigit():
            return PlainTextResponse("An upload must state its length.", 411)
        if int(length) > desk.limits.upload_bytes + _ENVELOPE_BYTES:
            most = desk.limits.upload_bytes / 2**20
            return PlainTextResponse(
                f"An upload may have {most:.0f} MB at most, the maximum allowed size.", 413
            )
        async with request.form(max_files=_MOST_FILES, max_fields=_MOST_FILES) as form:
            files = [part for part in form.getlist("files") if isinstance(part, UploadFile)]
            paths = [await run_in_threadpool(_store, file.file, file.filename or "", desk) for file in files]
        return JSONResponse([str(path) for path in paths])

    def session_of(request: Request) -> Session | None:
        session = desk.sessions.by_key(request.path_params["key"])
        return session if session is not None and session.volume is not None else None

    def get_slice(request: Request) -> Response:
        session, query = session_of(request), request.query_params
        if session is None or session.volume is None:
            return _GONE
        try:
            index, opacity = int(query.get("index", "0")), float(query.get("opacity", "0"))
            picture = slice_png(
                session.volume,
                query.get("plane", "axial"),
                index,
                query.get("preset", "Lung"),
                session.heat,
                opacity,
            )
        except ValueError:
            return PlainTextResponse("A slice needs plane, index, preset and opacity.", 400)
        return Response(picture, media_type="image/png")

    def get_volume(request: Request) -> Response:
        session = session_of(request)
        if session is None or session.volume is None:
            return _GONE
        return Response(browser_nifti(session.volume, session.volume.array), media_type="application/gzip")

    def get_heat(request: Request) -> Response:
        session = session_of(request)
        if session is None or session.volume is None or session.heat is None:
            return _GONE
        return Response(browser_nifti(session.volume, session.heat), media_type="application/gzip")

    def get_download(request: Request) -> Response:
        session, name = session_of(request), request.path_params["name"]
        try:
            content = None if session is None else make_download(desk, session, name)
        except ValueError as error:
            return PlainTextResponse(str(error), 422)
        if content is None:
            return _GONE
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=_KINDS[Path(name).suffix], headers=headers)

    routes: list[BaseRoute] = [
        Route("/gradio_api/upload", take_upload, methods=["POST"]),
        Route("/files/{key}/slice.png", get_slice),
        Route("/files/{key}/volume.nii.gz", get_volume),
        Route("/files/{key}/heat.nii.gz", get_heat),
        Route("/files/{key}/{name}", get_download),
    ]
    if niivue is not None:
        script = niivue

        def get_niivue(request: Request) -> Response:
            return FileResponse(
                script, media_type="text/javascript", headers={"Cache-Control": "max-age=86400"}
            )

        routes.append(Route("/niivue.umd.js", get_niivue))
    return routes


def _store(content: BinaryIO, name: str, desk: Desk) -> Path:
    """Keep the ending of a name, which tells kinds of files apart, and nothing else of it."""
    ending = re.search(r"\.(nii\.gz|nii|zip|dcm)$", name.lower())
    path = desk.sessions.uploads / secrets.token_hex(16) / f"volume{ending.group() if ending else ''}"
    path.parent.mkdir()
    with path.open("wb") as file:
        shutil.copyfileobj(content, file, 2**20)
    return path


_GONE = PlainTextResponse("This study was deleted, or never was. Open it again.", 404)
