"""`kubectl apply`, Ready, and an answer by DNS name from another pod."""

from __future__ import annotations

from pathlib import Path

import pytest

from kube import SERVER_IMAGE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_answers_another_pod(kube):
    kube("apply", "-f", str(EXAMPLES / "demo.yaml"))
    kube.wait_condition("demo", "Ready", "True", "Serving", timeout=180)
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    script = (
        "from lightllm_server.client import Client\n"
        f"print(Client('http://demo.{kube.namespace}.svc').query('What is TokenAttention?'))"
    )
    container = {
        "name": "client",
        "image": SERVER_IMAGE,
        "command": ["python", "-c", script],
        "securityContext": security,
    }
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "client"},
            "spec": {"restartPolicy": "Never", "containers": [container]},
        }
    )
    kube.wait(
        "the client ends",
        lambda: kube.get("pod", "client")["status"]["phase"] in ("Succeeded", "Failed"),
    )
    assert "every token has its own slot" in kube("logs", "client")
    row = kube("get", "lld", "demo", "--no-headers").split()
    assert row[:7] == ["demo", "True", "Serving", "1", "1", "1", "int8"]


def test_four_gpus_and_the_example_give_tensor_parallel_4(kube):
    kube("apply", "-f", str(EXAMPLES / "tensor-parallel.yaml"))
    kube.wait_condition("demo-tp", "Ready", "True", timeout=120)
    [pod] = kube.serving_pods("demo-tp")
    assert "--tp=4" in pod["spec"]["containers"][0]["args"]
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
