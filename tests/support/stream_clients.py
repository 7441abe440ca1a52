"""Clients that stream from a running server until something ends them, and note when and how."""

from __future__ import annotations

import http.client
import json
import threading
import time

__all__ = ["StreamClient", "start_clients"]


class StreamClient(threading.Thread):
    """One /generate_stream request; `ended` is monotonic time, `last` the last event's text."""

    def __init__(self, port: int, prompt: str, max_new_tokens: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._body = json.dumps(
            {
                "inputs": prompt,
                "parameters": {"max_new_tokens": max_new_tokens, "ignore_eos": True},
            }
        )
        self.num_events = 0
        self.last = ""
        self.status: int | None = None
        self.ended: float | None = None

    @property
    def was_told(self) -> bool:
        """The stream ended by an error event, not by a closed connection alone."""
        return '"error"' in self.last

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/generate_stream", self._body, headers)
            response = connection.getresponse()
            self.status = response.status
            while line := response.readline():
                if line.strip():
                    self.last = line.decode()
                    self.num_events += 1
        except (OSError, http.client.HTTPException):
            pass
        finally:
            self.ended = time.monotonic()
            connection.close()


def start_clients(port: int, number: int, max_new_tokens: int) -> list[StreamClient]:
    """All of them stream: each has had an event when this returns."""
    clients = [StreamClient(port, f"stream {index}", max_new_tokens) for index in range(number)]
    for client in clients:
        client.start()
    deadline = time.monotonic() + 30
    while not all(client.num_events > 2 for client in clients):
        statuses = [client.status for client in clients]
        assert time.monotonic() < deadline, f"streams do not start: {statuses}"
        assert all(client.ended is None for client in clients), [client.last for client in clients]
        time.sleep(0.01)
    return clients
