"""A newer operator restarts no serving pod, until the resource is edited or asks for it.

The newer one has another default image, and another template: a changed copy of the package.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kube import condition
from real_operator import SERVING_IMAGE
from rest import Rest
from served_resource import Serving

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


@pytest.fixture
def rest(serving):
    return serving.rest


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
