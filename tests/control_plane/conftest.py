"""A real API server with controllers and without nodes, one per session."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
sys.path.insert(0, str(CHECKOUT / "tests" / "cluster"))


@pytest.fixture(scope="session")
def report() -> str:
    """What `lightllm-server check` says of the demo model."""
    command = [sys.executable, "-m", "lightllm_server", "check", "--gpus", "16"]
    model = CHECKOUT / "examples" / "demo-model"
    return subprocess.run(
        [*command, "--model-dir", str(model)], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The admin's kubeconfig of an API server with controllers, which knows our resource."""
    import api_server

    crd = CHECKOUT / "crds" / "lightllmdeployments.serving.lightllm.io.yaml"
    folder = tmp_path_factory.mktemp("control-plane")
    with api_server.running(folder, controllers=True, crds=[crd]) as kubeconfig:
        yield kubeconfig
