"""Asking pods that say anything how far their download is: an answer or none, never an error."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from fake_page import pod
from lightllm_operator.cluster.progress import ProgressReader
from lightllm_operator.facts import DownloadProgress

GOOD = '{"state": "downloading", "bytes_done": 3, "bytes_total": 9}'


def progress(port: int) -> DownloadProgress | None:
    async def ask():
        async with aiohttp.ClientSession() as session:
            return await ProgressReader(session, port=port).read("p", "127.0.0.1")

    return asyncio.run(ask())


def test_a_pod_is_asked_how_far_it_is() -> None:
    with pod(GOOD) as (port, asked):
        assert progress(port) == DownloadProgress(pod="p", done=3, total=9)
    assert asked == ["/progress"]


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "-1", "1e300", "null", '"3"'])
@pytest.mark.parametrize("name", ["bytes_done", "bytes_total"])
def test_a_number_that_cannot_be_is_no_answer(name: str, value: str) -> None:
    number = {"bytes_done": "3", "bytes_total": "9"}[name]
    with pod(GOOD.replace(f'"{name}": {number}', f'"{name}": {value}')) as (port, _):
        assert progress(port) is None


@pytest.mark.parametrize("body", ["", "\0", "[]", "{}", "[" * 4000, GOOD + " " * 4096])
def test_another_text_is_no_answer(body: str) -> None:
    with pod(body) as (port, _):
        assert progress(port) is None


def test_another_status_is_no_answer() -> None:
    with pod(GOOD, 404) as (port, _):
        assert progress(port) is None


def test_no_pod_sends_the_operator_elsewhere() -> None:
    with (
        pod(GOOD) as (target, asked),
        pod("", 302, Location=f"http://127.0.0.1:{target}/progress") as (port, _),
    ):
        assert progress(port) is None
    assert asked == []
