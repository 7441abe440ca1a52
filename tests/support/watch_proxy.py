"""A proxy before the API server that spoils watches and notes writes; a thread of its own.

Plain HTTP towards the operator; the admin's token and verified TLS towards the API server.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

__all__ = ["WatchProxy", "Write"]

_OWN_HEADERS = {"content-length", "transfer-encoding", "connection", "host"}


@dataclass(frozen=True)
class Write:
    """A request that may have changed something; at: monotonic seconds of its arrival."""

    at: float
    method: str
    path: str
    status: int


class WatchProxy:
    """`with WatchProxy(kubeconfig, folder) as proxy`: `proxy.kubeconfig` leads through it."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._tls = ssl.create_default_context(cadata=authority)
        self._token = user["token"]
        self._config = config
        self.kubeconfig = folder / "proxied.kubeconfig"
        self.writes: list[Write] = []
        self.num_watches = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._watches: dict[int, asyncio.Transport] = {}
        # cleared: whatever watches would say is held back, on open connections
        self._flowing = asyncio.Event()
        # so many who want to watch are told that their version is too old
        self._num_gone, self._code = 0, 410
        self._write_seconds = 0.0
        self.num_slow = 0
        self._unreachable = False

    def __enter__(self) -> WatchProxy:
        self._thread.start()
        port = self._call(self._start())
        cluster = {"server": f"http://127.0.0.1:{port}"}
        config = {**self._config, "clusters": [{"name": "lightllm", "cluster": cluster}]}
        self.kubeconfig.write_text(json.dumps(config))
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Reset the connections of all watches."""
        self._call(self._cut())

    def stall(self) -> None:
        """No byte of any watch comes through, and no connection ends."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def resume(self) -> None:
        self._loop.call_soon_threadsafe(self._flowing.set)

    def expire(self, count: int, code: int = 410) -> None:
        """Cut all watches, and answer the next `count` of them with 410 Gone, or another error."""
        self._num_gone, self._code = count, code
        self.cut()

    @property
    def num_gone_left(self) -> int:
        return self._num_gone

    def unreachable(self, value: bool) -> None:
        """Whether every connection is reset, whatever it wants."""
        self._unreachable = value
        if value:
            self.cut()

    def slow_writes(self, seconds: float) -> None:
        """From now on each write but the Lease's takes so long."""
        self._write_seconds = seconds

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _start(self) -> int:
        self._flowing.set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        application = web.Application(client_max_size=64 * 2**20)
        application.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._flowing.set()
        await self._cut()
        await self._session.close()
        await self._runner.cleanup()
        # aiohttp lets handlers go on whose client is gone
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _cut(self) -> None:
        for transport in list(self._watches.values()):
            transport.abort()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        if self._unreachable:
            request.transport.abort()
            return web.Response(status=502)
        watch = request.query.get("watch") == "true"
        if watch:
            self.num_watches += 1
            if self._num_gone > 0:
                self._num_gone -= 1
                status = {"apiVersion": "v1", "kind": "Status", "code": self._code}
                event = json.dumps({"type": "ERROR", "object": status})
                return web.Response(text=f"{event}\n", content_type="application/json")
            self._watches[id(request)] = request.transport
        if self._write_seconds and request.method != "GET" and "/leases" not in request.path:
            self.num_slow += 1
            await asyncio.sleep(self._write_seconds)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _OWN_HEADERS}
        headers["Authorization"] = f"Bearer {self._token}"
        try:
            async with self._session.request(
                request.method,
                self._server + request.raw_path,
                headers=headers,
                data=await request.read() or None,
            ) as answer:
                if request.method != "GET":
                    self.writes.append(Write(arrived, request.method, request.path, answer.status))
                return await self._answer(request, answer, watch)
        except ConnectionError:
            # the operator's side was cut
            return web.Response(status=502)
        finally:
            self._watches.pop(id(request), None)

    async def _answer(
        self, request: web.Request, answer: aiohttp.ClientResponse, watch: bool
    ) -> web.StreamResponse:
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in _OWN_HEADERS}
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            if watch:
                await self._flowing.wait()
            await response.write(chunk)
        if watch:
            await self._flowing.wait()
        await response.write_eof()
        return response
