"""`python -m lightllm_operator` as its own process, with short periods."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

__all__ = ["OperatorProcess", "wait_until"]

_SHORT = {
    "LIGHTLLM_SERVING_IMAGE": "example.test/lightllm-server:1",
    "LIGHTLLM_SCRAPE_SECONDS": "1",
    "LIGHTLLM_RESYNC_SECONDS": "1",
    "LIGHTLLM_WATCH_STALE_SECONDS": "3",
}


def wait_until(what: str, holds, timeout: float = 30.0) -> float:
    """Poll until `holds()`; the seconds it took."""
    began = time.monotonic()
    while not holds():
        waited = time.monotonic() - began
        assert waited < timeout, f"{what}: not so after {waited:.0f} s"
        time.sleep(0.05)
    return time.monotonic() - began


class OperatorProcess:
    """Ends with the block, by SIGKILL if it is still there."""

    def __init__(self, kubeconfig: Path, namespace: str, log: Path, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._log = log
        self._environment = {
            **os.environ,
            **_SHORT,
            "KUBECONFIG": str(kubeconfig),
            "LIGHTLLM_NAMESPACE": namespace,
            "POD_NAMESPACE": namespace,
            "POD_NAME": log.stem,
            "LIGHTLLM_HEALTH_PORT": str(self.port),
            **environment,
        }

    def __enter__(self) -> OperatorProcess:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lightllm_operator"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> tuple[int, float]:
        """SIGTERM: the exit code and the seconds that it took."""
        began = time.monotonic()
        self._process.terminate()
        return self.wait(), time.monotonic() - began

    def wait(self) -> int:
        """Until it ends; the exit code."""
        return self._process.wait(20)

    def get(self, path: str) -> tuple[int, str]:
        """Status and text; 0 where nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def is_well(self, path: str = "/healthz") -> bool:
        assert self._process.poll() is None, f"the operator has ended:\n{self.log}"
        return self.get(path)[0] == 200

    def wait_alive(self) -> float:
        return wait_until("the operator answers", lambda: self.is_well("/healthz"))

    def wait_ready(self) -> float:
        return wait_until("the operator is ready", lambda: self.is_well("/readyz"))

    def metric(self, name: str) -> float | None:
        """A sample by its name and labels as they are written, None without it."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else None

    @property
    def leads(self) -> bool:
        return self.metric("lightllm_operator_leader") == 1
