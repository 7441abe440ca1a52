"""moto's S3 in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import boto3

__all__ = ["KEY", "SECRET", "client_of", "running", "upload"]

KEY, SECRET = "AKIAEXAMPLE", "canarySecret"
_START_S = 60


@contextmanager
def running(address: str = "127.0.0.1") -> Iterator[str]:
    """Its endpoint."""
    with closing(socket.socket()) as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", address, "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + _START_S
            while not _listens(address, port):
                assert process.poll() is None, "moto ended"
                assert time.monotonic() < deadline, "moto does not listen"
                time.sleep(0.1)
            yield f"http://{address}:{port}"
        finally:
            process.kill()


def client_of(endpoint: str) -> Any:
    """With keys that the server accepts: it accepts all."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )


def upload(endpoint: str, folder: Path, bucket: str, prefix: str) -> None:
    """The folder's files into a bucket that is made if need be."""
    client = client_of(endpoint)
    client.create_bucket(Bucket=bucket)
    for path in folder.iterdir():
        client.upload_file(str(path), bucket, f"{prefix}/{path.name}")


def _listens(address: str, port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex((address, port)) == 0
