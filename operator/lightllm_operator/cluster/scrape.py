"""The pods' metrics: one small, bounded HTTP request each, all at once."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping

import aiohttp

from lightllm_operator import metrics
from lightllm_operator.autoscale import PodSample
from lightllm_operator.cluster.pod_page import read_page
from lightllm_operator.names import METRICS_PORT

__all__ = ["Scraper"]

_MAX_BYTES = 256 * 1024
_AT_ONCE = 64
# beyond it not every integer is a float
_MOST = 2.0**53
_NEEDED = {
    "lightllm_queue_size": "waiting",
    "lightllm_batch_current_size": "running",
    "lightllm_max_running": "max_running",
    "lightllm_kv_usage_ratio": "kv_usage",
    "lightllm_request_count_total": "accepted_total",
    "lightllm_request_rejected_total": "rejected_total",
    "lightllm_request_service_duration_sum": "service_seconds_total",
    "lightllm_request_service_duration_count": "service_count_total",
}
# a page has several hundred lines, nearly all of them histograms' buckets: only these are looked at
_LINE = re.compile(rf"^({'|'.join(_NEEDED)})(?:{{[^}}\n]*}})? (\S+)", re.MULTILINE)
# what it says is shown in the status: short words of a known form
_KV_CACHE = re.compile(
    r'^lightllm_engine_info{kv_dtype="([a-z0-9]{1,16})",kv_dtype_reason="([^"\\\n]{0,200})"} 1',
    re.MULTILINE,
)


class Scraper:
    """Asks pods by their addresses."""

    def __init__(self, session: aiohttp.ClientSession, *, port: int = METRICS_PORT) -> None:
        self._session = session
        self._port = port
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def scrape(self, pods: Mapping[str, str]) -> dict[str, PodSample]:
        """pods: name → address. The samples of those that answered in time and in full."""
        samples = await asyncio.gather(*(self._one(name, ip) for name, ip in pods.items()))
        return {sample.pod: sample for sample in samples if sample is not None}

    async def _one(self, pod: str, address: str) -> PodSample | None:
        async with self._slots:
            began = time.monotonic()
            sample = await self._ask(pod, address)
        metrics.SCRAPE_SECONDS.observe(time.monotonic() - began)
        if sample is None:
            metrics.SCRAPE_FAILURES.inc()
        return sample

    async def _ask(self, pod: str, address: str) -> PodSample | None:
        page = await read_page(self._session, address, self._port, "/metrics", max_bytes=_MAX_BYTES)
        try:
            return None if page is None else _sample(pod, page)
        except ValueError:
            return None


def _sample(pod: str, text: str) -> PodSample:
    """Raises ValueError where a metric is missing or no number that it could be: a pod may run any
    image, and what it says must not end the round for the others."""
    values: dict[str, float] = {}
    for name, text_of in _LINE.findall(text):
        value = float(text_of)
        if not 0 <= value < _MOST:
            raise ValueError(f"{name}: {value}")
        values[_NEEDED[name]] = value
    if len(values) < len(_NEEDED):
        raise ValueError(f"missing metrics: {sorted(set(_NEEDED.values()) - values.keys())}")
    kv_cache = _KV_CACHE.search(text)
    kv_dtype, kv_reason = kv_cache.groups() if kv_cache else ("", "")
    return PodSample(
        pod=pod,
        waiting=int(values["waiting"]),
        running=int(values["running"]),
        max_running=int(values["max_running"]),
        kv_usage=values["kv_usage"],
        accepted_total=values["accepted_total"],
        rejected_total=values["rejected_total"],
        service_seconds_total=values["service_seconds_total"],
        service_count_total=values["service_count_total"],
        kv_dtype=kv_dtype,
        kv_reason=kv_reason,
    )
