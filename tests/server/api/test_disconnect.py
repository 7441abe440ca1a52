"""A client that leaves, at whatever byte, frees its slots; one that does not read is dropped."""

from __future__ import annotations

import json
import random
import socket
import time

import pytest

from http_calls import address, metric
from server_process import wait_until

pytestmark = pytest.mark.slow

LONG = {"max_new_tokens": 400, "ignore_eos": True}


def request_bytes(path: str, body: dict) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def idle(url: str) -> bool:
    names = ("batch_current_size", "queue_size", "kv_tokens_used")
    return all(metric(url, f"lightllm_{name}") == 0 for name in names)


def resident_mb(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_leaving_aborts_at_once(fake, path):
    aborted = metric(fake.url, "lightllm_request_aborted_total")
    body = {"inputs": "abc", "parameters": {"max_new_tokens": 4000}}
    with socket.create_connection(address(fake.url)) as connection:
        connection.sendall(request_bytes(path, body))
        wait_until(lambda: metric(fake.url, "lightllm_batch_current_size") == 1, 5, "running")
    took = wait_until(lambda: idle(fake.url), 5, "slots are free")
    assert took < 0.5
    wait_until(
        lambda: metric(fake.url, "lightllm_request_aborted_total") == aborted + 1, 1, "counted"
    )


def test_leaving_while_waiting_frees_at_once(fake):
    """The fake runs 64 at once: a 65th waits, and its leaving is noticed without being run."""
    body = {"inputs": "abc", "parameters": {"max_new_tokens": 4000}}
    connections = [socket.create_connection(address(fake.url)) for _ in range(65)]
    for connection in connections:
        connection.sendall(request_bytes("/generate", body))
    wait_until(lambda: metric(fake.url, "lightllm_queue_size") == 1, 10, "one waits")
    connections.pop().close()
    assert wait_until(lambda: metric(fake.url, "lightllm_queue_size") == 0, 5, "none waits") < 0.5
    for connection in connections:
        connection.close()
    assert wait_until(lambda: idle(fake.url), 5, "slots are free") < 1.0


def cut_at_random(url: str, chance: random.Random) -> None:
    """One request, left after a random number of bytes, sent or received."""
    path = chance.choice(["/generate", "/generate_stream", "/v1/completions"])
    body = {"inputs": "x" * chance.randint(1, 90), "parameters": LONG}
    if path == "/v1/completions":
        body = {"prompt": ["a", "bc"], "n": 2, "max_tokens": 200, "stream": chance.random() < 0.5}
    data = request_bytes(path, body)
    if chance.random() < 0.3:
        data = data[: chance.randrange(len(data))]
    with socket.create_connection(address(url), timeout=1) as connection:
        connection.sendall(data)
        wanted = chance.choice([0, 1, 100, 1000, 10_000])
        received = 0
        try:
            while received < wanted:
                chunk = connection.recv(min(4096, wanted - received))
                if not chunk:
                    break
                received += len(chunk)
        except TimeoutError:
            pass
        if chance.random() < 0.5:
            # a reset instead of an orderly close
            linger = b"\x01\0\0\0\0\0\0\0"
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


@pytest.mark.parametrize(
    "num_cuts", [60, pytest.param(500, marks=[pytest.mark.whole, pytest.mark.timeout(1200)])]
)
def test_cuts_at_any_byte_free_all_slots(server, num_cuts):
    chance = random.Random(1)
    for number in range(num_cuts):
        cut_at_random(server.url, chance)
        if number % 20 == 19:
            assert wait_until(lambda: idle(server.url), 10, "all slots are free") < 1.0
    assert server.status("/readyz") == 200
    accepted = metric(server.url, "lightllm_request_count_total")
    outcomes = ("success", "failure", "aborted")
    ended = sum(metric(server.url, f"lightllm_request_{name}_total") for name in outcomes)
    assert accepted == ended


def test_a_client_that_never_reads_is_dropped(fake):
    """8 samples with 20 alternatives a token: far more than any socket buffers."""
    api = fake.pids()["api"]
    body = {
        "prompt": "abc",
        "n": 8,
        "logprobs": 20,
        "max_tokens": 4000,
        "stream": True,
    }
    before = resident_mb(api)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address(fake.url))
        connection.sendall(request_bytes("/v1/completions", body))
        wait_until(lambda: metric(fake.url, "lightllm_batch_current_size") == 1, 5, "running")
        most = before
        began = time.monotonic()
        while not idle(fake.url):
            most = max(most, resident_mb(api))
            assert time.monotonic() - began < 30
            time.sleep(0.05)
    assert most - before < 100
    assert metric(fake.url, "lightllm_http_in_flight") <= 2
