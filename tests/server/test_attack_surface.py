"""What the running server offers to somebody on its machine: two ports, and sockets that shrug."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from lightllm_server.client import Client
from lightllm_server.run_directory import open_page
from lightllm_server.status_page import Field
from server_process import ServerProcess, free_port, wait_until
from tiny_llama import tiny_llama

pytestmark = pytest.mark.slow

NUM_FRAMES = 2000


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(metrics_port: int) -> Iterator[ServerProcess]:
    model_dir = tiny_llama()
    options = ["--tp", "2", "--metrics-port", str(metrics_port)]
    with ServerProcess(model_dir, *options) as running:
        running.wait_ready(90)
        yield running


def run_directory(server: ServerProcess) -> Path:
    path = server.run_directory()
    assert path is not None
    return path


def hostile_frames() -> Iterator[bytes]:
    """Random bytes, pickles, deep arrays and forged lengths, the same ones every time."""
    rng = random.Random(7)
    for index in range(NUM_FRAMES):
        kind = index % 4
        if kind == 0:
            yield rng.randbytes(rng.randrange(400))
        elif kind == 1:
            yield pickle.dumps({"request_id": rng.random(), "prompt": [1] * rng.randrange(50)})
        elif kind == 2:
            yield b"\x91" * rng.randrange(1, 5000)
        else:
            yield b"\xdd" + rng.randbytes(4) + b"\x01" * 20


def test_only_the_two_ports_listen_and_only_on_loopback(
    server: ServerProcess, metrics_port: int
) -> None:
    listening = {}
    for name, pid in server.pids().items():
        for connection in psutil.Process(pid).net_connections():
            if connection.status == "LISTEN":
                listening.setdefault(name, []).append(connection.laddr)
    assert {address.port for address in listening.pop("api")} == {server.port, metrics_port}
    # gloo's ranks find each other on loopback
    assert set(listening) <= {"router", "rank-1"}
    assert all(a.ip in ("127.0.0.1", "::1") for found in listening.values() for a in found)


def test_the_run_directory_is_private(server: ServerProcess) -> None:
    assert run_directory(server).stat().st_mode & 0o777 == 0o700


def test_hostile_frames_are_dropped_by_every_process(server: ServerProcess) -> None:
    run_dir = run_directory(server)
    sockets = sorted(run_dir.glob("*.sock"))
    assert len(sockets) >= 7, sockets
    context = zmq.Context()
    for path in sockets:
        attacker = context.socket(zmq.PUSH)
        attacker.setsockopt(zmq.SNDTIMEO, 10_000)
        attacker.setsockopt(zmq.LINGER, 5_000)
        attacker.connect(f"ipc://{path}")
        for frame in hostile_frames():
            attacker.send(frame)
        attacker.close()
    context.term()
    router = open_page(run_dir)["router"]
    wait_until(
        lambda: router[Field.REJECTED_FRAMES] >= 2 * NUM_FRAMES, 20, "frames counted by the router"
    )
    before = server.pids()
    assert Client(server.url).query("Hello", chat=False, max_new_tokens=4)
    assert server.status("/readyz") == 200
    assert server.pids() == before
