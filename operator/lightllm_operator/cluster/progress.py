"""How far a download is: what the fetch container of a pod says of itself, by HTTP."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from lightllm_operator.cluster.pod_page import read_page
from lightllm_operator.facts import DownloadProgress
from lightllm_operator.names import METRICS_PORT

__all__ = ["ProgressReader"]

_MAX_BYTES = 4096
# beyond it not every integer is a float
_MOST = 2.0**53


class ProgressReader:
    """Asks pods by their addresses."""

    def __init__(self, session: aiohttp.ClientSession, *, port: int = METRICS_PORT) -> None:
        self._session = session
        self._port = port

    async def read(self, pod: str, address: str) -> DownloadProgress | None:
        """None where it does not answer, or not with that."""
        page = await read_page(
            self._session, address, self._port, "/progress", max_bytes=_MAX_BYTES
        )
        if page is None:
            return None
        try:
            said = json.loads(page)
            done, total = (_num_bytes(said[name]) for name in ("bytes_done", "bytes_total"))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return DownloadProgress(pod=pod, done=done, total=total)


def _num_bytes(value: Any) -> int:
    """Raises ValueError or TypeError where it is no number of bytes that could be."""
    if not 0 <= value < _MOST:
        raise ValueError(f"{value} bytes")
    return int(value)
