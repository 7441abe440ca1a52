"""Real API servers that know our resource: one alone, one with controllers; none has nodes."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import crash_proxy
from kube import Kube
from real_operator import SERVING_IMAGE, RealOperator, changed_copy
from rest import Rest
from served_resource import Serving

CHECKOUT = Path(__file__).parents[2]
CRD = CHECKOUT / "crds" / "lightllmdeployments.serving.lightllm.io.yaml"
sys.path.insert(0, str(CHECKOUT / "tests" / "cluster"))


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The admin's kubeconfig; nothing runs controllers: what is written is what there is."""
    import api_server

    with api_server.running(tmp_path_factory.mktemp("api-server"), crds=[CRD]) as kubeconfig:
        yield kubeconfig


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The admin's kubeconfig of one with controllers."""
    import api_server

    folder = tmp_path_factory.mktemp("control-plane")
    with api_server.running(folder, controllers=True, crds=[CRD]) as kubeconfig:
        yield kubeconfig


@pytest.fixture(scope="session")
def rest(api_server: Path) -> Iterator[Rest]:
    """The lone API server, call by call."""
    with Rest(api_server) as client:
        yield client


@pytest.fixture
def namespace(rest: Rest) -> str:
    """A fresh one; it stays, since nothing there could empty it."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    rest("POST", "/api/v1/namespaces", manifest).expect(201)
    return name


@pytest.fixture(scope="session")
def kubectl_program() -> Path:
    """Built the first time, which takes minutes."""
    import binaries

    binaries.build(["kubectl"])
    return binaries.program("kubectl")


@pytest.fixture
def kubectl(api_server: Path, kubectl_program: Path, namespace: str) -> Kube:
    """In the test's namespace."""
    return Kube(kubectl_program, api_server, namespace)


@pytest.fixture(scope="session")
def report() -> str:
    """What `lightllm-server check` says of the demo model."""
    command = [sys.executable, "-m", "lightllm_server", "check", "--gpus", "16"]
    model = CHECKOUT / "examples" / "demo-model"
    return subprocess.run(
        [*command, "--model-dir", str(model)], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="session")
def controlled_rest(control_plane: Path) -> Iterator[Rest]:
    """The API server with controllers, call by call."""
    with Rest(control_plane) as client:
        yield client


@pytest.fixture
def serving(controlled_rest: Rest, report: str) -> Serving:
    """In a namespace of its own."""
    return Serving(controlled_rest, f"serving-{uuid.uuid4().hex[:8]}", report)


@pytest.fixture
def operate(control_plane: Path, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Start an operator in place of the one before."""
    running: list[RealOperator] = []
    with crash_proxy.running(control_plane) as proxy:

        def start(name: str, changes: dict | None = None, image: str = SERVING_IMAGE) -> None:
            for before in running:
                before.stop()
            source = changed_copy(tmp_path / f"{name}-source", changes or {})
            running.append(RealOperator(proxy.url, tmp_path / name, image=image, source=source))

        yield start
        for each in running:
            each.stop()
