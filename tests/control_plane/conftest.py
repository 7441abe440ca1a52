"""A real API server, one per session; `control_plane` has controllers too, and neither has nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
sys.path.insert(0, str(CHECKOUT / "tests" / "cluster"))


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The admin's kubeconfig of an API server with controllers, which knows our resource."""
    import api_server

    crd = CHECKOUT / "crds" / "lightllmdeployments.serving.lightllm.io.yaml"
    folder = tmp_path_factory.mktemp("control-plane")
    with api_server.running(folder, controllers=True, crds=[crd]) as kubeconfig:
        yield kubeconfig
