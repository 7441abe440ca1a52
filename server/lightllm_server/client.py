"""A client for the server, in Python and on the command line; needs the standard library only.

ClientError
 ├ ConnectError            nobody listens there, or it is no HTTP server
 ├ RequestTimeoutError     no answer in time (a TimeoutError too)
 ├ RequestRefusedError     an HTTP error: `status`, the server's message, `retry_after`
 └ StreamInterruptedError  the answer broke off, or the server reported an error in it
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

__all__ = [
    "Client",
    "ClientError",
    "ConnectError",
    "RequestRefusedError",
    "RequestTimeoutError",
    "StreamInterruptedError",
    "main",
]

_DEFAULT_URL = "http://127.0.0.1:8000"
_DEFAULT_TIMEOUT_S = 60.0
_DEFAULT_MAX_NEW_TOKENS = 256


class ClientError(Exception):
    """Root of the tree."""


class ConnectError(ClientError):
    """No connection to the server."""


class RequestTimeoutError(ClientError, TimeoutError):
    """The server sent nothing for longer than the timeout."""


class RequestRefusedError(ClientError):
    """The server answered with an HTTP error."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after


class StreamInterruptedError(ClientError):
    """The stream ended before the answer did."""


class Client:
    """Asks one server. Each question has a connection of its own, so threads may share a client."""

    def __init__(
        self,
        url: str = _DEFAULT_URL,
        *,
        timeout: float = _DEFAULT_TIMEOUT_S,
        api_key: str | None = None,
    ) -> None:
        """timeout: seconds of silence from the server. Raises ValueError for an unusable URL."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: got {url!r}, must be http://HOST:PORT or https://HOST:PORT")
        self.url = url.rstrip("/")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._has_chat: bool | None = None

    def is_ready(self) -> bool:
        """Whether the server serves; False also while nothing listens there."""
        try:
            self._get("/readyz")
        except ClientError:
            return False
        return True

    def info(self) -> dict[str, Any]:
        """What runs there: model, family, limits. Raises ClientError."""
        answer: dict[str, Any] = json.loads(self._get("/info"))
        return answer

    def query(
        self,
        text: str,
        *,
        system: str | None = None,
        max_new_tokens: int = _DEFAULT_MAX_NEW_TOKENS,
        temperature: float = 0.0,
        chat: bool | None = None,
    ) -> str:
        """The whole answer to `text`. Parameters and errors as `stream`."""
        pieces = self.stream(
            text,
            system=system,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            chat=chat,
        )
        return "".join(pieces)

    def stream(
        self,
        text: str,
        *,
        system: str | None = None,
        max_new_tokens: int = _DEFAULT_MAX_NEW_TOKENS,
        temperature: float = 0.0,
        chat: bool | None = None,
    ) -> Iterator[str]:
        """The answer piece by piece. Closing the iterator ends the request.

        chat: True asks as a user in a chat, False continues the raw text; by default a model
        that has a chat template is asked in a chat. Raises ClientError.
        """
        if chat is None:
            chat = system is not None or self._model_has_chat()
        if chat:
            return self._stream_chat(text, system, max_new_tokens, temperature)
        return self._stream_text(text, max_new_tokens, temperature)

    def stream_chat(
        self,
        text: str,
        *,
        system: str | None = None,
        max_new_tokens: int = _DEFAULT_MAX_NEW_TOKENS,
        temperature: float = 0.0,
    ) -> Iterator[str]:
        """`stream` with chat=True."""
        return self._stream_chat(text, system, max_new_tokens, temperature)

    def _model_has_chat(self) -> bool:
        if self._has_chat is None:
            self._has_chat = bool(self.info().get("chat_template"))
        return self._has_chat

    def _stream_chat(
        self, text: str, system: str | None, max_new_tokens: int, temperature: float
    ) -> Iterator[str]:
        messages = [{"role": "user", "content": text}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        body = {
            "messages": messages,
            "max_completion_tokens": max_new_tokens,
            "temperature": temperature,
            "stream": True,
        }
        for event in self._events("/v1/chat/completions", body, last="[DONE]"):
            for choice in json.loads(event)["choices"]:
                yield choice["delta"].get("content") or ""

    def _stream_text(self, text: str, max_new_tokens: int, temperature: float) -> Iterator[str]:
        body = {
            "prompt": text,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "stream": True,
        }
        for event in self._events("/v1/completions", body, last="[DONE]"):
            for choice in json.loads(event)["choices"]:
                yield choice["text"]

    def _events(self, path: str, body: dict[str, Any], *, last: str) -> Iterator[str]:
        """The data of each server-sent event before `last`."""
        data = json.dumps(body).encode()
        # a response may keep the socket of a closed connection
        with (
            closing(self._connect()) as connection,
            closing(self._send(connection, "POST", path, data)) as response,
        ):
            while line := self._read_line(response):
                if not line.startswith("data:"):
                    continue
                event = line.removeprefix("data:").strip()
                if event == last:
                    return
                if event.startswith('{"error"'):
                    raise StreamInterruptedError(_message(event))
                yield event
        raise StreamInterruptedError("the connection ended before the answer did")

    def _get(self, path: str) -> bytes:
        with (
            closing(self._connect()) as connection,
            closing(self._send(connection, "GET", path, None)) as response,
        ):
            return self._guarded(response.read)

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=self._timeout)

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        try:
            connection.request(method, self._prefix + path, body, self._headers)
            response = connection.getresponse()
        except TimeoutError as error:
            raise RequestTimeoutError(f"{self.url}: no answer in {self._timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise ConnectError(f"{self.url}: {error or type(error).__name__}") from error
        if response.status >= 400:
            with response:
                text = self._guarded(response.read).decode("utf-8", "replace")
            seconds = response.getheader("Retry-After", "")
            raise RequestRefusedError(
                response.status, _message(text), float(seconds) if seconds.isdigit() else None
            )
        return response

    def _read_line(self, response: http.client.HTTPResponse) -> str:
        return self._guarded(response.readline).decode()

    def _guarded(self, read: Any) -> bytes:
        try:
            data: bytes = read()
        except TimeoutError as error:
            raise RequestTimeoutError(f"{self.url}: silent for {self._timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise StreamInterruptedError(f"{self.url}: {error or type(error).__name__}") from error
        return data


def _message(text: str) -> str:
    """What the server says is wrong, from its error body, or the text as it is."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200].strip() or "no reason given"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightllm-client",
        description="Ask a LightLLM server and print the answer as it comes.",
    )
    parser.add_argument("--url", default=_DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument("--text", help="the question (default: standard input)")
    parser.add_argument("--system", metavar="TEXT", help="the chat's system message")
    parser.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="ask in a chat, or continue the raw text (default: in a chat where the model has one)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=_DEFAULT_MAX_NEW_TOKENS, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T")
    parser.add_argument("--timeout", type=float, default=_DEFAULT_TIMEOUT_S, metavar="SECONDS")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="or the key in LIGHTLLM_API_KEY"
    )
    return parser


def _api_key(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("LIGHTLLM_API_KEY")
    lines = path.read_text().split()
    return lines[0] if lines else None


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 for a ClientError, 2 for unusable arguments."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        key = _api_key(options.api_key_file)
        client = Client(options.url, timeout=options.timeout, api_key=key)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    text = options.text if options.text is not None else sys.stdin.read()
    try:
        for piece in client.stream(
            text,
            system=options.system,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            chat=options.chat,
        ):
            print(piece, end="", flush=True)
    except ClientError as error:
        print(f"\nlightllm-client: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # closing the connection has ended the request
        return 130
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
