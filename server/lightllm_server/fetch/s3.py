"""A prefix of a bucket of S3, or of a server that speaks like it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
)
from urllib3.exceptions import HTTPError

from lightllm_server.errors import ConfigError, FetchError, InterruptedFetchError
from lightllm_server.fetch.source import RemoteFile

__all__ = ["S3Source"]

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_REFUSED = (
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
)
_PIECE_BYTES = 256 * 1024


class S3Source:
    """credentials: a folder with a file per key; None for what the SDK finds by itself, else none.

    endpoint: None for $AWS_ENDPOINT_URL, else Amazon's.
    """

    commit = ""

    def __init__(
        self, bucket: str, prefix: str, *, credentials: Path | None, endpoint: str | None
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = _client(credentials, endpoint)

    def files(self) -> list[RemoteFile]:
        pages = self._client.get_paginator("list_objects_v2")
        try:
            objects = [
                entry
                for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix, Delimiter="/")
                for entry in page.get("Contents", ())
            ]
        except (BotoCoreError, ClientError) as error:
            raise self._translated(error) from None
        return [
            RemoteFile(
                name=entry["Key"].removeprefix(self._prefix),
                size=entry["Size"],
                version=entry["ETag"].strip('"'),
            )
            for entry in objects
            if entry["Key"] != self._prefix
        ]

    def stream(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        try:
            answer = self._client.get_object(
                Bucket=self._bucket,
                Key=self._prefix + file.name,
                Range=f"bytes={begin}-{end - 1}",
                IfMatch=f'"{file.version}"',
            )
            with closing(answer["Body"]) as body:
                yield from body.iter_chunks(_PIECE_BYTES)
        except (BotoCoreError, ClientError, HTTPError) as error:
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> FetchError:
        where = f"s3://{self._bucket}/{self._prefix}"
        if not isinstance(error, ClientError):
            kind = type(error).__name__
            if isinstance(error, HTTPClientError | IncompleteReadError | HTTPError):
                return InterruptedFetchError(f"{where}: {kind}: {error}")
            return FetchError("DownloadFailed", f"{where}: {kind}: {error}")
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _REFUSED or status in (401, 403):
            return FetchError("AuthenticationFailed", f"{where}: access is refused ({code})")
        if code == "NoSuchBucket":
            return FetchError("NotFound", f"{where}: there is no such bucket")
        if status == 404:
            return FetchError("NotFound", f"{where}: an object is gone ({code})")
        if status == 412:
            changed = "an object has changed while it was fetched"
            return FetchError("DownloadFailed", f"{where}: {changed}")
        if status == 429 or status >= 500:
            return InterruptedFetchError(f"{where}: HTTP {status} ({code})")
        return FetchError("DownloadFailed", f"{where}: HTTP {status} ({code})")


def _client(credentials: Path | None, endpoint: str | None) -> Any:
    keys: dict[str, str] = {}
    if credentials is not None:
        keys = {name.lower(): _read(credentials / name) for name in _KEYS}
    session = boto3.Session(**keys)
    signed = session.get_credentials() is not None
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        # the download itself tries again
        retries={"total_max_attempts": 1, "mode": "standard"},
        signature_version="s3v4" if signed else UNSIGNED,
        # servers other than Amazon's rarely have a host name for each bucket
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    try:
        return session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=session.region_name or "us-east-1",
            config=config,
        )
    except ValueError as error:
        raise ConfigError(f"--endpoint: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"--credentials-dir: {path}: {error.strerror}") from None
