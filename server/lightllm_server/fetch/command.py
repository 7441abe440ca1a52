"""One run of `lightllm-server fetch`: from its options to its last word and exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lightllm_server.errors import ConfigError, FetchError
from lightllm_server.fetch.download import download
from lightllm_server.fetch.progress import Progress
from lightllm_server.fetch.source import Source

__all__ = ["EXIT_CODES", "FetchOptions", "fetch"]

# sysexits.h: EX_NOPERM, EX_NOINPUT, EX_CANTCREAT, EX_TEMPFAIL
EXIT_CODES = {
    "AuthenticationFailed": 77,
    "NotFound": 66,
    "InsufficientStorage": 73,
    "DownloadFailed": 75,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """As the command line has them."""

    uri: str
    target: Path
    revision: str | None
    token_file: Path | None
    credentials_dir: Path | None
    endpoint: str | None
    headers_only: bool
    progress_port: int | None
    termination_log: Path


def fetch(options: FetchOptions) -> int:
    """Exit code 0, or that of the reason; the last word says more. Raises ConfigError."""
    # as PID 1 of a container a process ends by a signal only if it says so; what is written stays
    signal.signal(signal.SIGTERM, _end)
    source = _source(options)
    origin = {
        "uri": options.uri,
        "revision": options.revision,
        "endpoint": options.endpoint,
        "headers_only": options.headers_only,
    }
    progress = Progress()
    try:
        with progress.reported(options.progress_port):
            note = download(
                source, options.target, origin, progress, headers_only=options.headers_only
            )
    except FetchError as error:
        _say({"reason": error.reason, "message": str(error)}, options.termination_log)
        return EXIT_CODES[error.reason]
    last = {name: note[name] for name in ("commit", "files", "bytes")}
    _say({"state": "complete", **last}, options.termination_log)
    return 0


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


def _source(options: FetchOptions) -> Source:
    scheme, _, path = options.uri.partition("://")
    if scheme == "hf" and path.strip("/"):
        from lightllm_server.fetch.hub import HubSource

        token = None if options.token_file is None else _secret(options.token_file)
        return HubSource(
            path.strip("/"), revision=options.revision, token=token, endpoint=options.endpoint
        )
    bucket, _, prefix = path.partition("/")
    if scheme == "s3" and bucket:
        from lightllm_server.fetch.s3 import S3Source

        return S3Source(
            bucket, prefix, credentials=options.credentials_dir, endpoint=options.endpoint
        )
    raise ConfigError(f"--uri {options.uri}: allowed: hf://org/name, s3://bucket/prefix")


def _secret(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"--token-file {path}: cannot be read") from None
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(f"--token-file {path}: holds no token")
    return token


def _say(word: dict[str, Any], termination_log: Path) -> None:
    text = json.dumps(word)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    # the kubelet puts the file there; elsewhere there is none
    if termination_log.exists():
        termination_log.write_text(text, encoding="utf-8")
