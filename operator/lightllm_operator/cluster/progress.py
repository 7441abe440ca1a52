"""How far a download is: what the fetch container of a pod says of itself, by HTTP."""

from __future__ import annotations

import asyncio
import json

import aiohttp

from lightllm_operator.facts import DownloadProgress
from lightllm_operator.names import METRICS_PORT

__all__ = ["ProgressReader"]

_TIMEOUT_S = 2.0
_MAX_BYTES = 4096


class ProgressReader:
    """Asks pods by their addresses."""

    def __init__(self, session: aiohttp.ClientSession, *, port: int = METRICS_PORT) -> None:
        self._session = session
        self._port = port

    async def read(self, pod: str, address: str) -> DownloadProgress | None:
        """None where it does not answer, or not with that."""
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{self._port}/progress"
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._session.get(url) as answer:
                said = json.loads(await answer.content.read(_MAX_BYTES))
            return DownloadProgress(
                pod=pod, done=int(said["bytes_done"]), total=int(said["bytes_total"])
            )
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
            return None
