"""Nothing of ours holds a deletion up, and nothing is left, with the operator up or down."""

from __future__ import annotations

import time

import pytest

from kube import deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
CHILDREN = "deployments,services,jobs,poddisruptionbudgets"


@pytest.mark.parametrize("running", [True, False], ids=["operator-up", "operator-down"])
def test_a_deleted_resource_takes_its_children_along(kube, operator, running):
    kube.apply(deployment_of("demo"))
    kube.wait_condition("demo", "Ready", "True", timeout=120)
    assert "finalizers" not in kube.get("lld", "demo")["metadata"]
    if not running:
        operator("scale", "deployment/lightllm", "--replicas=0")
        operator("wait", "pods", "--all", "--for=delete", "--timeout=60s")
    try:
        began = time.monotonic()
        kube("delete", "lld", "demo", "--timeout=10s")
        assert time.monotonic() - began < 10
        kube.wait("all children are gone", lambda: not kube.list(CHILDREN), 60)
    finally:
        operator("scale", "deployment/lightllm", "--replicas=1")
        operator("rollout", "status", "deployment/lightllm", "--timeout=60s")


def test_a_killed_operator_leaves_pods_alone(kube, operator):
    kube.apply(deployment_of("demo", replicas=2))
    kube.wait("two pods serve", lambda: _ready(kube) == 2, 120)
    before = _pods(kube)
    operator("delete", "pods", "--all", "--grace-period=0", "--force")
    operator("rollout", "status", "deployment/lightllm", "--timeout=60s")
    kube.apply(deployment_of("demo", replicas=3))
    kube.wait("the new operator works", lambda: _ready(kube) == 3, 60)
    assert before.items() <= _pods(kube).items()


def _ready(kube) -> int:
    return kube.get("lld", "demo").get("status", {}).get("readyReplicas", 0)


def _pods(kube) -> dict[str, int]:
    return {
        pod["metadata"]["uid"]: sum(s["restartCount"] for s in pod["status"]["containerStatuses"])
        for pod in kube.serving_pods("demo")
        if "containerStatuses" in pod["status"]
    }
