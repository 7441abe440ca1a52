"""A newer operator restarts no serving pod, until the resource is edited or asks for it.

The newer one has another default image, and another template: a changed copy of the package.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import crash_proxy
from fake_kubelet import FakeKubelet
from kube import condition
from real_operator import SERVING_IMAGE, RealOperator, changed_copy
from rest import Rest
from server_process import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CHECKOUT = Path(__file__).parents[2]
CRD = CHECKOUT / "crds" / "lightllmdeployments.serving.lightllm.io.yaml"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NEW_IMAGE = "registry.test/lightllm-server:2"
NEWER = {
    "manifests.py": {
        "TEMPLATE_VERSION = 1": "TEMPLATE_VERSION = 2",
        '"port": "metrics"}, "timeoutSeconds": 2}': '"port": "metrics"}, "timeoutSeconds": 3}',
    }
}
# as if each operator made the pods as it would make them itself
UNPINNED = {
    **NEWER,
    "reconcile.py": {"kept = unedited_pin(pinned, spec)": "kept = None"},
}
QUIET_S = 1.5


class Serving:
    """The resource `demo` in a namespace of its own, and what is there of it."""

    def __init__(self, rest: Rest, namespace: str, report: str) -> None:
        self.rest, self._namespace = rest, namespace
        self._kubelet = FakeKubelet(rest, namespace, report)
        self._path = (
            f"/apis/serving.lightllm.io/v1alpha1/namespaces/{namespace}/lightllmdeployments"
        )
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        rest("POST", "/api/v1/namespaces", manifest).expect(201)
        self.starts: Callable[[dict], bool] = lambda pod: True

    def create(self, **spec: object) -> None:
        manifest = {
            "apiVersion": "serving.lightllm.io/v1alpha1",
            "kind": "LightLLMDeployment",
            "metadata": {"name": "demo"},
            "spec": {"model": {"uri": "file:///models/demo-model"}, **spec},
        }
        self.rest("POST", self._path, manifest).expect(201)

    def patch(self, patch: dict) -> None:
        self.rest(
            "PATCH", f"{self._path}/demo", patch, content_type="application/merge-patch+json"
        ).expect(200)

    def resource(self) -> dict:
        return self.rest("GET", f"{self._path}/demo").expect(200)

    def _list(self, path: str) -> list[dict]:
        return self.rest("GET", path.format(self._namespace)).expect(200)["items"]

    def deployment(self) -> dict:
        [deployment] = self._list("/apis/apps/v1/namespaces/{}/deployments")
        return deployment

    def jobs(self) -> list[dict]:
        return self._list("/apis/batch/v1/namespaces/{}/jobs")

    def pods(self) -> list[dict]:
        pods = self._list("/api/v1/namespaces/{}/pods")
        component = "app.kubernetes.io/component"
        return [pod for pod in pods if pod["metadata"]["labels"][component] == "server"]

    def uids(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.pods()}

    def template(self) -> dict:
        return self.deployment()["spec"]["template"]

    def is_settled(self) -> bool:
        """All pods of the newest generation serve, and nothing else is there."""
        body = self.resource()
        return all(
            condition(body, kind).get("status") == status
            and condition(body, kind)["observedGeneration"] == body["metadata"]["generation"]
            for kind, status in (("Ready", "True"), ("Progressing", "False"))
        )

    def wait(self, what: str, holds: Callable[[], bool]) -> None:
        def stepped() -> bool:
            self._kubelet.step(starts=self.starts)
            return holds()

        wait_until(stepped, 60, what, interval=0.05)

    def go_on(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.wait("time passes", lambda: time.monotonic() > until)

    def strategy(self) -> dict:
        return self.deployment()["spec"]["strategy"]["rollingUpdate"]

    def refuse_to_schedule(self) -> None:
        """The pods that wait are refused by the scheduler, long since."""
        for pod in self.pods():
            if pod["status"]["phase"] == "Pending":
                self._kubelet.refuse(pod, "0/1 nodes: 1 Insufficient nvidia.com/gpu.", since_s=60)

    def has_update(self) -> bool:
        return condition(self.resource(), "UpdateAvailable").get("status") == "True"

    def images(self) -> set[str]:
        return {pod["spec"]["containers"][0]["image"] for pod in self.pods()}


@pytest.fixture(scope="module")
def rest(control_plane):
    with Rest(control_plane) as rest:
        yield rest


@pytest.fixture
def serving(rest, report, request):
    return Serving(rest, f"upgrade-{abs(hash(request.node.name)) % 10**6}", report)


@pytest.fixture
def operate(control_plane, tmp_path):
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


def upgrade(serving: Serving, operate, changes: dict) -> None:
    """Serve by one operator, go on by a newer one; raises AssertionError if that is felt."""
    operate("first")
    serving.create(replicas=2)
    serving.wait("served", lambda: serving.is_settled() and len(serving.pods()) == 2)
    uids, template = serving.uids(), serving.template()
    operate("newer", changes, NEW_IMAGE)
    serving.wait("UpdateAvailable, or new pods", lambda: serving.has_update() or late(serving))
    serving.go_on(QUIET_S)
    assert serving.uids() == uids, "pods were replaced"
    assert serving.template() == template
    assert serving.is_settled()
    assert serving.has_update()
    # the model is known: no second check, whose image may not even be there yet
    assert len(serving.jobs()) == 1


def late(serving: Serving) -> bool:
    return serving.images() == {NEW_IMAGE}


def rolls(serving: Serving) -> None:
    serving.wait("the new image", lambda: late(serving) and serving.is_settled())
    [container] = serving.template()["spec"]["containers"]
    assert container["image"] == NEW_IMAGE
    assert container["readinessProbe"]["timeoutSeconds"] == 3
    assert len(serving.pods()) == 2
    serving.wait("no more update", lambda: not condition(serving.resource(), "UpdateAvailable"))


def test_an_upgrade_waits_for_an_edit(serving, operate):
    upgrade(serving, operate, NEWER)
    serving.patch({"spec": {"drainTimeoutSeconds": 60}})
    rolls(serving)


def test_an_upgrade_waits_for_the_annotation(serving, operate):
    upgrade(serving, operate, NEWER)
    serving.patch({"metadata": {"annotations": {"serving.lightllm.io/upgrade": "1"}}})
    rolls(serving)


def test_without_the_pin_the_pods_would_be_replaced(serving, operate):
    with pytest.raises(AssertionError, match="pods were replaced"):
        upgrade(serving, operate, UNPINNED)


def test_an_edit_that_reaches_no_pod_waits_too(serving, operate):
    upgrade(serving, operate, NEWER)
    uids = serving.uids()
    serving.patch({"spec": {"replicas": 3, "rollout": {"progressDeadlineSeconds": 77}}})
    serving.wait("a third pod", lambda: serving.is_settled() and len(serving.pods()) == 3)
    assert uids < serving.uids()
    assert serving.images() == {SERVING_IMAGE}
    assert serving.deployment()["spec"]["progressDeadlineSeconds"] == 77


def test_fields_that_come_with_the_newer_schema_restart_none(serving, operate, rest):
    document = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    path = f"{CRDS}/{document['metadata']['name']}"
    schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    fields = schema["spec"]["properties"]["kvCache"]["properties"]
    operate("first")
    serving.create(replicas=2)
    serving.wait("served", lambda: serving.is_settled() and len(serving.pods()) == 2)
    uids = serving.uids()
    # merge patches replace lists whole: `versions` is one
    before = document["spec"]["versions"]
    try:
        fields["pageSize"] = {"type": "integer", "default": 16, "description": "New."}
        merge(rest, path, {"spec": {"versions": before}})
        serving.wait("the default", lambda: "pageSize" in serving.resource()["spec"]["kvCache"])
        operate("newer", NEWER, NEW_IMAGE)
        serving.wait("UpdateAvailable", serving.has_update)
        serving.patch({"spec": {"service": {"port": 8080}}})
        serving.go_on(QUIET_S)
        assert serving.uids() == uids
    finally:
        del fields["pageSize"]
        merge(rest, path, {"spec": {"versions": before}})


def merge(rest: Rest, path: str, patch: dict) -> None:
    rest("PATCH", path, patch, content_type="application/merge-patch+json").expect(200)


def test_a_rollout_under_way_goes_on_as_it_began(serving, operate):
    operate("first")
    serving.create(replicas=2)
    serving.wait("served", lambda: serving.is_settled() and len(serving.pods()) == 2)
    old = serving.uids()
    serving.starts = lambda pod: pod["metadata"]["labels"].get("edited") != "yes"
    serving.patch({"spec": {"podTemplate": {"labels": {"edited": "yes"}}}})
    serving.wait("a pod more", lambda: len(serving.pods()) == 3)
    template = serving.template()
    operate("newer", NEWER, NEW_IMAGE)
    serving.wait("UpdateAvailable", serving.has_update)
    # no GPU is free for one more pod: only another strategy lets the rollout go on
    serving.refuse_to_schedule()
    one_at_a_time = {"maxSurge": 0, "maxUnavailable": 1}
    serving.wait("one at a time", lambda: serving.strategy() == one_at_a_time)
    serving.starts = lambda pod: True
    serving.wait("the new revision", lambda: serving.is_settled() and not old & serving.uids())
    assert serving.template() == template
    assert serving.images() == {SERVING_IMAGE}
