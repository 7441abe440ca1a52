"""A small asyncio HTTP client: streams completions and notes when tokens arrive.

Written by hand because it shares the cores with the server that it measures: a general client
costs several times as much per streamed token.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any

from measure import Round
from workload import CONCURRENCY, Request

HOST = "127.0.0.1"
TIMEOUT_SECONDS = 900.0


class ClientError(RuntimeError):
    """The server's answer was not what was asked for."""


async def open_request(
    port: int, path: str, body: dict[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send one POST on a connection of its own and read the head of the response."""
    reader, writer = await asyncio.open_connection(HOST, port, limit=2**24)
    payload = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    writer.write(head.encode() + payload)
    status, *_ = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    if status.split()[1] != "200":
        raise ClientError(f"{path}: {status}: {(await reader.read()).decode()[:500]}")
    return reader, writer


async def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request, one JSON object."""
    reader, writer = await open_request(port, path, body)
    try:
        answer: dict[str, Any] = json.loads(_unchunked(await reader.read()))
    finally:
        writer.close()
    return answer


def _unchunked(raw: bytes) -> bytes:
    """The body, also where it came with chunked transfer encoding."""
    if raw.lstrip()[:1] in (b"{", b"["):
        return raw
    parts = []
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        parts.append(raw[:length])
        raw = raw[length + 2 :]
    return b"".join(parts)


async def stream_completion(
    port: int, prompt: list[int] | str, output_len: int, model: str
) -> tuple[float, float]:
    """TTFT and TPOT in seconds of one forced-length completion; raises ClientError."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_len,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.perf_counter()
    reader, writer = await open_request(port, "/v1/completions", body)
    first = last = 0.0
    usage: dict[str, Any] = {}
    try:
        async for line in reader:
            if not line.startswith(b"data:"):
                continue
            if line.startswith(b"data: [DONE]"):
                break
            last = time.perf_counter()
            first = first or last
            if b'"usage":{' in line:
                usage = json.loads(line.removeprefix(b"data:"))["usage"]
    finally:
        writer.close()
    if usage.get("completion_tokens") != output_len:
        raise ClientError(f"asked for {output_len} tokens, the server says {usage}")
    return first - start, (last - first) / max(1, output_len - 1)


async def _closed_loop(port: int, requests: Iterable[Request], model: str) -> list[Any]:
    pending = iter(requests)
    done: list[Any] = []

    async def worker() -> None:
        for request in pending:
            done.append(
                await stream_completion(port, request.prompt_ids, request.output_len, model)
            )

    async with asyncio.timeout(TIMEOUT_SECONDS):
        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return done


def run_round(port: int, requests: list[Request], model: str) -> Round:
    """All requests, `CONCURRENCY` at a time, each worker taking the next when its own is done."""
    start = time.perf_counter()
    times = asyncio.run(_closed_loop(port, requests, model))
    return Round(
        seconds=time.perf_counter() - start,
        output_tokens=sum(request.output_len for request in requests),
        ttft=[ttft for ttft, _ in times],
        tpot=[tpot for _, tpot in times],
    )
