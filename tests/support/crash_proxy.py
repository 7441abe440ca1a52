"""A proxy between one operator and the API server, that kills the operator at its k-th write.

Plain HTTP on loopback towards the operator, TLS and the admin's token towards the API server.

A write is a POST, PUT, PATCH or DELETE below the namespace that was armed. Events and Leases are
passed on uncounted: nothing that the operator does later depends on an Event, so that a death
around one equals the death after the write before it; a Lease is renewed by the clock.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
from aiohttp import web

__all__ = ["SIDES", "CrashProxy", "Fault", "Side", "running"]

Side = Literal["before", "after"]
SIDES: tuple[Side, ...] = ("before", "after")

_READS = ("GET", "HEAD", "OPTIONS")
_UNCOUNTED = re.compile(r"/(events|leases)(/|$|\?)")
# these concern one connection alone
_HOP = ("connection", "content-length", "host", "keep-alive", "transfer-encoding")


@dataclass(slots=True)
class Fault:
    """Kills `pid` at its k-th write in `namespace`, before it is forwarded or after it was carried
    out but before the answer; k = 0: never, only `writes` is kept."""

    namespace: str
    pid: int
    k: int = 0
    side: Side = "before"
    # "METHOD path" of each until it struck, in order
    writes: list[str] = field(default_factory=list)
    struck: threading.Event = field(default_factory=threading.Event)
    # by time.monotonic(), also those of the operator that came after
    last_write: float = 0.0


class CrashProxy:
    """One at a time: `fault` may be replaced between two operators."""

    def __init__(self, kubeconfig: Path) -> None:
        document = json.loads(kubeconfig.read_text())
        self._upstream = document["clusters"][0]["cluster"]["server"]
        self._token = document["users"][0]["user"]["token"]
        authority = document["clusters"][0]["cluster"]["certificate-authority-data"]
        self._tls = ssl.create_default_context(cadata=base64.b64decode(authority).decode())
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self.ready = threading.Event()
        self.url = ""
        self.fault: Fault | None = None

    def stop(self) -> None:
        """From any thread."""
        assert self._loop is not None, "stopped before it has started"
        self._loop.call_soon_threadsafe(self._stop.set)

    async def serve(self) -> None:
        """Until `stop`."""
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            self._session = session
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self.ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        strike = self._strikes(request)
        fault = self.fault
        if strike == "before":
            return self._kill(request, fault)
        answer = web.StreamResponse()
        assert self._session is not None, "serves before it has started"
        headers = {name: value for name, value in request.headers.items() if _passes(name)}
        async with self._session.request(
            request.method,
            self._upstream + request.raw_path,
            headers={**headers, "Authorization": f"Bearer {self._token}"},
            data=await request.read() or None,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as upstream:
            if strike == "after":
                await upstream.read()
                return self._kill(request, fault)
            answer.set_status(upstream.status)
            answer.headers.update({n: v for n, v in upstream.headers.items() if _passes(n)})
            # an operator that was killed, or a watch that it gave up
            with contextlib.suppress(ConnectionError):
                await answer.prepare(request)
                async for chunk in upstream.content.iter_any():
                    await answer.write(chunk)
        return answer

    def _strikes(self, request: web.Request) -> Side | None:
        """Count the request if it is a write; on which side of it the operator dies, if it does."""
        fault = self.fault
        if fault is None or request.method in _READS or _UNCOUNTED.search(request.path):
            return None
        if f"/namespaces/{fault.namespace}/" not in request.path:
            return None
        fault.last_write = time.monotonic()
        if fault.struck.is_set():
            return None
        fault.writes.append(f"{request.method} {request.path}")
        return fault.side if len(fault.writes) == fault.k else None

    def _kill(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        assert fault is not None, "a strike without a fault"
        os.kill(fault.pid, signal.SIGKILL)
        fault.struck.set()
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=502)


@contextlib.contextmanager
def running(kubeconfig: Path) -> Iterator[CrashProxy]:
    """In a thread of its own. kubeconfig: with a token, as JSON."""
    proxy = CrashProxy(kubeconfig)
    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve()), daemon=True)
    thread.start()
    assert proxy.ready.wait(10), "the proxy did not start"
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(10)


def _passes(header: str) -> bool:
    return header.lower() not in _HOP
