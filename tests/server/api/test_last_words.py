"""When another process dies, every client hears of it before the tree is gone."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import fake_engine
from http_calls import call, events, metric, post_json
from server_process import ServerProcess, wait_until
from tiny_llama import tiny_llama

pytestmark = pytest.mark.slow


def stand_still(server: ServerProcess, seconds: float) -> None:
    """As if the machine did, for who watches and who tells."""
    pids = [server.pids()[name] for name in ("supervisor", "api")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("victim", "pause", "drains"),
    [
        ("router", 0, False),
        ("detok", 0, False),
        ("tokenize-0", 0, False),
        ("router", 1.3, False),
        ("router", 0, True),
    ],
)
def test_clients_get_an_error_within_two_seconds(victim, pause, drains):
    options, environment = ("--drain-delay", "0"), {"FAKE_STEP_MS": "20"}
    with ServerProcess(
        tiny_llama(), *options, command=fake_engine.COMMAND, environment=environment
    ) as server:
        server.wait_ready(120)
        answers = []

        def ask(path: str) -> None:
            body = {"inputs": "abc", "parameters": {"max_new_tokens": 2000}}
            answers.append((path, post_json(server.url, path, body), time.monotonic()))

        threads = [
            threading.Thread(target=ask, args=(path,))
            for path in ["/generate_stream"] * 8 + ["/generate"] * 8
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: metric(server.url, "lightllm_batch_current_size") == 16, 10, "all run")
        victim_pid = server.pids()[victim]
        if drains:
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.status("/livez") is None, 5, "it has stopped listening")
        began = time.monotonic()
        os.kill(victim_pid, signal.SIGKILL)
        if pause:
            time.sleep(0.01)
            stand_still(server, pause)
        for thread in threads:
            thread.join(10)
        assert server.wait_exit(10) == 70
        assert len(answers) == 16
        for path, answer, ended in answers:
            assert ended - began - pause < 2
            if path == "/generate":
                assert answer.status == 503
                assert answer.error["code"] == "engine_failed"
            else:
                assert events(answer.body)[-1]["error"]["code"] == "engine_failed"


def test_requests_while_the_model_loads_are_refused():
    """The port answers from the start: 503 until the first token, then 200."""
    with ServerProcess(tiny_llama(), "--drain-delay", "0") as server:
        wait_until(lambda: server.status("/livez") == 200, 60, "the port answers")
        seen = set()
        while server.status("/readyz") != 200:
            answer = post_json(server.url, "/generate", {"inputs": "x"})
            seen.add(answer.status)
            assert answer.status == 200 or answer.error["code"] == "loading"
            assert call(server.url, "GET", "/livez").status == 200
        assert 503 in seen
        assert post_json(server.url, "/generate", {"inputs": "x"}).status == 200
