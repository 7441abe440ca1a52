"""Pods that a quota refuses to the controllers: the resource says so in the API server's words."""

from __future__ import annotations

import pytest

from kube import condition

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def allow_pods(serving, number: int) -> None:
    """By a ResourceQuota; nothing but admission counts here, so its status is written too."""
    path = f"/api/v1/namespaces/{serving.namespace}/resourcequotas"
    hard = {"hard": {"pods": str(number)}}
    manifest = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": hard,
    }
    serving.rest("POST", path, manifest).expect(201)
    used = {"status": {**hard, "used": {"pods": "0"}}}
    merge = "application/merge-patch+json"
    serving.rest("PATCH", f"{path}/small/status", used, content_type=merge).expect(200)


def test_a_quota_that_refuses_pods_is_told(serving, operate):
    # the check's pod is the first
    allow_pods(serving, 2)
    operate("operator")
    serving.create(replicas=2)

    def told() -> dict:
        return condition(serving.resource(), "Available")

    serving.wait("one pod serves", lambda: "1 of 2 pods serve" in told().get("message", ""))
    serving.wait("the other is refused", lambda: "exceeded quota: small" in told()["message"])
    assert "deployment demo: pods" in told()["message"]
    assert told()["reason"] == "MinimumReplicasAvailable"
    assert len(serving.pods()) == 1
