"""Rounds of the scaler over one resource whose pods and Deployment the watches have shown."""

from __future__ import annotations

import asyncio

import pytest

from lightllm_operator import metrics
from lightllm_operator.names import SERVER, child_labels
from lightllm_operator.scaler import Scaler
from lightllm_operator.sizing import KvChoice
from lightllm_operator.watch_cache import WatchCache
from memory_cluster import DEMO, MemoryCluster
from operator_objects import resource, sample_of

REFUSED = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "no"}


class FullPods:
    """Pods with a long queue each."""

    async def scrape(self, pods):
        return {pod: sample_of(pod, waiting=40, running=16) for pod in pods}


@pytest.fixture
def cache():
    return WatchCache()


@pytest.fixture
def cluster(cache):
    """One pod serves, of as many as the Deployment wants."""
    cluster = MemoryCluster(cache)
    cluster.put(resource(autoscaling={"maxReplicas": 9}))
    cluster.add_server("p0", ready=True, phase="Running", podIP="10.0.0.1")
    yield cluster
    metrics.forget_resource(DEMO)


def put_deployment(cluster: MemoryCluster, replicas: int, *conditions: dict) -> None:
    metadata = {"name": "demo", "labels": child_labels("demo", SERVER)}
    status = {"conditions": list(conditions)}
    body = {"metadata": metadata, "spec": {"replicas": replicas}, "status": status}
    cluster.put({"kind": "Deployment", **body})


@pytest.mark.parametrize(
    ("conditions", "limited"), [((), ""), ((REFUSED,), "PodsRefused")], ids=["free", "refused"]
)
def test_while_pods_are_refused_no_more_are_asked_for(cluster, cache, conditions, limited):
    put_deployment(cluster, 2, *conditions)
    scaler = Scaler(cache, FullPods(), lambda key: None)
    asyncio.run(scaler.round())
    decision = scaler.decision(DEMO)
    assert (decision.replicas > 2, decision.limited) == (not limited, limited)


def test_a_round_without_an_answer_loses_no_arrivals(cluster, cache):
    put_deployment(cluster, 2)
    cluster.add_server("p1", ready=True, phase="Running", podIP="10.0.0.2")

    class Silent:
        """p1 answers, p0 in the first and third round."""

        def __init__(self):
            self.round = 0

        async def scrape(self, pods):
            self.round += 1
            samples = {pod: sample_of(pod, accepted_total=10 * self.round) for pod in pods}
            return samples if self.round != 2 else {"p1": samples["p1"]}

    now = iter(range(1000, 2000, 5))
    scaler = Scaler(cache, Silent(), lambda key: None, clock=lambda: next(now))
    for _ in range(3):
        asyncio.run(scaler.round())
    # 20 requests each in 10 s
    assert scaler._known[DEMO].history.arrival_rate(1010) == 4.0


def test_what_the_servers_chose_is_known_and_told_once(cluster, cache):
    put_deployment(cluster, 1)
    woken = []

    class Chose:
        async def scrape(self, pods):
            return {p: sample_of(p, kv_dtype="float32", kv_reason="on the CPU") for p in pods}

    scaler = Scaler(cache, Chose(), woken.append)
    asyncio.run(scaler.round())
    assert scaler.kv_choice(DEMO) == KvChoice("float32", "on the CPU")
    assert woken
    woken.clear()
    asyncio.run(scaler.round())
    assert woken == []
