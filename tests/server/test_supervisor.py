"""The real supervisor and process entry over stub roles: ends, exit codes, drain, cleaning up."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from server_process import ServerProcess, free_port, wait_until
from stub_roles import COMMAND
from tiny_llama import tiny_llama

pytestmark = pytest.mark.slow


@pytest.fixture
def tmp_path():
    """Shorter than pytest's own, which is too long for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="t-") as directory:
        yield Path(directory)


@pytest.fixture
def start(tmp_path):
    """Start a stub server whose run directory is below `tmp_path`; killed at the end."""
    servers = []

    def start_one(*options: str, **stubs: str) -> ServerProcess:
        environment = {f"STUB_{role.upper()}": action for role, action in stubs.items()}
        environment["TMPDIR"] = str(tmp_path)
        server = ServerProcess(tiny_llama(), *options, command=COMMAND, environment=environment)
        servers.append(server)
        return server

    yield start_one
    for server in servers:
        server.kill()


def assert_all_gone(server: ServerProcess, tmp_path: Path) -> None:
    wait_until(lambda: not server.survivors(), 1.0, "every process gone")
    assert list(tmp_path.glob("lightllm-*")) == []


def test_starts_all_roles_and_stops_on_sigterm(start, tmp_path):
    server = start("--tp", "2")
    server.wait_log("ready in")
    names = {"supervisor", "api", "router", "rank-1", "detok", "tokenize-0", "tokenize-1"}
    assert set(server.pids()) == names
    assert server.stop() == 0
    assert_all_gone(server, tmp_path)
    assert f"http://127.0.0.1:{server.port}" in server.log


def test_a_second_sigterm_changes_nothing(start, tmp_path):
    server = start(drain="1.0")
    server.wait_log("ready in")
    began = time.monotonic()
    for _ in range(5):
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert server.wait_exit(10) == 0
    assert 0.9 < time.monotonic() - began < 5
    assert_all_gone(server, tmp_path)


def test_ctrl_c_in_a_terminal_drains_too(start, tmp_path):
    """The terminal signals its whole foreground group, in which the children are not."""
    server = start(drain="0.5")
    server.wait_log("ready in")
    assert os.getpgid(server.pid) == os.getpgid(0)
    assert all(
        os.getpgid(pid) == pid for name, pid in server.pids().items() if name != "supervisor"
    )
    server.process.send_signal(signal.SIGINT)
    assert server.wait_exit(10) == 0
    assert_all_gone(server, tmp_path)


def test_sigterm_while_loading_exits_0(start, tmp_path):
    server = start("--drain-time", "100", router="@60")
    wait_until(lambda: len(server.pids()) == 6, 10, "six processes")
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 5
    assert_all_gone(server, tmp_path)


@pytest.mark.parametrize(
    ("role", "action", "said"),
    [
        ("api", "exit0", "api ended with exit code 0"),
        ("router", "abort", "router was killed by SIGABRT"),
        ("rank", "abort", "rank-1 was killed by SIGABRT"),
        ("detok", "segfault", "detok was killed by SIGSEGV"),
        ("detok", "raise", "detok ended with exit code 70"),
        ("tokenize", "exit0", "tokenize-"),
    ],
)
def test_any_end_ends_the_server(start, tmp_path, role, action, said):
    server = start("--tp", "2", **{role: f"{action}@0.5"})
    assert server.wait_exit(20) == 70
    assert_all_gone(server, tmp_path)
    assert said in server.log


def test_an_api_that_saw_the_failure_first_may_finish_its_last_words(start, tmp_path):
    server = start(router="abort@1.5", api="words@0.5")
    assert server.wait_exit(20) == 70
    assert_all_gone(server, tmp_path)
    assert "router was killed by SIGABRT" in server.log
    assert "all clients are told" in server.log


def test_a_config_error_in_a_child_is_one_line_and_exit_code_78(start, tmp_path):
    server = start(router="config")
    assert server.wait_exit(20) == 78
    assert_all_gone(server, tmp_path)
    errors = [line for line in server.log.splitlines() if " ERROR " in line]
    assert len(errors) == 1
    assert errors[0].endswith("ERROR   router: model.safetensors: truncated")
    assert "Traceback" not in server.log


def test_no_progress_with_work_queued_is_a_hang(start, tmp_path):
    server = start(detok="hang")
    assert server.wait_exit(30) == 70
    assert_all_gone(server, tmp_path)
    # looked at five times a second, by a machine that may stand still for a moment
    assert re.search(r"detok hangs: no progress for 1[0-3]\.\d s", server.log)


def test_children_die_with_a_killed_supervisor_and_the_next_start_cleans_up(start, tmp_path):
    first = start("--tp", "2")
    first.wait_log("ready in")
    assert len(first.pids()) == 7
    second = start()
    second.wait_log("ready in")
    assert len(list(tmp_path.glob("lightllm-*"))) == 2
    first.process.kill()
    seconds = wait_until(lambda: not first.survivors(), 5, "children gone")
    assert seconds < 2
    third = start()
    third.wait_log("ready in")
    assert first.run_directory() not in tmp_path.iterdir()
    # the running server's directory is left alone
    assert len(list(tmp_path.glob("lightllm-*"))) == 2
    assert second.stop() == 0
    assert third.stop() == 0
    assert_all_gone(first, tmp_path)


def test_a_stopped_supervisor_is_killed_by_its_children(start, tmp_path):
    server = start()
    server.wait_log("ready in")
    server.process.send_signal(signal.SIGSTOP)
    seconds = wait_until(lambda: not server.survivors(), 25, "every process gone")
    assert 14 < seconds < 18
    assert server.wait_exit(1) == -signal.SIGKILL
    # a child looks once a second, and again if the look itself was late
    assert re.search(r"supervisor is dead: no beat for 1[5-7]\.\d s", server.log)


def test_a_port_in_use_is_refused_at_once(start, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start("--metrics-port", str(port))
        assert server.wait_exit(5) == 78
    cause = f"cannot listen on --host 127.0.0.1 --metrics-port {port}: Address already in use"
    assert server.log == f"lightllm-server: error: {cause}\n"
    assert_all_gone(server, tmp_path)


def test_a_directory_too_deep_for_sockets_is_refused(start, tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    server = ServerProcess(tiny_llama(), command=COMMAND, environment={"TMPDIR": str(deep)})
    with server:
        assert server.wait_exit(5) == 78
        assert "too long for sockets" in server.log
        assert "TMPDIR" in server.log
    assert list(deep.iterdir()) == []


def test_orphans_are_reaped_by_a_supervisor_that_is_pid_1(tmp_path):
    """In a container whose first process is the server; needs user and pid namespaces."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    probe = subprocess.run([*command, "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        command = ["unshare", "--pid", "--fork", "--mount-proc"]
        probe = subprocess.run([*command, "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("no pid namespaces here")
    script = Path(COMMAND[1]).with_name("as_pid_1.py")
    options = ["--model-dir", str(tiny_llama()), "--port", str(free_port())]
    outcome = subprocess.run(
        [*command, sys.executable, str(script), *options],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "zombies: []" in outcome.stdout
