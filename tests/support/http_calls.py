"""Plain HTTP for tests: one connection per call unless said otherwise, nothing retried."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "call", "events", "get_json", "metric", "post_json", "raw", "stream_events"]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error body's inside, after checking that it has OpenAI's shape."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str)
        assert error["message"]
        return error


def address(url: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(url)
    return parts.hostname or "", parts.port or 0


def connect(url: str, timeout: float = 30.0) -> http.client.HTTPConnection:
    host, port = address(url)
    return http.client.HTTPConnection(host, port, timeout=timeout)


def read(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def call(
    url: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 30.0,
) -> Answer:
    connection = connect(url, timeout)
    try:
        connection.request(method, path, body, headers or {})
        return read(connection)
    finally:
        connection.close()


def post_json(url: str, path: str, body: Any, timeout: float = 30.0, **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **headers}
    return call(url, "POST", path, data, sent, timeout)


def get_json(url: str, path: str) -> Any:
    answer = call(url, "GET", path)
    assert answer.status == 200, answer
    return answer.json


def events(body: bytes) -> list[Any]:
    """The data of each server-sent event; `[DONE]` as a string."""
    found = []
    for block in body.decode().split("\n\n"):
        if block:
            assert block.startswith("data:"), block
            assert "\n" not in block, block
            data = block.removeprefix("data:").strip()
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def stream_events(url: str, path: str, body: Any, timeout: float = 30.0) -> Iterator[Any]:
    """Events as they come; closing the iterator closes the connection."""
    connection = connect(url, timeout)
    try:
        connection.request(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        assert response.status == 200, response.read()
        while line := response.readline():
            if line.startswith(b"data:"):
                data = line.removeprefix(b"data:").strip()
                yield data.decode() if data == b"[DONE]" else json.loads(data)
    finally:
        connection.close()


def raw(url: str, data: bytes, timeout: float = 10.0) -> bytes:
    """Send bytes as they are; everything that comes back until the server closes or is silent."""
    with socket.create_connection(address(url), timeout=timeout) as connection:
        received = b""
        try:
            connection.sendall(data)
            while chunk := connection.recv(65536):
                received += chunk
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
        return received


def metric(url: str, name: str) -> float:
    """The value of a metric without labels."""
    for line in call(url, "GET", "/metrics").body.decode().splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    raise AssertionError(f"no metric {name}")
