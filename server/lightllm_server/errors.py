"""Typed errors of the server.

ServerError
 ├ ConfigError            bad option, config file or model directory: one message, exit code 78
 │  └ ModelError          names the file and the cause
 ├ RequestError           bad request: an HTTP status, the field, what it got, what is allowed
 │  └ OverloadedError     bounded queue is full: 429 with Retry-After
 ├ FetchError             a model cannot be fetched: one word and a message
 │  └ InterruptedFetchError  another try may succeed
 ├ EngineError            a step failed; belongs to the requests of that step
 ├ DeviceError            the device takes no more work: the process ends, exit code 70
 └ ChannelError           a peer process is gone or does not read
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "EXIT_CONFIG",
    "EXIT_SOFTWARE",
    "ChannelError",
    "ConfigError",
    "DeviceError",
    "EngineError",
    "FetchError",
    "InterruptedFetchError",
    "ModelError",
    "OverloadedError",
    "RequestError",
    "ServerError",
]

# sysexits.h: EX_CONFIG tells the operator that a restart will not help, EX_SOFTWARE that it may
EXIT_CONFIG = 78
EXIT_SOFTWARE = 70


class ServerError(Exception):
    """Root of the tree."""


class ConfigError(ServerError):
    """The server cannot start as configured: names option, value and what is allowed."""


class ModelError(ConfigError):
    """A model directory cannot be served; the message names the file and the cause."""

    def __init__(self, path: Path | str, cause: str) -> None:
        super().__init__(f"{path}: {cause}")
        self.path = str(path)
        self.cause = cause


class FetchError(ServerError):
    """`reason`: AuthenticationFailed, NotFound, InsufficientStorage or DownloadFailed."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InterruptedFetchError(FetchError):
    """The source did not answer, or not to the end."""

    def __init__(self, message: str) -> None:
        super().__init__("DownloadFailed", message)


class RequestError(ServerError):
    """A request that cannot be served; `status` is its HTTP status (4xx or 503).

    `field` is the dotted path in the body (None for the whole request), `code` OpenAI's error code.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        status: int = 400,
        code: str = "invalid_value",
    ) -> None:
        super().__init__(message)
        self.field = field
        self.status = status
        self.code = code


class OverloadedError(RequestError):
    """The bounded queue is full; `retry_after` in whole seconds."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message, status=429, code="rate_limit_exceeded")
        self.retry_after = retry_after


class EngineError(ServerError):
    """A model step failed."""


class DeviceError(ServerError):
    """After an illegal address or a failed assert on the device every later call fails: only a new
    process gets a new context.
    """


class ChannelError(ServerError):
    """A message could not be delivered within its deadline."""
