"""One model, one answer at a time; a bounded number of requests wait, and a few volumes are read meanwhile."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import anyio
from starlette.concurrency import run_in_threadpool

from hf_mu2.model.volume_mu2 import Volume
from hf_mu2.reporting.host import return_memory
from hf_mu2.reporting.inference import Reader
from hf_mu2.reporting.streaming import Messages, Reply, stream_reply

from .errors import Refusal
from .limits import ServingLimits

Loaded = tuple[Volume, list[str]]


class Worker:
    """Admit requests, and let one at a time have the model.

    Args:
        reader (`Reader`): The checkpoint.
        limits (`ServingLimits`): How many may wait, and how many volumes are in memory.
    """

    def __init__(self, reader: Reader, limits: ServingLimits):
        self.reader, self.limits = reader, limits
        self.admitted = 0
        self._model, self._room = asyncio.Lock(), asyncio.Semaphore(limits.loaded)
        self._seconds = 1.0  # of an answer, smoothed: what a refused client is told to wait for

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Take a place in the queue.

        Raises:
            Refusal: 429 if it is full.
        """
        if self.admitted > self.limits.waiting:
            retry = max(1, round(self._seconds * self.admitted))
            raise Refusal(
                429, f"{self.admitted} requests are waiting for the model. Come back in {retry} s.", retry
            )
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1
            if not self.admitted:
                return_memory()

    async def answer(
        self,
        load: Callable[[], Awaitable[Loaded]],
        question: str,
        history: Messages,
        max_new_tokens: int,
        loaded: asyncio.Future[Loaded] | None = None,
    ) -> AsyncGenerator[Reply]:
        """Read the volume, wait for the model and yield the reply as it grows; the last one says why it ended.

        Closing the iterator stops the model.

        Args:
            load: Reads the volume; called when there is room for it in memory.
            loaded (`asyncio.Future`, *optional*): Receives what `load` returned.
        """
        async with self._room:
            volume, unusual = await load()
            if loaded is not None:
                loaded.set_result((volume, unusual))
            async with self._model:
                replies = stream_reply(self.reader, volume, question, history, max_new_tokens)
                try:
                    while (reply := await run_in_threadpool(next, replies, None)) is not None:
                        yield reply
                        if reply.finish_reason:
                            self._seconds += 0.2 * (reply.seconds - self._seconds)
                finally:
                    with anyio.CancelScope(shield=True):  # the model is free once its thread has ended
                        await run_in_threadpool(_close, replies)


def _close(replies: Iterator[Reply]) -> None:
    replies.close()  # type: ignore[attr-defined]
