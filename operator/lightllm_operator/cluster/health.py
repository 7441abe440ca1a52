"""`/healthz`, `/readyz` and `/metrics` for the kubelet and Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["HealthServer"]

logger = logging.getLogger(__name__)

Problems = Callable[[], Sequence[str]]


class HealthServer:
    """`unhealthy` and `unready` say what is wrong, nothing if all is well. That they are answered
    at all shows that the event loop runs."""

    def __init__(self, *, unhealthy: Problems, unready: Problems) -> None:
        self._checks = {"/healthz": unhealthy, "/readyz": unready}
        self._said = ""
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> None:
        """Raises OSError where the port is taken."""
        application = web.Application()
        for path in self._checks:
            application.router.add_get(path, self._check)
        application.router.add_get("/metrics", _metrics)
        self._runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=1.0
        )
        await self._runner.setup()
        # all addresses of both families
        await web.TCPSite(self._runner, None, port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _check(self, request: web.Request) -> web.Response:
        problems = list(self._checks[request.path]())
        if request.path == "/healthz":
            self._say("; ".join(problems))
        text = "\n".join(problems or ["ok"])
        return web.Response(status=503 if problems else 200, text=f"{text}\n")

    def _say(self, problems: str) -> None:
        """Once per change, not once per probe."""
        if problems and not self._said:
            logger.warning("/healthz fails: %s", problems)
        elif self._said and not problems:
            logger.info("/healthz is well again")
        self._said = problems


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
