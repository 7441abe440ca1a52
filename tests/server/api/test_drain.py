"""SIGTERM: not ready at once, everything accepted is answered, exit 0."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import fake_engine
import server_process
from http_calls import call, connect, post_json, read, stream_events
from server_process import ServerProcess, wait_until
from tiny_llama import tiny_llama

pytestmark = pytest.mark.slow

BODY = b'{"inputs": "abc", "parameters": {"max_new_tokens": 20}}'


@contextmanager
def start(*options: str, step_ms: int | None = 2) -> Iterator[ServerProcess]:
    """step_ms: of a router without a model; None: the real one."""
    command = server_process.COMMAND if step_ms is None else fake_engine.COMMAND
    environment = {"FAKE_STEP_MS": str(step_ms)}
    with ServerProcess(tiny_llama(), *options, command=command, environment=environment) as server:
        server.wait_ready(120)
        yield server


class KeepAliveClient(threading.Thread):
    """Asks over one connection as long as the server keeps it; retries nothing."""

    def __init__(self, url: str, pause: float) -> None:
        super().__init__(daemon=True)
        self.url, self.pause = url, pause
        self.answers: list[tuple[int, str]] = []
        self.refused_at: float | None = None
        self.failure: BaseException | None = None

    def run(self) -> None:
        connection = connect(self.url)
        while True:
            try:
                if connection.sock is None:
                    connection.connect()
            except ConnectionRefusedError:
                # nothing was sent: the listener has stopped
                self.refused_at = time.monotonic()
                return
            try:
                connection.request("POST", "/generate", BODY)
                answer = read(connection)
            except (OSError, http.client.HTTPException) as error:
                self.failure = error
                return
            self.answers.append((answer.status, answer.headers.get("connection", "")))
            time.sleep(self.pause)


class Stream(threading.Thread):
    def __init__(self, url: str, max_tokens: int) -> None:
        super().__init__(daemon=True)
        self.url, self.max_tokens = url, max_tokens
        self.events: list = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        body = {
            "prompt": "abc",
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            for event in stream_events(self.url, "/v1/completions", body, 60):
                self.events.append(event)
        except (OSError, http.client.HTTPException) as error:
            self.failure = error


@pytest.mark.parametrize(
    ("step_ms", "num_tokens"), [(2, 2000), (None, 1000)], ids=["no model", "model"]
)
def test_keep_alive_clients_lose_no_request(step_ms, num_tokens):
    with start("--drain-delay", "3", "--drain-time", "60", step_ms=step_ms) as server:
        clients = [KeepAliveClient(server.url, 0.05 * n) for n in range(1, 9)]
        streams = [Stream(server.url, num_tokens) for _ in range(20)]
        for thread in (*clients, *streams):
            thread.start()
        wait_until(lambda: all(stream.events for stream in streams), 20, "streams run")
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.status("/readyz") == 503, 1, "not ready", 0.01)
        assert time.monotonic() - began < 0.5
        assert server.status("/livez") == 200
        time.sleep(0.5)
        # a second one changes nothing, whoever gets it
        server.process.send_signal(signal.SIGTERM)
        os.kill(server.pids()["api"], signal.SIGTERM)
        late = post_json(server.url, "/generate", BODY)
        assert late.status == 200
        assert late.headers["connection"] == "close"
        assert server.wait_exit(70) == 0
        for thread in (*clients, *streams):
            thread.join(10)
        for client in clients:
            assert client.failure is None, repr(client.failure)
            assert {status for status, _ in client.answers} == {200}
            assert client.refused_at is not None
            assert client.refused_at - began > 2.5
            assert client.answers[-1][1] == "close"
        for stream in streams:
            assert stream.failure is None
            assert stream.events[-1] == "[DONE]"
            assert stream.events[-2]["choices"][0]["finish_reason"] == "length"


def test_200_streams_complete():
    with start("--drain-delay", "0.5", "--drain-time", "60") as server:
        streams = [Stream(server.url, 300) for _ in range(200)]
        for stream in streams:
            stream.start()
        wait_until(lambda: sum(bool(s.events) for s in streams) >= 64, 30, "streams run")
        wait_until(
            lambda: (
                b"lightllm_request_count_total 201.0" in call(server.url, "GET", "/metrics").body
            ),
            30,
            "all accepted",
        )
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit(70) == 0
        for stream in streams:
            stream.join(10)
        assert [s.failure for s in streams] == [None] * 200
        assert {s.events[-1] for s in streams} == {"[DONE]"}


def test_drain_time_ends_what_still_runs_with_an_error_event():
    with start("--drain-delay", "0.2", "--drain-time", "1.5", step_ms=20) as server:
        stream = Stream(server.url, 2000)
        stream.start()
        whole: list = []
        thread = threading.Thread(
            target=lambda: whole.append(
                post_json(
                    server.url,
                    "/generate",
                    {"inputs": "a", "parameters": {"max_new_tokens": 2000}},
                )
            )
        )
        thread.start()
        wait_until(lambda: stream.events, 10, "stream runs")
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit(20) == 0
        assert 1.2 < time.monotonic() - began < 5
        stream.join(5)
        thread.join(5)
        assert stream.failure is None
        assert stream.events[-1]["error"]["code"] == "shutting_down"
        assert whole[0].status == 503
        assert whole[0].error["code"] == "shutting_down"


def test_idle_keep_alive_connections_do_not_delay_the_exit():
    with start("--drain-delay", "0.2", "--drain-time", "30") as server:
        connections = [connect(server.url) for _ in range(5)]
        for connection in connections:
            connection.request("GET", "/livez")
            assert read(connection).status == 200
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit(20) == 0
        assert time.monotonic() - began < 5
        for connection in connections:
            connection.close()
