"""Server-sent events out, and the client's leaving noticed: at once, also while nothing is sent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lightllm_server.api.call import Call
from lightllm_server.api.http_protocol import ABORT_CONNECTION
from lightllm_server.api.replies import ClientGoneError
from lightllm_server.errors import ServerError

__all__ = ["EventStream", "while_connected"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

# uvicorn buffers 64 KiB per connection; a client that takes nothing for so long is dropped
STALL_LIMIT_S = 15.0


async def _disconnected(receive: Receive) -> None:
    # the body has been read, so that whatever is not a disconnect is of no interest
    while (await receive())["type"] != "http.disconnect":
        pass


async def _finish(*tasks: asyncio.Future[None] | asyncio.Future[T]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, cancelled with ClientGoneError as soon as the client leaves."""
    gone = asyncio.ensure_future(_disconnected(request.receive))
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        await _finish(gone, task)


class EventStream(Response):
    """Sends `chunks` as they come. An error before the first one is an ordinary error answer.

    `error_event` makes the last event of a stream that fails later. However it ends, `call` is
    left.
    """

    def __init__(
        self,
        call: Call,
        chunks: AsyncGenerator[bytes, None],
        error_event: Callable[[ServerError], bytes],
        *,
        stall_limit_s: float = STALL_LIMIT_S,
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._call = call
        self._chunks = chunks
        self._error_event = error_event
        self._stall_limit_s = stall_limit_s
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        sending = asyncio.ensure_future(self._send_all(send))
        try:
            while not (gone.done() or sending.done()):
                await asyncio.wait(
                    {gone, sending},
                    timeout=self._stall_limit_s / 4,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if self._is_stalled():
                    logger.warning("a client read nothing for %g s: dropped", self._stall_limit_s)
                    scope["extensions"][ABORT_CONNECTION]()
                    break
            if sending.done():
                sending.result()
        finally:
            self._call.leave()
            await _finish(gone, sending)
            await self._chunks.aclose()

    def _is_stalled(self) -> bool:
        since = self._sending_since
        return since is not None and time.monotonic() - since > self._stall_limit_s

    async def _send_all(self, send: Send) -> None:
        chunk = await anext(self._chunks, b"")
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while chunk:
            await self._send(send, chunk, more=True)
            try:
                chunk = await anext(self._chunks, b"")
            except ServerError as error:
                await self._send(send, self._error_event(error), more=True)
                break
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        # noted and looked at now and then: a timer for each token would cost more than its text
        self._sending_since = time.monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self._sending_since = None
