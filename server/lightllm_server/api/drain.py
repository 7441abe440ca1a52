"""The end of the api process: a drain on SIGTERM, last words when another process has failed."""

from __future__ import annotations

import asyncio
import logging
import time

from lightllm_server.api.http_server import HttpServer
from lightllm_server.api.in_flight import InFlight
from lightllm_server.errors import RequestError
from lightllm_server.status_page import State, StatusRow

__all__ = ["drain", "last_words"]

logger = logging.getLogger(__name__)

_STEP_S = 0.02
_FLUSH_S = 2.0
# of clients far away; it costs nobody anything, since a client that is not heard asks again later
_ROUND_TRIP_S = 0.2
_LAST_WORDS_S = 0.5


async def drain(
    servers: list[HttpServer],
    in_flight: InFlight,
    row: StatusRow,
    *,
    delay_s: float,
    limit_s: float,
) -> None:
    """Accept for `delay_s` more, let what was accepted finish, end the rest after `limit_s`.

    `servers[0]` is the main port. Readiness is over from the first moment on, and every response
    closes its connection, so that clients with keep-alive have left when the listener stops.
    """
    began = time.monotonic()
    row.state = State.DRAINING
    logger.info("draining: new requests are accepted for %g s more", delay_s)
    await asyncio.sleep(min(delay_s, limit_s))
    main = servers[0]
    await main.stop_listening(_ROUND_TRIP_S)
    await _finished(main, in_flight, began + limit_s)
    if main.num_active or len(in_flight):
        logger.warning("drain time is over: ending %d requests", len(in_flight))
        in_flight.fail_all(
            RequestError("the server is shutting down", status=503, code="shutting_down")
        )
    for server in servers:
        await server.close(_FLUSH_S)


async def _finished(main: HttpServer, in_flight: InFlight, deadline: float) -> None:
    while (main.num_active or len(in_flight)) and time.monotonic() < deadline:  # noqa: ASYNC110
        # both are polled: neither's end is an event of ours
        await asyncio.sleep(_STEP_S)


async def last_words(servers: list[HttpServer], in_flight: InFlight, problem: str) -> None:
    """Tell every client that its request is lost, as long as the supervisor lets us."""
    logger.error("%s: ending %d requests", problem, len(in_flight))
    in_flight.fail_all(
        RequestError("the engine failed, the request is lost", status=503, code="engine_failed")
    )
    await servers[0].stop_listening(0.0)
    for server in servers:
        await server.close(_LAST_WORDS_S)
