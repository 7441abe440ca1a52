"""How far a download is: a JSON line on stdout every few seconds, and GET /progress on a port."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Progress"]

_PERIOD_S = 2.0


class Progress:
    """Counts bytes; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = "listing"
        self._done = 0
        self._total = 0

    def set_state(self, state: str) -> None:
        """waiting (for another process's lock), listing, downloading, complete."""
        with self._lock:
            self._state = state

    def start(self, *, done: int, total: int) -> None:
        with self._lock:
            self._state, self._done, self._total = "downloading", done, total

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes

    def to_json(self) -> str:
        with self._lock:
            return json.dumps(
                {"state": self._state, "bytes_done": self._done, "bytes_total": self._total}
            )

    @contextmanager
    def reported(self, port: int | None) -> Iterator[int | None]:
        """Print and serve it while the block runs, on the port that is yielded; 0 chooses one.

        Raises OSError where the port is taken.
        """
        stopped = threading.Event()
        printer = threading.Thread(target=self._print, args=(stopped,), daemon=True)
        server = None if port is None else _Server(port, self)
        printer.start()
        if server is not None:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield None if server is None else server.server_port
        finally:
            stopped.set()
            printer.join()
            if server is not None:
                server.shutdown()
                server.server_close()

    def _print(self, stopped: threading.Event) -> None:
        while not stopped.wait(_PERIOD_S):
            sys.stdout.write(self.to_json() + "\n")
            sys.stdout.flush()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, progress: Progress) -> None:
        # IPv6 takes IPv4 in as well, where the machine has it
        self.address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        self.progress = progress
        super().__init__(("", port), _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        found = self.path == "/progress"
        body = self.server.progress.to_json().encode() if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests."""
