"""An OpenAI-compatible endpoint for one checkpoint.

Reads: volumes as uploads, inline, or from a DICOMweb server that the operator named.
Writes: uploads in a private folder, deleted when they expire and when the server stops.

    POST /v1/files                  a volume as multipart; returns its id
    POST /v1/chat/completions       a question about it, streamed or whole; see `messages.py`
    POST /v1/reports                a volume as multipart, a report back: one curl
    POST /v1/reports/dicomweb       a series by its UIDs, where a DICOMweb server was named
    GET  /v1/models  /health  /metrics
"""

import asyncio
import io
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import Depends, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_mu2.model.processing_mu2 import DEFAULT_QUESTION
from hf_mu2.model.volume_mu2 import guess_body_region
from hf_mu2.reporting.host import describe_defect
from hf_mu2.reporting.inference import Reader
from hf_mu2.reporting.report import content_id, out_of_domain
from hf_mu2.reporting.streaming import Reply
from hf_mu2.reporting.uploads import read_upload

from .dicomweb import DicomWeb
from .errors import (
    Refusal,
    error_body,
    error_response,
    on_bad_input,
    on_defect,
    on_http_error,
    on_invalid,
    on_refusal,
)
from .limits import ServingLimits
from .messages import ChatRequest, Conversation, read_conversation
from .store import Store
from .worker import Loaded, Worker

T = TypeVar("T")
_FINISH = {"eos": "stop", "length": "length", "": None}


class SeriesRequest(BaseModel):
    """A series of the DICOMweb server, and what to ask of it."""

    study_uid: str
    series_uid: str
    question: str | None = None
    max_tokens: int | None = None


class Metrics:
    """What `/metrics` tells Prometheus; no label holds a word of a client's."""

    def __init__(self, worker: Worker, store: Store):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "hf_mu2_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "hf_mu2_answer_seconds",
            "From the first byte of a request to the end of its answer.",
            buckets=(0.5, 1, 2, 5, 10, 20, 60, 120, 300),
            registry=self.registry,
        )
        admitted = Gauge("hf_mu2_admitted", "Requests being answered or waiting.", registry=self.registry)
        admitted.set_function(lambda: worker.admitted)
        stored = Gauge("hf_mu2_stored_bytes", "Bytes of uploads.", registry=self.registry)
        stored.set_function(lambda: store.total_bytes)


class BodyLimit:
    """Refuse a body that is larger than its kind may be, before it fills memory, or that stops arriving."""

    def __init__(self, app: ASGIApp, limits: ServingLimits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its bytes."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        is_form = headers.get(b"content-type", b"").lower().startswith(b"multipart/")
        most = self.limits.volumes.upload_bytes + (1 << 20) if is_form else self.limits.inline_bytes
        announced = headers.get(b"content-length", b"0")
        too_large = error_response(
            413, f"A body of this kind may have {most >> 20} MB. Upload the volume, compressed."
        )
        if not announced.isdigit() or int(announced) > most:
            return await too_large(scope, receive, send)
        seen, is_whole, refusal = 0, False, None

        async def count() -> Message:
            nonlocal seen, is_whole, refusal
            try:
                message = await asyncio.wait_for(receive(), None if is_whole else self.limits.stall_s)
            except TimeoutError:
                refusal = error_response(
                    408,
                    f"A body must keep arriving, nothing came for {self.limits.stall_s:g} s. Send it again.",
                )
                return {"type": "http.disconnect"}
            seen += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if seen > most:
                refusal = too_large
            return message if refusal is None else {"type": "http.disconnect"}

        async def reply(message: Message) -> None:
            if refusal is None:  # what the application says of half a body is not the reason
                await send(message)

        await self.app(scope, count, reply)
        if refusal is not None:
            await refusal(scope, receive, send)


class Witness:
    """Count answers by route and status, and put the notice in each."""

    def __init__(self, app: ASGIApp, metrics: Metrics, notice: str):
        self.app, self.metrics = app, metrics
        self.notice = " ".join(notice.split()).encode("latin-1", "replace")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self.metrics.requests.labels(route.path if route else "other", message["status"]).inc()
                message["headers"] = [*message["headers"], (b"x-notice", self.notice)]
            await send(message)

        await self.app(scope, receive, note)


class AdmittedStream(StreamingResponse):
    """Events that hold a place in the queue while they are sent; a client that leaves gives it back at once."""

    def __init__(self, events: AsyncGenerator[str], worker: Worker):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.events, self.worker = events, worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; a full queue is told by the status, before the first of them."""
        async with self.worker.admit(), aclosing(self.events):
            await super().__call__(scope, receive, send)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Work for a client until it leaves.

    Raises:
        Refusal: 499 if it left, for the metrics alone.
    """

    async def listen() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    with anyio.CancelScope() as scope:
        listening = asyncio.create_task(listen())
        try:
            return await work
        finally:
            listening.cancel()
    raise Refusal(499, "The client left before its answer.")


def make_app(
    reader: Reader,
    *,
    limits: ServingLimits | None = None,
    api_key: str | None = None,
    max_new_tokens: int = 512,
    dicomweb: DicomWeb | None = None,
) -> FastAPI:
    """Make the application.

    Args:
        reader (`Reader`): The one model that answers.
        limits (`ServingLimits`, *optional*): What clients may take.
        api_key (`str`, *optional*): Asked of every request but `/health`, as a bearer token.
        max_new_tokens (`int`): Longest answer in tokens.
        dicomweb (`DicomWeb`, *optional*): Where series are fetched from.
    """
    limits = limits or ServingLimits()
    store, worker = Store(limits), Worker(reader, limits)
    metrics = Metrics(worker, store)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(min(60.0, limits.keep_s))
                store.sweep()

        sweeping = asyncio.create_task(sweep())
        yield
        sweeping.cancel()
        store.close()

    app = FastAPI(title="hf_mu2", description=reader.notice, lifespan=life, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, limits=limits)
    app.add_middleware(Witness, metrics=metrics, notice=reader.notice)
    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(ValueError, on_bad_input)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_defect)
    app.state.store, app.state.worker = store, worker

    def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key is not None and not secrets.compare_digest(given.encode(), api_key.encode()):
            raise Refusal(
                401, "This server wants its API key as a bearer token. Send `Authorization: Bearer KEY`."
            )

    guarded = [Depends(authorised)]

    def longest(asked: int | None) -> int:
        return max(1, min(asked or max_new_tokens, max_new_tokens))

    def read(path: Path) -> Loaded:
        clamp = reader.processor.image_processor.mode != "official"
        volume, unusual = read_upload(path, store.folder, limits.volumes, clamp=clamp)
        return volume, [*reader.caveats, *unusual, *out_of_domain(reader, guess_body_region(volume))]

    def refuse_long(question: str) -> None:
        most = limits.volumes.question_chars
        if len(question) > most:
            raise Refusal(
                400, f"A question may have {most:,} characters, this one has {len(question):,}. Shorten it."
            )

    def loader(conversation: Conversation) -> Callable[[], Awaitable[Loaded]]:
        """Return what reads the volume of a conversation; an upload stays for further questions."""
        if conversation.file_id is not None:
            store.get(conversation.file_id)  # refused before it waits

        async def load() -> Loaded:
            if conversation.file_id is None:
                copy = await run_in_threadpool(store.add, io.BytesIO(conversation.data or b""))
            else:
                copy = await run_in_threadpool(store.copy, conversation.file_id)  # reading deletes
            try:
                return await run_in_threadpool(read, copy.path)
            finally:
                store.remove(copy.id)

        return load

    async def whole(
        load: Callable[[], Awaitable[Loaded]], question: str, history: Any, asked: int | None
    ) -> Any:
        started = time.perf_counter()
        loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        async with aclosing(worker.answer(load, question, history, longest(asked), loaded)) as replies:
            *_, reply = [each async for each in replies]
        metrics.seconds.observe(time.perf_counter() - started)
        volume, unusual = loaded.result()
        return reply, content_id(volume), unusual

    def facts(study_id: str, unusual: list[str]) -> dict[str, Any]:
        return {"notice": reader.notice, "study_id": study_id, "warnings": unusual}

    async def report(
        request: Request, load: Callable[[], Awaitable[Loaded]], question: str | None, asked: int | None
    ) -> Any:
        refuse_long(question or "")
        async with worker.admit():
            reply, study_id, unusual = await while_connected(
                request, whole(load, (question or "").strip() or DEFAULT_QUESTION, [], asked)
            )
        return facts(study_id, unusual) | {
            "report": reply.text,
            "finish_reason": reply.finish_reason,
            "model": reader.name,
            "model_revision": reader.revision,
        }

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": reader.name, "admitted": worker.admitted}

    @app.get("/metrics", dependencies=guarded)
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        model = {"id": reader.name, "object": "model", "created": 0, "owned_by": "hf_mu2"}
        return {"object": "list", "data": [model | {"revision": reader.revision, "notice": reader.notice}]}

    @app.post("/v1/files", dependencies=guarded)
    async def upload(
        file: Annotated[UploadFile, File()], purpose: Annotated[str, Form()] = "user_data"
    ) -> Any:
        return (await run_in_threadpool(store.add, file.file)).describe()

    @app.get("/v1/files/{file_id}", dependencies=guarded)
    async def describe(file_id: str) -> Any:
        return store.get(file_id).describe()

    @app.delete("/v1/files/{file_id}", dependencies=guarded)
    async def delete(file_id: str) -> Any:
        store.get(file_id)
        store.remove(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @app.post("/v1/reports", dependencies=guarded)
    async def report_upload(
        request: Request,
        file: Annotated[UploadFile, File()],
        question: Annotated[str | None, Form()] = None,
        max_tokens: Annotated[int | None, Form()] = None,
    ) -> Any:
        stored = await run_in_threadpool(store.add, file.file)
        try:
            conversation = Conversation(stored.id, None, "", [])
            return await report(request, loader(conversation), question, max_tokens)
        finally:
            store.remove(stored.id)

    @app.post("/v1/reports/dicomweb", dependencies=guarded)
    async def report_series(wanted: SeriesRequest, request: Request) -> Any:
        if dicomweb is None:
            raise Refusal(
                404, "This server was started without a DICOMweb server. Upload the series as a zip."
            )
        source = dicomweb

        async def load() -> Loaded:
            archive = await run_in_threadpool(
                source.fetch, wanted.study_uid, wanted.series_uid, limits.volumes
            )
            stored = await run_in_threadpool(store.add, archive)
            try:
                return await run_in_threadpool(read, stored.path)
            finally:
                store.remove(stored.id)

        return await report(request, load, wanted.question, wanted.max_tokens)

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def complete(chat: ChatRequest, request: Request) -> Any:
        conversation = read_conversation(chat)
        refuse_long("".join(turn["content"] for turn in conversation.history) + conversation.question)
        question = conversation.question or DEFAULT_QUESTION
        asked = chat.max_completion_tokens or chat.max_tokens
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": reader.name,
            "system_fingerprint": reader.revision,
        }
        load = loader(conversation)
        if chat.stream:
            replies = worker.answer(load, question, conversation.history, longest(asked))
            return AdmittedStream(_events(replies, head), worker)
        async with worker.admit():
            reply, study_id, unusual = await while_connected(
                request, whole(load, question, conversation.history, asked)
            )
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": message, "finish_reason": _FINISH[reply.finish_reason]}
        return JSONResponse(
            head | {"object": "chat.completion", "choices": [choice]} | facts(study_id, unusual)
        )

    return app


async def _events(replies: AsyncGenerator[Reply], head: dict[str, Any]) -> AsyncGenerator[str]:
    """Write replies as server-sent events; what goes wrong midway is the last of them."""

    def event(delta: dict[str, Any], finish: str | None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps(head | {'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    sent = ""
    try:
        yield event({"role": "assistant", "content": ""}, None)
        async with aclosing(replies) as stream:
            async for reply in stream:
                # The last text has no blanks at its end; what was sent of them stays sent.
                piece = reply.text[len(sent) :]
                sent += piece
                yield event({"content": piece} if piece else {}, _FINISH[reply.finish_reason])
        yield "data: [DONE]\n\n"
    except (ValueError, Refusal) as error:
        status = error.status if isinstance(error, Refusal) else 400
        yield f"data: {json.dumps(error_body(status, str(error)))}\n\n"
    except Exception as error:
        yield f"data: {json.dumps(error_body(500, describe_defect(error)))}\n\n"
