"""One small page of a pod, by HTTP: a pod may run any image, and answers what it likes."""

from __future__ import annotations

import asyncio

import aiohttp

__all__ = ["read_page"]

_TIMEOUT_S = 2.0


async def read_page(
    session: aiohttp.ClientSession, address: str, port: int, path: str, *, max_bytes: int
) -> str | None:
    """None where the pod does not answer in time, with 200, and with at most so many bytes of
    UTF-8; nobody is asked elsewhere."""
    host = f"[{address}]" if ":" in address else address
    try:
        async with (
            asyncio.timeout(_TIMEOUT_S),
            session.get(f"http://{host}:{port}{path}", allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                return None
            body = await answer.content.read(max_bytes + 1)
            while not answer.content.at_eof() and len(body) <= max_bytes:
                body += await answer.content.read(max_bytes + 1 - len(body))
        return None if len(body) > max_bytes else body.decode()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
