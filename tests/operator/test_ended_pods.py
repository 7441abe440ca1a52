"""Pods that were evicted stay until they are collected, and count for nothing."""

from __future__ import annotations

import asyncio

import pytest

from lightllm_operator import metrics
from lightllm_operator.cached_cluster import CachedCluster
from lightllm_operator.names import KIND, SERVER, child_labels
from lightllm_operator.scaler import Scaler
from lightllm_operator.watch_cache import WatchCache
from memory_cluster import DEMO, MemoryCluster, reconcile, settle
from operator_objects import resource, sample_of

EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
KILLED = [
    {
        "name": "server",
        "image": "i",
        "restartCount": 0,
        "state": {"terminated": {"exitCode": 137, "reason": "Error"}},
    }
]


@pytest.fixture
def cache():
    return WatchCache()


@pytest.fixture
def cluster(cache):
    yield MemoryCluster(cache)
    metrics.forget_resource(DEMO)


class Scraper:
    """Pods that hold a queue of `waiting` each."""

    def __init__(self, waiting: int) -> None:
        self._waiting = waiting

    async def scrape(self, pods):
        return {pod: sample_of(pod, waiting=self._waiting, running=16) for pod in pods}


def test_an_evicted_pod_does_not_hold_scale_up_back(cluster, cache):
    cluster.put(resource(autoscaling={"maxReplicas": 4}))
    labels = child_labels("demo", SERVER)
    cluster.put(
        {
            "kind": "Deployment",
            "metadata": {"name": "demo", "labels": labels},
            "spec": {"replicas": 1},
        }
    )
    cluster.add_server("p0", ready=True, phase="Running", podIP="10.0.0.1")
    cluster.add_server("evicted", **EVICTED)
    # more than the target of 4 and less than twice of it: while a pod starts, nothing is added
    scaler = Scaler(cache, Scraper(waiting=6), lambda key: None)
    asyncio.run(scaler.round())
    assert scaler.decision(DEMO).replicas == 2


def test_a_resource_with_an_evicted_pod_settles_and_is_well(cluster, cache):
    cluster.put(resource())
    settle(cluster, cache)
    cluster.end_check()
    settle(cluster, cache)
    cluster.add_server("p0", ready=True, phase="Running")
    cluster.add_server("evicted", containerStatuses=KILLED, **EVICTED)
    settle(cluster, cache)
    # None: only a change needs another look
    assert reconcile(CachedCluster(cluster, cache)) is None
    assert cluster.condition("Available")["message"] == "1 of 1 pods serve"
    assert cluster.objects[KIND, "demo"]["status"]["readyReplicas"] == 1
