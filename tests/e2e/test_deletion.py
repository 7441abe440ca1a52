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
