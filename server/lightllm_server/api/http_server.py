"""uvicorn, started and stopped by us: no signal handlers of its own, drained in our order."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp

from lightllm_server.api.http_protocol import MAX_HEADER_BYTES, HttpProtocol

__all__ = ["HttpServer"]

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_STEP_S = 0.02
# a classic BPF program (Linux, Documentation/networking/filter.rst): drop a TCP segment with SYN
_SO_ATTACH_FILTER = 26
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x45, 0, 1, 0x02),  # SYN?
    (0x06, 0, 0, 0),  # then nothing of it
    (0x06, 0, 0, 0xFFFFFFFF),  # else all of it
)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # SIGTERM begins a drain, which `drain.py` leads
        yield


def _drop_new(listener: socket.socket) -> None:
    """Let the kernel begin no more connections: a client asks again after a second, and is refused
    once the listener is gone. Raises OSError where the kernel has no filters."""
    program = b"".join(struct.pack("=HBBI", *line) for line in _DROP_SYN)
    held = ctypes.create_string_buffer(program)
    sock_fprog = struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(held))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, sock_fprog)


def _accept_all(listener: socket.socket) -> list[socket.socket]:
    accepted = []
    with contextlib.suppress(BlockingIOError):
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            accepted.append(connection)
    return accepted


class HttpServer:
    """One listening socket and its connections."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        self._listener = listener
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=_KEEP_ALIVE_S,
            backlog=_BACKLOG,
        )
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None
        self._stopped_listening = False

    async def start(self) -> None:
        """Serve in the background; returns once connections are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(_STEP_S)

    async def stop_listening(self, handshake_s: float) -> None:
        """Accept nothing more; connections that exist are served on. handshake_s: the longest round
        trip of a client whose connection is just being made; one that takes longer is reset."""
        if self._stopped_listening:
            return
        self._stopped_listening = True
        listener = self._listener.dup()
        listener.setblocking(False)
        for server in self._server.servers:
            server.close()
        # a sandbox's kernel may have no filters: then who comes this very moment is reset
        with contextlib.suppress(OSError):
            _drop_new(listener)
        # those that the kernel has accepted already would be reset
        accepted = _accept_all(listener)
        # for those that the kernel is about to accept
        await asyncio.sleep(handshake_s)
        accepted += _accept_all(listener)
        # also for copies of the descriptor, or the kernel would go on accepting
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> HttpProtocol:
        server = self._server
        return HttpProtocol(server.config, server.server_state, app_state={})

    @property
    def num_active(self) -> int:
        """Requests under way."""
        return len(self._server.server_state.tasks)

    async def close(self, grace_s: float) -> None:
        """Close idle connections at once and the others when they are done, after `grace_s` all."""
        self._server.should_exit = True
        assert self._task is not None, "not started"
        _, pending = await asyncio.wait({self._task}, timeout=grace_s)
        if pending:
            self._server.force_exit = True
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            await asyncio.wait({self._task}, timeout=1.0)
