"""What reconcile does where the cluster has moved on since it looked."""

from __future__ import annotations

import asyncio

import pytest

from lightllm_operator.autoscale import Decision
from lightllm_operator.errors import ApiError
from lightllm_operator.reconcile import Key, Reconciler
from lightllm_operator.settings import Settings
from operator_objects import pod_of, sample_of, spec_of


class Cluster:
    """A Deployment of two pods, of which merge patches fail with `status`."""

    def __init__(self, status: int) -> None:
        self._status = status
        self.applied: list[dict] = []

    async def get(self, *_):
        return {"spec": {"replicas": 2}}

    async def merge(self, path, patch):
        raise ApiError(self._status, path)

    async def apply(self, manifest, **_):
        self.applied.append(manifest)
        return manifest


class View:
    def decision(self, key: Key) -> Decision | None:
        return None

    def load(self, key: Key):
        return {"p0": sample_of("p0"), "p1": sample_of("p1", running=3)}


class Downloads:
    """Nothing is fetched here."""


def scale_in(cluster: Cluster) -> None:
    reconciler = Reconciler(cluster, Settings(serving_image="i"), View(), Downloads())
    asyncio.run(reconciler._scale(spec_of(), [pod_of("p0"), pod_of("p1")], 1))


def test_a_pod_that_went_meanwhile_does_not_stop_the_scale_in():
    cluster = Cluster(404)
    scale_in(cluster)
    assert [manifest["spec"] for manifest in cluster.applied] == [{"replicas": 1}]


def test_another_fault_does():
    cluster = Cluster(403)
    with pytest.raises(ApiError):
        scale_in(cluster)
    assert cluster.applied == []
