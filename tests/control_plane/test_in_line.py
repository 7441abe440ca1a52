"""Children follow the spec, and are left alone once they do.

The operator's writes are counted by a proxy; the test plays the kubelet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import crash_proxy
from fake_kubelet import FakeKubelet
from kube import condition
from real_operator import RealOperator
from rest import Rest
from server_process import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

NAMESPACE = "in-line"
CHILDREN = {
    "Deployment": "/apis/apps/v1/namespaces/in-line/deployments/demo",
    "Service": "/api/v1/namespaces/in-line/services/demo",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/in-line/poddisruptionbudgets/demo",
}
RESOURCE = "/apis/serving.lightllm.io/v1alpha1/namespaces/in-line/lightllmdeployments"
# values that the API server stores otherwise
SPEC: dict[str, Any] = {
    "model": {"uri": "file:///models/demo-model"},
    "gpu": {"count": 0},
    "replicas": 2,
    "resources": {
        "requests": {"cpu": "0.5", "memory": "1024Mi"},
        "limits": {"cpu": 1, "memory": "1.5Gi", "ephemeral-storage": "1e9"},
    },
    "env": [
        {"name": "EMPTY", "value": ""},
        {
            "name": "CPUS",
            "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1000m"}},
        },
    ],
    "service": {"annotations": {"empty": "", "number": "0.5", "gone": "x"}},
    "podTemplate": {"labels": {"empty": ""}},
}
QUIET_S = 2.0


class Cluster:
    """The resource `demo`, its children, and what the operator has written of them."""

    def __init__(self, rest: Rest, kubelet: FakeKubelet, fault: crash_proxy.Fault) -> None:
        self._rest, self._kubelet, self._fault = rest, kubelet, fault

    def get(self, path: str) -> dict[str, Any]:
        return self._rest("GET", path).expect(200)

    def patch(self, path: str, patch: dict[str, Any], kind: str = "merge-patch") -> None:
        content = f"application/{kind}+json"
        answer = self._rest("PATCH", path, patch, content_type=content, fieldManager="somebody")
        answer.expect(200)

    def wait(self, what: str, holds: Callable[[], bool]) -> None:
        def stepped() -> bool:
            self._kubelet.step()
            return holds()

        wait_until(stepped, 60, what, interval=0.05)

    def is_served(self) -> bool:
        body = self.get(f"{RESOURCE}/demo")
        told = [condition(body, kind).get("status") for kind in ("Ready", "Progressing")]
        return told == ["True", "False"]

    def go_on(self) -> list[str]:
        """Writes of children while the operator looks at the resource again and again."""
        before = len(self._fault.writes)
        until = time.monotonic() + QUIET_S
        while time.monotonic() < until:
            # wakes it
            woken = {"metadata": {"annotations": {"woken": str(time.monotonic())}}}
            self.patch(f"{RESOURCE}/demo", woken)
            time.sleep(0.2)
        return [each for each in self._fault.writes[before:] if not each.endswith("/status")]


@pytest.fixture(scope="module")
def cluster(control_plane, report, tmp_path_factory) -> Iterator[Cluster]:
    """Two pods serve."""
    folder = tmp_path_factory.mktemp("in-line")
    with Rest(control_plane) as rest, crash_proxy.running(control_plane) as proxy:
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        rest("POST", "/api/v1/namespaces", manifest).expect(201)
        operator = RealOperator(proxy.url, folder / "operator")
        try:
            proxy.fault = crash_proxy.Fault(NAMESPACE, operator.pid)
            cluster = Cluster(rest, FakeKubelet(rest, NAMESPACE, report), proxy.fault)
            body = {"apiVersion": "serving.lightllm.io/v1alpha1", "kind": "LightLLMDeployment"}
            body |= {"metadata": {"name": "demo"}, "spec": SPEC}
            rest("POST", RESOURCE, body).expect(201)
            cluster.wait("two pods serve", cluster.is_served)
            yield cluster
        finally:
            operator.stop()


def server_of(cluster: Cluster) -> dict[str, Any]:
    [container] = cluster.get(CHILDREN["Deployment"])["spec"]["template"]["spec"]["containers"]
    return container


def annotations_of(cluster: Cluster) -> dict[str, str]:
    return cluster.get(CHILDREN["Service"])["metadata"]["annotations"]


def test_values_that_are_stored_otherwise_cause_no_writes(cluster: Cluster) -> None:
    container = server_of(cluster)
    assert container["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}
    assert container["env"][0] == {"name": "EMPTY"}
    assert cluster.go_on() == []


def test_an_annotation_that_is_asked_for_no_more_goes(cluster: Cluster) -> None:
    cluster.patch(CHILDREN["Service"], {"metadata": {"annotations": {"theirs": "y"}}})
    assert annotations_of(cluster).items() >= {"gone": "x", "theirs": "y"}.items()
    cluster.patch(f"{RESOURCE}/demo", {"spec": {"service": {"annotations": {"gone": None}}}})
    cluster.wait("it is gone", lambda: "gone" not in annotations_of(cluster))
    expected = {"empty": "", "number": "0.5", "theirs": "y"}
    assert annotations_of(cluster).items() >= expected.items()
    assert cluster.go_on() == []


@pytest.mark.parametrize("edit", [{"empty": "x"}, {"empty": None}, {"number": "500m"}], ids=str)
def test_an_annotation_that_others_edit_is_put_back(cluster: Cluster, edit) -> None:
    cluster.patch(CHILDREN["Service"], {"metadata": {"annotations": edit}})
    asked = {"empty": "", "number": "0.5"}
    cluster.wait("it is back", lambda: annotations_of(cluster).items() >= asked.items())
    assert cluster.go_on() == []


@pytest.mark.parametrize(
    "edit",
    [
        {"resources": {"requests": {"cpu": "501m"}}},
        {"resources": {"limits": {"memory": "1Gi"}}},
        {"env": [{"name": "EMPTY", "value": "x"}]},
    ],
    ids=["request", "limit", "env"],
)
def test_a_pod_field_that_others_edit_is_put_back(cluster: Cluster, edit) -> None:
    before = server_of(cluster)
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "server", **edit}]}}}}
    cluster.patch(CHILDREN["Deployment"], patch, "strategic-merge-patch")
    cluster.wait("it is back", lambda: server_of(cluster) == before)
    assert cluster.go_on() == []


def test_a_stamp_that_others_take_away_is_put_back(cluster: Cluster) -> None:
    name = "serving.lightllm.io/applied"
    for path in CHILDREN.values():
        stamp = cluster.get(path)["metadata"]["annotations"][name]
        cluster.patch(path, {"metadata": {"annotations": {name: None}}})

        def is_back(path: str = path, stamp: str = stamp) -> bool:
            return cluster.get(path)["metadata"].get("annotations", {}).get(name) == stamp

        cluster.wait(path, is_back)
    assert cluster.go_on() == []
