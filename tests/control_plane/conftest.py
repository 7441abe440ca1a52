"""One API server with the CRD for all tests here, a fresh namespace for each.

Nothing runs controllers or pods: what the operator writes is what there is.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kube import Kube

CHECKOUT = Path(__file__).parents[2]
CRD = CHECKOUT / "crds" / "lightllmdeployments.serving.lightllm.io.yaml"
sys.path.insert(0, str(CHECKOUT / "tests" / "cluster"))


def pytest_collection_modifyitems(config, items):
    """The first build of the API server may take longer than a test."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            own = item.get_closest_marker("timeout")
            seconds = own.args[0] if own else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(seconds, func_only=True), append=False)


@pytest.fixture(scope="session")
def kubectl_program() -> Path:
    """kubectl; built the first time, which takes minutes."""
    import binaries

    binaries.build(["kube-apiserver", "kubectl"])
    return binaries.program("kubectl")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory, kubectl_program: Path) -> Iterator[Path]:
    """The admin's kubeconfig of a real API server that knows our resource."""
    import api_server

    with api_server.running(tmp_path_factory.mktemp("api-server")) as kubeconfig:
        kubectl = Kube(kubectl_program, kubeconfig, "default")
        kubectl("apply", "--server-side", "-f", str(CRD))
        kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRD))
        yield kubeconfig


@pytest.fixture(scope="session")
def _numbers() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def namespace(api_server: Path, kubectl_program: Path, _numbers: Iterator[int]) -> str:
    """A fresh namespace's name; it stays, since nothing here could empty it."""
    name = f"test-{next(_numbers)}"
    Kube(kubectl_program, api_server, name)("create", "namespace", name)
    return name


@pytest.fixture
def kubectl(api_server: Path, kubectl_program: Path, namespace: str) -> Kube:
    """kubectl in the test's namespace."""
    return Kube(kubectl_program, api_server, namespace)
