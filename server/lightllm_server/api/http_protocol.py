"""uvicorn's HTTP/1.1 connection, with a time limit for headers, JSON errors, and abort."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["ABORT_CONNECTION", "MAX_HEADERS", "MAX_HEADER_BYTES", "HttpProtocol"]

# key in `scope["extensions"]`: a function that closes the connection without flushing it
ABORT_CONNECTION = "lightllm.abort_connection"
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADERS = 128
_HEADERS_DEADLINE_S = 15.0
_LINGER_S = 2.0


class HttpProtocol(H11Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        app = self.app

        async def with_abort(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("extensions", {})[ABORT_CONNECTION] = transport.abort
            await app(scope, receive, send)

        self.app = with_abort
        self._refused = False
        self._deadline = self.loop.call_later(_HEADERS_DEADLINE_S, self._check_headers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def _check_headers(self) -> None:
        # uvicorn's keep-alive limit covers what comes after the first request, this the first
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is h11.IDLE and self.cycle is not None:
            self._limit_next_headers()

    def _limit_next_headers(self) -> None:
        # the first byte of a next request stops uvicorn's keep-alive timer; start it again
        if self.timeout_keep_alive_task is None and self.cycle.response_complete:
            self.timeout_keep_alive_task = self.loop.call_later(
                _HEADERS_DEADLINE_S, self.timeout_keep_alive_handler
            )

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        raise AssertionError("websockets are off: the configuration says ws='none'")

    def send_400_response(self, msg: str) -> None:
        body = msgspec.json.encode(
            {
                "error": {
                    "message": msg,
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "invalid_http",
                }
            }
        )
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self._refused = True
        self._linger()

    def _linger(self) -> None:
        # closing with unread bytes would reset the connection before its client reads the answer
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.abort)
