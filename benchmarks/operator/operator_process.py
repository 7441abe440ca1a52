"""The real operator as a process: its memory, CPU time and own metrics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Operator", "running"]

_SAMPLE_S = 0.5


class Operator:
    """peak_rss: bytes."""

    def __init__(self, pid: int, health_port: int) -> None:
        self._process = psutil.Process(pid)
        self._metrics = f"http://127.0.0.1:{health_port}/metrics"
        self.peak_rss = 0

    async def watch_memory(self) -> None:
        """Until cancelled."""
        while True:
            self.peak_rss = max(self.peak_rss, self.rss())
            await asyncio.sleep(_SAMPLE_S)

    def rss(self) -> int:
        return self._process.memory_info().rss

    def cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    async def reconciles(self) -> dict[float, float]:
        """Upper bound in seconds → reconciles so far that took no longer."""
        async with (
            aiohttp.ClientSession(raise_for_status=True) as session,
            session.get(self._metrics) as answer,
        ):
            text = await answer.text()
        return {
            float(sample.labels["le"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "lightllm_operator_reconcile_seconds_bucket"
        }


@contextlib.asynccontextmanager
async def running(kubeconfig: Path, image: str, log: Path) -> AsyncIterator[Operator]:
    """`python -m lightllm_operator`, ended with the block."""
    health_port = _free_port()
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "LIGHTLLM_SERVING_IMAGE": image,
        "LIGHTLLM_HEALTH_PORT": str(health_port),
        "POD_NAMESPACE": "default",
    }
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lightllm_operator"),
            env=environment,
            stdout=output,
            stderr=output,
        )
    operator = Operator(process.pid, health_port)
    memory = asyncio.create_task(operator.watch_memory())
    try:
        yield operator
    finally:
        memory.cancel()
        if process.returncode is not None:
            raise RuntimeError(f"the operator ended by itself; see {log}")
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 10)
        if process.returncode is None:
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
