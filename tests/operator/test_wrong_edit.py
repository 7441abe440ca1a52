"""A serving resource whose edit has an error: told as it is, and scaled on."""

from __future__ import annotations

import asyncio

import pytest

from lightllm_operator import metrics
from lightllm_operator.autoscale import Decision
from lightllm_operator.cached_cluster import FreshCluster
from lightllm_operator.names import KIND
from lightllm_operator.scaler import Scaler
from lightllm_operator.watch_cache import WatchCache
from memory_cluster import DEMO, MemoryCluster, View, reconcile, settle
from operator_objects import resource, sample_of

AUTOSCALING = {"minReplicas": 1, "maxReplicas": 9}
WRONG = {"extraArgs": ["--tp=2"]}


@pytest.fixture
def cache():
    return WatchCache()


@pytest.fixture
def cluster(cache):
    """Five pods serve; then the spec is edited."""
    cluster = MemoryCluster(cache)
    cluster.put(resource(autoscaling=AUTOSCALING))
    settle(cluster, cache)
    cluster.end_check()
    settle(cluster, cache)
    for number in range(5):
        cluster.add_server(f"p{number}", ready=True, phase="Running", podIP=f"10.0.0.{number}")
    deployment = cluster.objects["Deployment", "demo"]
    counts = {"replicas": 5, "updatedReplicas": 5, "observedGeneration": 1}
    cluster.put({**deployment, "spec": {**deployment["spec"], "replicas": 5}, "status": counts})
    settle(cluster, cache)
    yield cluster
    metrics.forget_resource(DEMO)


def edit(cluster: MemoryCluster, **spec) -> None:
    served = cluster.objects[KIND, "demo"]
    edited = resource(autoscaling=AUTOSCALING, **spec)
    edited["metadata"]["generation"] = 2
    cluster.put({**edited, "status": served["status"]})


def test_the_status_stays_that_of_what_serves(cluster, cache):
    before = cluster.objects[KIND, "demo"]["status"]
    assert (before["replicas"], before["readyReplicas"]) == (5, 5)
    edit(cluster, **WRONG)
    cluster.asked.clear()
    # None: only an edit helps
    assert (
        reconcile(FreshCluster(cluster, cache), view=View(Decision(replicas=5, waiting=3))) is None
    )
    after = cluster.objects[KIND, "demo"]["status"]
    for name in ("replicas", "readyReplicas", "updatedReplicas", "desiredReplicas", "model"):
        assert after[name] == before[name], name
    assert after["observedGeneration"] == 2
    assert after["queueDepth"] == 3
    assert cluster.condition("ConfigValid")["reason"] == "InvalidSpec"
    assert cluster.condition("Available")["message"] == "5 of 5 pods serve"
    assert cluster.condition("ModelAvailable")["status"] == "True"
    assert cluster.condition("ScalingActive")["status"] == "True"
    assert "5 pods of the earlier spec go on" in cluster.condition("Ready")["message"]
    # nothing of the wrong spec reaches a child
    assert [name for name in cluster.asked if name.startswith("APPLY")] == [f"APPLY {KIND}"]


def test_a_model_that_may_not_be_read_is_not_read(cluster, cache):
    edit(cluster, model={"uri": "pvc://models/../other"})
    reconcile(FreshCluster(cluster, cache))
    told = cluster.condition("ModelAvailable")
    assert (told["status"], told["reason"]) == ("Unknown", "NotChecked")
    assert cluster.asked["APPLY Job"] == 1


def test_scaling_goes_on(cluster, cache):
    edit(cluster, **WRONG)
    reconcile(FreshCluster(cluster, cache), view=View(Decision(replicas=7)))
    assert cluster.objects["Deployment", "demo"]["spec"]["replicas"] == 7


class FullPods:
    async def scrape(self, pods):
        return {pod: sample_of(pod, waiting=40, running=16) for pod in pods}


def test_scaling_begins_after_a_restart_too(cluster, cache):
    edit(cluster, **WRONG)
    scaler = Scaler(cache, FullPods(), lambda key: None)
    asyncio.run(scaler.round())
    assert scaler.decision(DEMO).replicas > 5
