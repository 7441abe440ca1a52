"""A real API server, one per session; no controllers and no nodes."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from crd_schema import install
from rest import Rest

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The admin's kubeconfig."""
    import api_server

    with api_server.running(tmp_path_factory.mktemp("api-server")) as kubeconfig:
        yield kubeconfig


@pytest.fixture
def namespace(api_server: Path) -> str:
    """A fresh one."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    with Rest(api_server) as client:
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        client("POST", "/api/v1/namespaces", manifest).expect(201)
    return name


@pytest.fixture(scope="session")
def rest(api_server: Path) -> Iterator[Rest]:
    """The API server with the CRD."""
    with Rest(api_server) as client:
        install(client)
        yield client
