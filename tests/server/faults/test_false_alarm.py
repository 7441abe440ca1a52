"""No false alarm: long prefills on a model that is slowed to a fifth are work, not a hang."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time

import pytest

from lightllm_server.run_directory import open_page
from lightllm_server.status_page import Field
from server_process import ServerProcess
from stream_clients import StreamClient
from tiny_llama import tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STOPPED_S, RUNNING_S = 0.08, 0.02
# one byte is one token
PROMPT = "long " * 800


class Slowed(threading.Thread):
    """Lets a process run a fifth of the time."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            os.kill(self._pid, signal.SIGSTOP)
            time.sleep(STOPPED_S)
            os.kill(self._pid, signal.SIGCONT)
            self._over.wait(RUNNING_S)

    def stop(self) -> None:
        self._over.set()
        self.join()


@pytest.mark.parametrize("seconds", [30, pytest.param(120, marks=pytest.mark.whole)])
def test_long_prefills_on_a_slow_model_are_no_hang(seconds):
    # a prompt takes two steps, a step several seconds when it is slowed
    model = tiny_llama(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=8, max_position_embeddings=16384
    )
    options = ["--device", "cpu", "--max-total-token-num", "20000", "--batch-max-tokens", "2048"]
    with (
        tempfile.TemporaryDirectory(prefix="t-") as directory,
        ServerProcess(model, *options, environment={"TMPDIR": directory}) as server,
    ):
        server.wait_ready(90)
        page = open_page(server.run_directory())
        slowed = Slowed(server.pids()["router"])
        slowed.start()
        clients: list[StreamClient] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            live = [client for client in clients if client.ended is None]
            # all prompts differ from the first character on: no help from the prefix cache
            for number in range(len(clients), len(clients) + 2 - len(live)):
                client = StreamClient(server.port, f"{number} {PROMPT}", 4)
                client.start()
                clients.append(client)
            assert server.process.poll() is None, server.log
            assert server.status("/readyz") == 200
            assert server.status("/livez") == 200
            time.sleep(0.25)
        slowed.stop()
        for client in clients:
            client.join(60)
        assert [client.last for client in clients if '"finished":true' not in client.last] == []
        # prefill kept the router busy the whole time
        row = page["router"]
        assert row[Field.PROMPT_TOKENS] >= len(clients) * len(PROMPT)
        assert row[Field.STEP_TIME_NS] > 0.8 * seconds * 1e9
        server.process.kill()
