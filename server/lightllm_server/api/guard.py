"""The outermost middleware: header bounds, `Connection: close` when asked to, in-flight count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from lightllm_server.api.http_protocol import MAX_HEADER_BYTES, MAX_HEADERS
from lightllm_server.api.replies import error_response
from lightllm_server.errors import RequestError
from lightllm_server.status_page import Field, StatusRow

__all__ = ["Guard"]


class Guard:
    """`should_close` says whether responses end their connection (draining, or requests wait)."""

    def __init__(self, app: ASGIApp, row: StatusRow, should_close: Callable[[], bool]) -> None:
        self._app = app
        self._row = row
        self._should_close = should_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_closing(message: Any) -> None:
            if message["type"] == "http.response.start" and self._should_close():
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        self._row.add(Field.IN_FLIGHT_HTTP)
        try:
            refused = _refusal(scope["headers"])
            if refused is not None:
                await error_response(refused)(scope, receive, send_closing)
            else:
                await self._app(scope, receive, send_closing)
        finally:
            self._row.add(Field.IN_FLIGHT_HTTP, -1)


def _refusal(headers: list[tuple[bytes, bytes]]) -> RequestError | None:
    # h11 bounds what it buffers, which is not all of a header that comes in one piece
    num_bytes = sum(len(name) + len(value) for name, value in headers)
    if len(headers) <= MAX_HEADERS and num_bytes <= MAX_HEADER_BYTES:
        return None
    return RequestError(
        f"headers: got {len(headers)} of {num_bytes} bytes, must be at most {MAX_HEADERS} "
        f"of {MAX_HEADER_BYTES} bytes",
        status=431,
        code="headers_too_large",
    )
