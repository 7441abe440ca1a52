"""What a pass of reconcile reads from the watch cache, and that it changes nothing by it."""

from __future__ import annotations

import asyncio

import pytest

from lightllm_operator.cached_cluster import CachedCluster, FreshCluster
from lightllm_operator.cluster.client import path_of
from lightllm_operator.errors import WriteWantedError
from lightllm_operator.names import CHECK, KIND, SERVER, child_labels
from lightllm_operator.reconcile import Key
from lightllm_operator.watch_cache import WatchCache

DEMO = Key("team", "demo")


class FakeCluster:
    """Notes its requests; a write is answered with the object at version 7."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def get(self, _version, kind, _namespace, name):
        self.asked.append(f"get {kind} {name}")

    async def list(self, _version, kind, *_, **__):
        self.asked.append(f"list {kind}")
        return []

    async def apply(self, manifest, **_):
        self.asked.append(f"apply {manifest['kind']}")
        return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": "7"}}

    async def create(self, manifest):
        self.asked.append(f"create {manifest['kind']}")
        return manifest


def child(kind, name="demo", version=1, component=SERVER, **fields):
    metadata = {"namespace": "team", "name": name, "resourceVersion": str(version)}
    labels = child_labels("demo", component)
    return {"kind": kind, "metadata": {**metadata, "labels": labels}, **fields}


@pytest.fixture
def cluster():
    return FakeCluster()


@pytest.fixture
def cache():
    return WatchCache()


def test_watched_kinds_are_read_without_a_request(cluster, cache):
    cache.show("Deployment", child("Deployment", spec={"replicas": 2}))
    cache.show("Pod", child("Pod", "demo-a", 2, spec={"large": 1}, status={}))
    cache.show("Pod", child("Pod", "demo-check-a", 3, CHECK))
    cached = CachedCluster(cluster, cache)

    async def read():
        deployment = await cached.get("apps/v1", "Deployment", *DEMO)
        assert (deployment["apiVersion"], deployment["spec"]) == ("apps/v1", {"replicas": 2})
        assert await cached.get("v1", "Service", *DEMO) is None
        [server] = await cached.list("v1", "Pod", "team", child_labels("demo", SERVER), cached=True)
        assert (server["metadata"]["name"], "spec" in server) == ("demo-a", False)
        [check] = await cached.list("v1", "Pod", "team", child_labels("demo", CHECK))
        assert check["metadata"]["name"] == "demo-check-a"

    asyncio.run(read())
    assert cluster.asked == []


def test_what_is_not_watched_is_asked_for(cluster, cache):
    asyncio.run(CachedCluster(cluster, cache).get("v1", "PersistentVolumeClaim", "team", "c"))
    assert cluster.asked == ["get PersistentVolumeClaim c"]


@pytest.mark.parametrize(
    "write",
    [
        lambda api: api.apply(child("Deployment")),
        lambda api: api.apply(child("Deployment"), manager="other"),
        lambda api: api.merge(path_of("v1", "Pod", "team", "demo-a"), {}),
        lambda api: api.delete("batch/v1", "Job", "team", "demo-check"),
        lambda api: api.list("v1", "Node", None, {}, cached=True),
    ],
)
def test_nothing_is_changed_by_what_the_cache_says(cluster, cache, write):
    with pytest.raises(WriteWantedError):
        asyncio.run(write(CachedCluster(cluster, cache)))
    assert cluster.asked == []


def test_status_and_events_are_written(cluster, cache):
    cached = CachedCluster(cluster, cache)
    asyncio.run(cached.apply(child(KIND, status={}), manager="m", subresource="status"))
    asyncio.run(cached.create({"kind": "Event"}))
    assert cluster.asked == [f"apply {KIND}", "create Event"]


def test_an_answer_to_a_write_is_read_before_the_watch_shows_it(cluster, cache):
    cache.show("Deployment", child("Deployment", version=5, spec={"replicas": 1}))
    asyncio.run(FreshCluster(cluster, cache).apply(child("Deployment", spec={"replicas": 3})))
    assert cache.deployment(DEMO)["spec"]["replicas"] == 3
    # what the watch still had on its way changes nothing
    cache.show("Deployment", child("Deployment", version=6, spec={"replicas": 2}))
    assert cache.deployment(DEMO)["spec"]["replicas"] == 3
    cache.show("Deployment", child("Deployment", version=8, spec={"replicas": 4}))
    assert cache.deployment(DEMO)["spec"]["replicas"] == 4


def test_a_new_object_is_known_from_its_answer_on(cluster, cache):
    asyncio.run(FreshCluster(cluster, cache).apply(child("Service", spec={})))
    assert cache.get("Service", DEMO) is not None


def test_an_answer_that_the_watch_has_overtaken_brings_nothing_back(cluster, cache):
    cache.show("Service", child("Service", version=9, spec={}))
    cache.show("Service", child("Service", version=9, spec={}), deleted=True)
    asyncio.run(FreshCluster(cluster, cache).apply(child("Service", spec={})))
    assert cache.get("Service", DEMO) is None
