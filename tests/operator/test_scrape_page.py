"""What is read of a real server's metrics page."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace

import aiohttp
import pytest

from lightllm_operator.autoscale import PodSample
from lightllm_operator.cluster.scrape import Scraper
from lightllm_server.api.admission import ServiceRate
from lightllm_server.api.metrics import Metrics
from lightllm_server.status_page import Field, StatusPage


def scrape(page: bytes) -> dict[str, PodSample]:
    """A pod that answers with `page`."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(page) + page)
        await writer.drain()
        writer.close()

    async def ask():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, aiohttp.ClientSession() as session:
            return await Scraper(session, port=port).scrape({"p0": "127.0.0.1"})

    return asyncio.run(ask())


@pytest.fixture
def page(tmp_path) -> bytes:
    """The real exposition of a server that runs 12, queues 5 and has refused 3."""
    status = StatusPage.create(tmp_path / "status", ["api", "router"])
    router = status["router"]
    for field, value in (
        (Field.RUNNING, 12),
        (Field.MAX_RUNNING, 16),
        (Field.SLOTS_TOTAL, 1000),
        (Field.SLOTS_USED, 250),
    ):
        router[field] = value
    status["api"][Field.ACCEPTED] = 1234567
    status["api"][Field.REJECTED_429] = 3
    return Metrics(status, lambda: None, ServiceRate()).render()


def test_what_the_engine_chose_is_read(tmp_path):
    status = StatusPage.create(tmp_path / "status", ["api", "router"])
    metrics = Metrics(status, lambda: None, ServiceRate())
    reason = "auto keeps the model's dtype on the CPU"
    info = SimpleNamespace(kv_dtype="float32", kv_dtype_reason=reason)
    metrics.set_engine(info)
    sample = scrape(metrics.render())["p0"]
    assert (sample.kv_dtype, sample.kv_reason) == ("float32", reason)


def with_queue(page: bytes, line: bytes) -> bytes:
    """The page with another line for the queue."""
    changed, count = re.subn(rb"(?m)^lightllm_queue_size .*$", line, page)
    assert count == 1
    return changed


def test_a_real_servers_page_gives_its_sample(page):
    expected = PodSample(
        pod="p0",
        waiting=5,
        running=12,
        max_running=16,
        kv_usage=0.25,
        accepted_total=1234567.0,
        rejected_total=3.0,
        service_seconds_total=0.0,
        service_count_total=0.0,
    )
    assert scrape(with_queue(page, b"lightllm_queue_size 5.0")) == {"p0": expected}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"# lightllm_queue_size 5.0",
        b"lightllm_queue_size many",
        b"lightllm_queue_size NaN",
        b"lightllm_queue_size +Inf",
    ],
)
def test_a_page_without_a_number_gives_no_sample(page, line):
    assert scrape(with_queue(page, line)) == {}


def test_a_page_beyond_256_kib_gives_no_sample(page):
    assert scrape(page + b"# " + b"x" * 256 * 1024 + b"\n") == {}
