"""What reconcile does where the cluster has moved on, refuses, or is as it should be."""

from __future__ import annotations

import asyncio

import pytest

from lightllm_operator.cached_cluster import CachedCluster, FreshCluster
from lightllm_operator.errors import ApiError, WriteWantedError
from lightllm_operator.facts import Pinned
from lightllm_operator.names import ANNOTATION_APPLIED, ANNOTATION_PINNED, ANNOTATION_UPGRADE, KIND
from lightllm_operator.reconcile import Reconciler
from lightllm_operator.settings import Settings
from lightllm_operator.watch_cache import WatchCache
from memory_cluster import Downloads, MemoryCluster, View, reconcile, settle
from operator_objects import ago, pod_of, resource, spec_of


class ScaledCluster:
    """A Deployment of two pods, of which merge patches fail with `status`."""

    def __init__(self, status: int) -> None:
        self._status = status
        self.applied: list[dict] = []

    async def merge(self, path, patch):
        raise ApiError(self._status, path)

    async def apply(self, manifest, **_):
        self.applied.append(manifest)
        return manifest


def scale_in(cluster: ScaledCluster, *pods: dict) -> None:
    reconciler = Reconciler(cluster, Settings(serving_image="i"), View(), Downloads())
    deployment = {"spec": {"replicas": 2}}
    asyncio.run(reconciler._scale(spec_of(), deployment, pods or [pod_of("p0"), pod_of("p1")], 1))


def test_a_pod_that_went_meanwhile_does_not_stop_the_scale_in():
    cluster = ScaledCluster(404)
    scale_in(cluster)
    assert [manifest["spec"] for manifest in cluster.applied] == [{"replicas": 1}]


def test_the_least_loaded_pods_go_first_and_those_that_did_not_answer_last():
    costs = {}

    class Costs(ScaledCluster):
        async def merge(self, path, patch):
            [cost] = patch["metadata"]["annotations"].values()
            costs[path.rpartition("/")[2]] = int(cost)

    pods = [pod_of("p0", ready=True), pod_of("p1", ready=True), pod_of("silent", ready=True)]
    pods.append(pod_of("loads"))
    scale_in(Costs(200), *pods)
    assert sorted(costs, key=costs.get) == ["p0", "p1", "silent"]
    # Kubernetes takes it for an int32
    assert costs["silent"] < 2**31


def test_another_fault_does():
    cluster = ScaledCluster(403)
    with pytest.raises(ApiError):
        scale_in(cluster)
    assert cluster.applied == []


@pytest.fixture
def cache():
    return WatchCache()


@pytest.fixture
def cluster(cache):
    cluster = MemoryCluster(cache)
    cluster.put(resource())
    return cluster


def test_an_unchanged_resource_costs_no_request(cluster, cache):
    serve(cluster, cache)
    assert {"APPLY Deployment", "APPLY Service"} <= cluster.asked.keys()
    cluster.asked.clear()
    reconcile(CachedCluster(cluster, cache))
    assert cluster.asked.total() == 0


def serve(cluster, cache) -> None:
    """Until there is a Deployment, by an operator whose image is `i`."""
    settle(cluster, cache)
    cluster.end_check()
    settle(cluster, cache)


def annotate(cluster, annotations: dict[str, str]) -> None:
    owner = cluster.objects[KIND, "demo"]
    metadata = {k: v for k, v in owner["metadata"].items() if k != "annotations"}
    cluster.put({**owner, "metadata": {**metadata, "annotations": annotations}})


def image_of(cluster) -> str:
    [container] = cluster.objects["Deployment", "demo"]["spec"]["template"]["spec"]["containers"]
    return container["image"]


def test_taking_the_upgrade_annotation_away_upgrades_nothing(cluster, cache):
    annotate(cluster, {ANNOTATION_UPGRADE: "1"})
    serve(cluster, cache)
    for asked in ({}, {ANNOTATION_UPGRADE: "1"}, {}):
        annotate(cluster, asked)
        settle(cluster, cache, "newer")
        assert image_of(cluster) == "i"
        assert cluster.condition("UpdateAvailable")["status"] == "True"
    annotate(cluster, {ANNOTATION_UPGRADE: "2"})
    settle(cluster, cache, "newer")
    cluster.end_check()
    settle(cluster, cache, "newer")
    assert image_of(cluster) == "newer"


LOST = [None, "", "{", '{"image": "x"}', '{"kv_dtype": 1, "template_version": 1}']


def lose_pin(cluster, text: str | None) -> None:
    body = cluster.objects["Deployment", "demo"]
    annotations = {**body["metadata"]["annotations"]}
    del annotations[ANNOTATION_PINNED]
    if text is not None:
        annotations[ANNOTATION_PINNED] = text
    cluster.put({**body, "metadata": {**body["metadata"], "annotations": annotations}})


def template_of(cluster) -> dict:
    return cluster.objects["Deployment", "demo"]["spec"]["template"]


@pytest.mark.parametrize("text", LOST)
def test_a_lost_pin_is_made_again_where_the_pods_are_as_they_should_be(cluster, cache, text):
    serve(cluster, cache)
    before = cluster.objects["Deployment", "demo"]
    lose_pin(cluster, text)
    settle(cluster, cache, "newer")
    after = cluster.objects["Deployment", "demo"]
    assert after["spec"] == before["spec"]
    assert Pinned.from_json(after["metadata"]["annotations"][ANNOTATION_PINNED]).image == "i"
    assert cluster.condition("UpdateAvailable")["reason"] == "NewerOperator"


@pytest.mark.parametrize("text", LOST)
def test_a_lost_pin_replaces_no_pod(cluster, cache, text):
    serve(cluster, cache)
    before = template_of(cluster)
    lose_pin(cluster, text)
    owner = cluster.objects[KIND, "demo"]
    cluster.put({**owner, "spec": {**owner["spec"], "drainTimeoutSeconds": 7}})
    for _ in range(2):
        settle(cluster, cache)
        assert template_of(cluster) == before
        told = cluster.condition("UpdateAvailable")
        assert told["reason"] == "PinLost"
        assert ANNOTATION_PINNED in told["message"]
    annotate(cluster, {ANNOTATION_UPGRADE: "1"})
    settle(cluster, cache)
    assert template_of(cluster) != before
    conditions = cluster.objects[KIND, "demo"]["status"]["conditions"]
    assert "UpdateAvailable" not in {each["type"] for each in conditions}


def test_a_service_annotation_that_is_asked_for_no_more_goes(cluster, cache):
    owner = cluster.objects[KIND, "demo"]
    for asked in ({"a": "b", "c": "d"}, {"a": "b"}, {}):
        cluster.put({**owner, "spec": {**owner["spec"], "service": {"annotations": asked}}})
        serve(cluster, cache)
        found = cluster.objects["Service", "demo"]["metadata"]["annotations"]
        assert {k: v for k, v in found.items() if k != ANNOTATION_APPLIED} == asked
        before = cluster.asked.total()
        reconcile(CachedCluster(cluster, cache))
        assert cluster.asked.total() == before


def test_before_anything_is_written_the_owner_is_read(cluster, cache):
    # deleted, which the watch has not shown
    del cluster.objects[KIND, "demo"]
    with pytest.raises(WriteWantedError):
        reconcile(CachedCluster(cluster, cache))
    reconcile(FreshCluster(cluster, cache))
    assert cluster.asked == {f"GET {KIND}": 1}


@pytest.mark.parametrize(
    ("status", "reason"), [(400, "InvalidSpec"), (422, "InvalidSpec"), (403, "Forbidden")]
)
@pytest.mark.parametrize("kind", ["Job", "Deployment", "Service"])
def test_a_refused_child_is_told_and_not_tried_at_once(cluster, cache, kind, status, reason):
    fresh = FreshCluster(cluster, cache)
    cluster.refusals[kind] = ApiError(status, "spec.env[0].name: wrong")
    if kind != "Job":
        reconcile(fresh)
        cluster.end_check()
    assert reconcile(fresh) == 60
    told = cluster.condition("ConfigValid")
    assert (told["status"], told["reason"]) == ("False", reason)
    assert kind in told["message"]
    assert "spec.env[0].name: wrong; " in told["message"]
    # mended
    cluster.refusals.clear()
    reconcile(fresh)
    cluster.end_check()
    reconcile(fresh)
    assert cluster.condition("ConfigValid")["status"] == "True"


def test_a_model_that_may_come_is_looked_for_a_minute_after_the_last_look(cluster, cache):
    """However the reconciles between fall, which each put off the next."""
    owner = cluster.objects[KIND, "demo"]
    cluster.put({**owner, "spec": {**owner["spec"], "model": {"uri": "pvc://models/x"}}})
    settle(cluster, cache)
    cluster.end_check("no such directory")
    [job] = [body for (kind, _), body in cluster.objects.items() if kind == "Job"]
    ended = {"type": "Complete", "status": "True", "lastTransitionTime": ago(45)}
    cluster.put({**job, "status": {"conditions": [ended]}})
    assert reconcile(FreshCluster(cluster, cache)) == pytest.approx(15, abs=10)
    assert cluster.condition("ConfigValid")["reason"] == "UnsupportedModel"


def test_a_child_that_the_api_server_fails_to_write_is_tried_again(cluster, cache):
    cluster.refusals["Job"] = ApiError(500, "no quorum")
    with pytest.raises(ApiError):
        reconcile(FreshCluster(cluster, cache))
