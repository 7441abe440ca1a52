"""Asks a probe every 50 ms from a process of its own, so that the test's load does not delay it.

Beside each probe it asks a server that has nothing else to do: what the machine itself adds, busy
with other work as it may be, is not the probe's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

__all__ = ["ProbePoller"]

PERIOD_S = 0.05


class ProbePoller:
    """A context manager; afterwards `answers` holds (status, seconds) of each probe, and `idle` the
    seconds of the server beside it."""

    def __init__(self, url: str, path: str = "/livez") -> None:
        self.answers: list[tuple[int, float]] = []
        self.idle: list[float] = []
        self._command = [sys.executable, "-S", __file__, url + path]

    def __enter__(self) -> ProbePoller:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "polling\n"
        return self

    def __exit__(self, *_: object) -> None:
        output, _ = self._process.communicate("stop\n", timeout=60)
        probes, idle = json.loads(output)
        self.answers = [tuple(answer) for answer in probes]
        self.idle = [seconds for _, seconds in idle]

    def check(self, limit_s: float) -> None:
        """All answered 200, 99 % of them within the limit beyond what the idle server took."""
        assert len(self.answers) >= 10
        assert {status for status, _ in self.answers} == {200}
        seconds = [taken for _, taken in self.answers]
        assert _p99(seconds) < limit_s + self.idle_p99(), (sorted(seconds)[-5:], self.idle_p99())

    def idle_p99(self) -> float:
        """Seconds."""
        return _p99(self.idle)


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99) - 1]


def _ask(url: str) -> tuple[int, float]:
    began = time.monotonic()
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, time.monotonic() - began
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, time.monotonic() - began


class _Idle(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def serve_idle() -> None:
    """Prints its port; its parent ends it."""
    with HTTPServer(("127.0.0.1", 0), _Idle) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


def main() -> None:
    import select

    url = sys.argv[1]
    command = [sys.executable, "-S", __file__, "--idle"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as beside:
        assert beside.stdout is not None
        idle_url = f"http://127.0.0.1:{beside.stdout.readline().strip()}/"
        answers, idle = [_ask(url)], [_ask(idle_url)]
        print("polling", flush=True)
        while not select.select([sys.stdin], [], [], PERIOD_S)[0]:
            idle.append(_ask(idle_url))
            answers.append(_ask(url))
        beside.kill()
    print(json.dumps([answers, idle]))


if __name__ == "__main__":
    if sys.argv[1] == "--idle":
        serve_idle()
    else:
        main()
