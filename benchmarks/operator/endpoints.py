"""Fake metric endpoints: one process that answers for many pods, each on a loopback address.

    python benchmarks/operator/endpoints.py COUNT PORT

GET /metrics gives what a real server's metrics would be, all histograms included; GET /queue/12
makes this address report 12 waiting requests from then on. Prints `ready` once it listens.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from lightllm_server.api.admission import ServiceRate
from lightllm_server.api.metrics import Metrics
from lightllm_server.status_page import Field, StatusPage

__all__ = ["addresses"]

# a pod that queues is full
_IDLE = (b"\nlightllm_queue_size 0.0\n", b"\nlightllm_batch_current_size 4.0\n")
_FULL = (b"\nlightllm_queue_size %b\n", b"\nlightllm_batch_current_size 16.0\n")


def addresses(count: int) -> list[str]:
    """Loopback addresses that nothing else is likely to use."""
    return [f"127.77.{index // 250}.{index % 250 + 1}" for index in range(count)]


def real_metrics() -> bytes:
    """The exposition of a server that runs 4 of 16 requests and queues none."""
    with tempfile.TemporaryDirectory() as folder:
        page = StatusPage.create(Path(folder) / "status", ["api", "router"])
        page["router"][Field.RUNNING] = 4
        page["router"][Field.MAX_RUNNING] = 16
        page["router"][Field.SLOTS_TOTAL] = 1000
        page["router"][Field.SLOTS_USED] = 100
        return Metrics(page, lambda: None, ServiceRate()).render()


class _Pod(asyncio.Protocol):
    """One connection; keeps it alive."""

    metrics: bytes
    waiting: dict[str, bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "TCP gives a transport that writes"
        self._transport = transport
        self._address = transport.get_extra_info("sockname")[0]

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ", 2)[1]
        body = self.metrics
        if path.startswith(b"/queue/"):
            self.waiting[self._address], body = path[len("/queue/") :], b""
        elif (waiting := self.waiting.get(self._address, b"0")) != b"0":
            body = body.replace(_IDLE[0], _FULL[0] % waiting).replace(_IDLE[1], _FULL[1])
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


async def serve(count: int, port: int) -> None:
    _Pod.metrics, _Pod.waiting = real_metrics(), {}
    assert all(line in _Pod.metrics for line in _IDLE), "the server's metrics look different"
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Pod, addresses(count), port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
