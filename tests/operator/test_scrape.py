"""Scraping pods that say anything: one sample or none, and never an error for the others."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from fake_page import pod
from lightllm_operator.cluster import scrape

GOOD = "".join(f"{name} 1\n" for name in scrape._NEEDED)


def samples(port: int):
    async def ask():
        async with aiohttp.ClientSession() as session:
            return await scrape.Scraper(session, port=port).scrape({"p": "127.0.0.1"})

    return asyncio.run(ask())


def test_a_pod_is_asked_for_its_metrics() -> None:
    with pod(GOOD) as (port, asked):
        assert samples(port)["p"].waiting == 1
    assert asked == ["/metrics"]


@pytest.mark.parametrize("value", ["+Inf", "-Inf", "NaN", "-1", "1e300", "x", ""])
def test_a_number_that_cannot_be_gives_no_sample(value: str) -> None:
    with pod(GOOD.replace("lightllm_queue_size 1", f"lightllm_queue_size {value}")) as (port, _):
        assert samples(port) == {}


KV = 'lightllm_engine_info{kv_dtype="int8",kv_dtype_reason="auto: supported"} 1.0\n'


@pytest.mark.parametrize(
    ("line", "kv"),
    [
        (KV, ("int8", "auto: supported")),
        # of an earlier version, or of another program
        ("", ("", "")),
        (KV.replace("int8", "<script>"), ("", "")),
        (KV.replace("supported", "x" * 300), ("", "")),
    ],
)
def test_what_a_server_says_of_its_kv_cache(line: str, kv: tuple[str, str]) -> None:
    with pod(GOOD + line) as (port, _):
        sample = samples(port)["p"]
    assert (sample.kv_dtype, sample.kv_reason) == kv


@pytest.mark.parametrize("body", ["", "\0", "lightllm_queue_size 1\n", GOOD + "#" * 2**18])
def test_another_text_gives_no_sample(body: str) -> None:
    with pod(body) as (port, _):
        assert samples(port) == {}


def test_no_pod_sends_the_operator_elsewhere() -> None:
    with (
        pod(GOOD) as (target, asked),
        pod("", 302, Location=f"http://127.0.0.1:{target}/metrics") as (port, _),
    ):
        assert samples(port) == {}
    assert asked == []
