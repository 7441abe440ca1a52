"""Runs the real server in a test: start, wait, find its processes, stop, clean up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

__all__ = ["ServerProcess", "free_port", "wait_until"]

COMMAND = (sys.executable, "-m", "lightllm_server")

_ports_given: set[int] = set()


def free_port() -> int:
    """One that nothing listens on, another one each time."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _ports_given:
            _ports_given.add(port)
            return port


def wait_until(condition, timeout: float, what: str, interval: float = 0.02) -> float:
    """Seconds until `condition()` is true; AssertionError naming `what` when it never is."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout, f"not within {timeout} s: {what}"
        time.sleep(interval)
    return time.monotonic() - began


class ServerProcess:
    """A running `lightllm-server`; use it as a context manager, which leaves no process behind."""

    def __init__(
        self,
        model_dir: Path,
        *options: str,
        command: Sequence[str] = COMMAND,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = tempfile.NamedTemporaryFile(prefix="server-log-", suffix=".txt")  # noqa: SIM115
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*command, "--model-dir", str(model_dir), "--port", str(self.port), *options],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **(environment or {})},
        )
        self._seen: dict[str, int] = {}
        self._run_directory: str | None = None
        self._text = ""

    @property
    def log(self) -> str:
        return self._text if self._log.closed else Path(self._log.name).read_text()

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self.process.pid

    def pids(self) -> dict[str, int]:
        """Name ("supervisor", "api", "rank-1", …) → pid of every process seen of this server."""
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            words = _command_line(pid)
            if _option(words, "--parent") == str(self.pid):
                index = _option(words, "--index")
                role = _option(words, "--role") or ""
                self._seen[f"{role}-{index}" if index else role] = pid
                self._run_directory = _option(words, "--run-dir")
        return {"supervisor": self.pid, **self._seen}

    def run_directory(self) -> Path | None:
        """None until a first child was seen."""
        self.pids()
        return Path(self._run_directory) if self._run_directory else None

    def survivors(self) -> list[str]:
        """Names of the processes that still run; a zombie does not."""
        self.process.poll()
        return [name for name, pid in self.pids().items() if is_running(pid)]

    def status(self, path: str, timeout: float = 2.0) -> int | None:
        """The HTTP status of a GET, None if the connection is refused or closed."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return None

    def wait_log(self, text: str, timeout: float = 20.0) -> float:
        """Seconds until the log holds `text`; AssertionError with the log if it never does."""
        wait_until(
            lambda: text in self.log or self.process.poll() is not None, timeout, f"log: {text}"
        )
        assert text in self.log, f"ended without {text!r}:\n{self.log}"
        return time.monotonic() - self.started

    def wait_ready(self, timeout: float = 60.0) -> float:
        """Seconds since the start; AssertionError with the log if it ends or takes longer."""
        while self.status("/readyz") != 200:
            elapsed = time.monotonic() - self.started
            if self.process.poll() is not None or elapsed > timeout:
                raise AssertionError(f"not ready in {elapsed:.1f} s:\n{self.log}")
            time.sleep(0.05)
        self.pids()
        return time.monotonic() - self.started

    def wait_exit(self, timeout: float) -> int:
        """The exit code; AssertionError with the log if the server still runs."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.log}") from None

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM, then the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_exit(timeout)

    def kill(self) -> None:
        """End whatever still runs of this server, hard."""
        for pid in self.pids().values():
            if pid != self.pid and is_running(pid):
                _kill(pid)
        if self._log.closed:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._text = self.log
        self._log.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            sys.stderr.write(f"--- log of the server\n{self.log}")


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def _option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words[:-1] else None


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
