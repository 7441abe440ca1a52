"""One cluster, one operator from the chart, one namespace per test, enforced `restricted`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kube import SERVER_IMAGE, Kube

CHECKOUT = Path(__file__).parents[2]
sys.path.insert(0, str(CHECKOUT / "tests" / "cluster"))

RELEASE, OPERATOR_NAMESPACE = "lightllm", "lightllm-system"


@pytest.fixture(scope="session")
def programs() -> tuple[Path, Path]:
    """kubectl and helm; the cluster is up and has our images."""
    if os.geteuid() != 0:
        pytest.skip("a kubelet needs root")
    import binaries
    import layout

    os.environ["KUBECACHEDIR"] = str(layout.KUBECTL_CACHE)
    cluster = [sys.executable, CHECKOUT / "tests/cluster/cli.py"]
    _prepare([*cluster, "up"])
    for target in ("operator", "server"):
        _prepare([*cluster, "load", f"lightllm-{target}:dev", f"--target={target}"])
    return binaries.program("kubectl"), binaries.program("helm")


def _prepare(command: list[str | Path]) -> None:
    """Run it; without a cluster no test can run, and what it said is the whole report."""
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout)
    if done.returncode:
        called = " ".join(map(str, command[1:]))
        pytest.exit(f"{called}: exit code {done.returncode}\n{done.stdout}", returncode=1)


@pytest.fixture(scope="session")
def install(programs: tuple[Path, Path]) -> Callable[[], Kube]:
    """Install or upgrade the operator by its chart, under its own service account."""
    import layout

    kubectl, helm = programs
    kube = Kube(kubectl, layout.KUBECONFIG, OPERATOR_NAMESPACE)
    values = {
        "image": {
            "repository": SERVER_IMAGE.replace("lightllm-server:dev", "lightllm-operator"),
            "tag": "dev",
            "pullPolicy": "Always",
        },
        "serving": {"image": SERVER_IMAGE},
        "cpuForGpu": True,
    }
    command = (
        *(helm, "upgrade", "--install", RELEASE, CHECKOUT / "charts/lightllm-operator"),
        *(f"--namespace={OPERATOR_NAMESPACE}", f"--kubeconfig={layout.KUBECONFIG}", "--values=-"),
    )

    def run() -> Kube:
        if not kube.get("namespace", OPERATOR_NAMESPACE):
            kube("create", "namespace", OPERATOR_NAMESPACE)
        _enforce_restricted(kube, OPERATOR_NAMESPACE)
        subprocess.run(
            command, input=json.dumps(values), text=True, check=True, stdout=subprocess.DEVNULL
        )
        kube("rollout", "status", f"deployment/{RELEASE}", "--timeout=120s")
        return kube

    return run


@pytest.fixture(scope="session")
def operator(install: Callable[[], Kube]) -> Kube:
    """The operator's namespace; it runs the newest image."""
    kube = install()
    # the tests count on all GPUs
    found = json.loads(kube("get", "lld", "--all-namespaces", "-o=json"))["items"]
    for namespace in {body["metadata"]["namespace"] for body in found}:
        kube("delete", "lld", "--all", f"--namespace={namespace}")
    kube("rollout", "restart", f"deployment/{RELEASE}")
    kube("rollout", "status", f"deployment/{RELEASE}", "--timeout=120s")
    return kube


@pytest.fixture
def kube(operator: Kube, programs: tuple[Path, Path]) -> Iterator[Kube]:
    """A fresh namespace; its pods, which hold GPUs, are gone after the test, and soon the rest."""
    import layout

    name = f"e2e-{uuid.uuid4().hex[:6]}"
    made = Kube(programs[0], layout.KUBECONFIG, name)
    made("create", "namespace", name)
    _enforce_restricted(made, name)
    yield made
    if not made.get("namespace", name):
        return
    made("delete", "lld", "--all", "--wait=false")
    made("delete", "namespace", name, "--wait=false")
    made("delete", "pods", "--all", "--grace-period=0", "--force", "--timeout=60s")
    made.wait("no pod is left", lambda: not made.list("pods"), 60)


def _enforce_restricted(kube: Kube, namespace: str) -> None:
    kube(
        *("label", "namespace", namespace, "--overwrite"),
        "pod-security.kubernetes.io/enforce=restricted",
    )
