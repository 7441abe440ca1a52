"""The rights that the chart grants are enough: the operator runs with its own account's token."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from kube import deployment_of
from operator_process import OperatorProcess, wait_until

pytestmark = pytest.mark.slow

CHART = Path(__file__).parents[2] / "charts" / "lightllm-operator"


@pytest.fixture(scope="session")
def helm():
    import binaries

    binaries.build(["helm"])
    return binaries.program("helm")


@pytest.fixture
def account(helm, api_server, kubectl, tmp_path):
    """Installs the chart's RBAC for a scope; the kubeconfig of its service account."""
    release, installed = f"operator-{kubectl.namespace}", []

    def install(watched):
        rendered = subprocess.run(
            [
                *(helm, "template", release, CHART, f"--namespace={kubectl.namespace}"),
                *("--show-only=templates/rbac.yaml", f"--set=watchNamespace={watched}"),
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        # objects name their own namespaces
        kubectl("apply", "-f", "-", stdin=rendered)
        installed.append(rendered)
        config = json.loads(api_server.read_text())
        config["users"][0]["user"] = {"token": kubectl("create", "token", release).strip()}
        kubeconfig = tmp_path / "account.kubeconfig"
        kubeconfig.write_text(json.dumps(config))
        return kubeconfig, release

    yield install
    for rendered in installed:
        kubectl("delete", "-f", "-", stdin=rendered)


@pytest.mark.parametrize("scope", ["namespace", "cluster"])
def test_the_charts_rights_are_enough(scope, account, kubectl, tmp_path):
    watched = kubectl.namespace if scope == "namespace" else ""
    kubeconfig, release = account(watched)
    log = tmp_path / "operator.log"
    with OperatorProcess(
        kubeconfig, watched, log, POD_NAMESPACE=kubectl.namespace, LIGHTLLM_LEASE_NAME=release
    ) as operator:
        operator.wait_ready()
        kubectl.apply(deployment_of("demo"))
        wait_until("demo has a status", lambda: "status" in kubectl.get("lld", "demo"), 20)
        assert operator.leads
        code, _ = operator.stop()
    assert code == 0
    assert "orbidden" not in operator.log, operator.log
    assert not kubectl.get("lease", release)["spec"].get("holderIdentity")
