"""Our server as a process tree: start, wait until ready, read its memory, stop."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

READY_TIMEOUT_SECONDS = 300.0
STOP_TIMEOUT_SECONDS = 30.0
HOST = "127.0.0.1"


class ServerError(RuntimeError):
    """The server did not start, or ended while it was measured."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """`lightllm-server` on a loopback port; `seconds_to_ready` counts from its start."""

    def __init__(self, model_dir: Path, *options: str, threads: int) -> None:
        self.port = free_port()
        # nothing else talks to it, so there is nothing to drain for
        stop = ("--drain-delay", "0")
        self.options = ("--model-dir", str(model_dir), "--host", HOST, *stop, *options)
        command = " ".join(["lightllm-server", *self.options, "--port", str(self.port)])
        # what is kept of a run names no user's folder
        self.command = command.replace(str(Path.home()), "~")
        self._log = tempfile.NamedTemporaryFile(prefix="bench-server-", suffix=".log")  # noqa: SIM115 - closed in __exit__
        binary = Path(sys.executable).with_name("lightllm-server")
        self._start = time.perf_counter()
        self._process = subprocess.Popen(
            [str(binary), *self.options, "--port", str(self.port)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        self.seconds_to_ready = 0.0

    def __enter__(self) -> Self:
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        while time.perf_counter() - self._start < READY_TIMEOUT_SECONDS:
            if self._process.poll() is not None:
                raise ServerError(f"{self.command} ended:\n{self.log_tail()}")
            if self._readyz():
                self.seconds_to_ready = time.perf_counter() - self._start
                return
            time.sleep(0.02)
        raise ServerError(f"{self.command} was not ready in time:\n{self.log_tail()}")

    def _readyz(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2)
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        return False

    def dtype(self) -> str:
        """What the server made of `--dtype auto`, as its `/info` says."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/info")
            return str(json.load(connection.getresponse())["dtype"])

    def log_tail(self) -> str:
        """The last lines that the server wrote."""
        lines = Path(self._log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-15:])

    def memory_mb(self) -> dict[str, float]:
        """Resident megabytes of each process of the tree, keyed by its role."""
        sizes: dict[str, float] = {}
        for pid in descendants(self._process.pid):
            with contextlib.suppress(OSError, StopIteration):
                name = role(pid)
                while name in sizes:
                    name += "'"
                sizes[name] = resident_mb(pid)
        return sizes

    def stop(self) -> None:
        """SIGTERM, then SIGKILL where that is not heard; the log goes with it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()


def descendants(pid: int) -> list[int]:
    """`pid` and every process below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # the name in parentheses may hold spaces; the parent is the second field after it
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, []))
    return found


def role(pid: int) -> str:
    """The value of `--role` on the command line; the supervisor has none."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return words[words.index("--role") + 1] if "--role" in words else "supervisor"


def resident_mb(pid: int) -> float:
    """`VmRSS` in megabytes of 10**6 bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024 / 1e6
