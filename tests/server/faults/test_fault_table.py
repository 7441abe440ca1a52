"""The fault table: each process killed or stopped in each phase, on the real tree with two ranks.

Whatever is hit, the whole server ends, quickly and loudly: clients see an end, readiness is over,
no process is left. A stopped process counts as dead after 15 s.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

from fault_table import CELLS, Cell, Outcome
from lightllm_server.run_directory import open_page
from lightllm_server.status_page import BEAT_LIMIT_S, State
from server_process import ServerProcess, wait_until
from stream_clients import start_clients
from tiny_llama import tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NUM_STREAMS = 8
# longer than any cell takes
NUM_TOKENS = 15000
CLIENTS_S, NOT_READY_S, GONE_S = 2.0, 1.0, 5.0
# a stop is noticed at the limit, give or take a look of the watcher
STOPPED_S = BEAT_LIMIT_S + 1.0


class ReadyProbe(threading.Thread):
    """Asks /readyz all the time; `lost` is when it first was not 200 any more."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.lost: float | None = None

    def run(self) -> None:
        while self.lost is None:
            # longer than a stopped api stays undetected: silence is no answer
            if self._server.status("/readyz", timeout=30) != 200:
                self.lost = time.monotonic()
            time.sleep(0.01)


def wait_loading(server: ServerProcess) -> None:
    """Until the router loads: torch is imported then, and nothing is ready."""

    def loads() -> bool:
        directory = server.run_directory()
        if directory is None:
            return False
        page = open_page(directory)
        return page["router"].state is State.LOADING and len(server.pids()) == len(page.rows)

    wait_until(loads, 60, "the router loads")


@pytest.fixture
def server():
    with tempfile.TemporaryDirectory(prefix="t-") as directory:
        options = ["--tp", "2", "--device", "cpu", "--max-total-token-num", "140000"]
        model = tiny_llama(max_position_embeddings=16384)
        environment = {"TMPDIR": directory}
        with ServerProcess(model, *options, environment=environment) as running:
            yield running


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_fault_ends_the_server(server, cell, fault_table):
    outcome = measure(server, cell)
    fault_table.outcomes[cell] = outcome
    late = STOPPED_S if cell.signal == "SIGSTOP" else 0.0
    assert outcome.not_ready <= late + NOT_READY_S
    assert outcome.gone <= late + GONE_S
    assert outcome.exit_code != 0
    assert outcome.orphans == 0
    if outcome.clients is None:
        return
    assert outcome.clients <= late + CLIENTS_S
    # the api, while it lives, says what happened; it dies with the supervisor
    if cell.victim not in ("api", "supervisor"):
        assert outcome.told == NUM_STREAMS


def measure(server: ServerProcess, cell: Cell) -> Outcome:
    clients = []
    if cell.phase == "loading":
        wait_loading(server)
    else:
        server.wait_ready(90)
    if cell.phase == "8 streams":
        clients = start_clients(server.port, NUM_STREAMS, NUM_TOKENS)
    pids = server.pids()
    assert len(pids) == 7, pids
    probe = ReadyProbe(server)
    probe.start()
    if cell.phase != "loading":
        time.sleep(0.2)
        assert probe.lost is None
    began = time.monotonic()
    os.kill(pids[cell.victim], getattr(signal, cell.signal))
    limit = STOPPED_S + 10
    gone = wait_until(lambda: not server.survivors(), limit, f"tree gone, log:\n{server.log}")
    for thread in (probe, *clients):
        thread.join(5)
        assert not thread.is_alive(), "a client does not see the end"
    lost = probe.lost or 0.0
    return Outcome(
        clients=max(client.ended - began for client in clients) if clients else None,
        told=sum(client.was_told for client in clients),
        # while it loads it was never ready
        not_ready=max(0.0, lost - began),
        gone=gone,
        exit_code=server.wait_exit(1),
        orphans=orphans(server),
    )


def orphans(server: ServerProcess) -> int:
    """Processes of any parent that name this server's run directory."""
    directory = str(server.run_directory()).encode()
    found = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += directory in entry.read_bytes()
        except OSError:
            continue
    return found
