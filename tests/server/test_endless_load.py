"""What the probes say while a model loads: the operator's startup probe ends a load without end."""

from __future__ import annotations

from pathlib import Path

from endless_load import COMMAND
from server_process import ServerProcess, free_port, wait_until

DEMO = Path(__file__).parents[2] / "examples" / "demo-model"


def test_a_server_that_loads_lives_and_is_not_ready():
    metrics_port = free_port()
    options = ("--device", "cpu", "--metrics-port", str(metrics_port))
    with ServerProcess(DEMO, *options, command=COMMAND) as server:
        server.url = f"http://127.0.0.1:{metrics_port}"
        wait_until(lambda: server.status("/livez") == 200, 60, "it lives")
        assert server.status("/readyz") == 503
        assert server.process.poll() is None
