"""One replica's terms as leader: what begins, what ends, and that nothing is written between."""

from __future__ import annotations

import asyncio

import pytest

from lightllm_operator import metrics
from lightllm_operator.cluster.client import Cluster
from lightllm_operator.errors import NotLeaderError
from lightllm_operator.leader import Leader
from lightllm_operator.names import KIND
from lightllm_operator.reconcile import Key
from lightllm_operator.settings import Settings
from lightllm_operator.watch_cache import WatchCache
from virtual_time import run

SETTINGS = Settings(serving_image="example.test/server")


class FakeLease:
    def __init__(self):
        self.free = asyncio.Event()
        self.lost = asyncio.Event()
        self.held = False

    async def acquire(self):
        await self.free.wait()
        self.lost.clear()
        self.held = True

    async def hold(self):
        await self.lost.wait()

    def lose(self):
        self.held = False
        self.free.clear()
        self.lost.set()


class FakeCluster:
    """Knows no object; notes what was asked for."""

    def __init__(self):
        self.read = []

    async def get(self, api_version, kind, namespace, name):
        self.read.append(name)
        await asyncio.sleep(1)


class NoDownloads:
    """Nothing is fetched here."""


class NoPods:
    async def scrape(self, pods):
        return {}


def resource(name):
    metadata = {"namespace": "team", "name": name, "uid": name, "generation": 1}
    metadata["resourceVersion"] = "1"
    return {"metadata": metadata, "spec": {"model": {"uri": "file:///model"}}}


def in_terms(scenario):
    async def prepared():
        cache, cluster, lease = WatchCache(), FakeCluster(), FakeLease()
        leader = Leader(SETTINGS, cache, cluster, NoPods(), NoDownloads(), lease)
        task = asyncio.create_task(leader.run())
        await scenario(leader, cache, cluster, lease)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(prepared())


def test_who_waits_works_on_nothing_and_who_leads_looks_at_all():
    async def scenario(leader, cache, cluster, lease):
        for name in ("a", "b"):
            leader.wake(cache.show(KIND, resource(name)))
        await asyncio.sleep(5)
        assert cluster.read == []
        assert not cluster.may_write()
        lease.free.set()
        await asyncio.sleep(5)
        assert sorted(cluster.read) == ["a", "b"]
        assert cluster.may_write()
        assert metrics.LEADER.collect()[0].samples[0].value == 1

    in_terms(scenario)


def test_a_lost_lease_ends_the_work_and_the_next_term_begins_anew():
    async def scenario(leader, cache, cluster, lease):
        lease.free.set()
        await asyncio.sleep(5)
        leader.wake(Key("team", "demo"))
        await asyncio.sleep(0.5)
        assert cluster.read == ["demo"]
        metrics.tell_resource(("team", "demo"), waiting=1, desired=2, ready=1)
        lease.lose()
        await asyncio.sleep(0)
        assert not cluster.may_write()
        await asyncio.sleep(5)
        # the reconcile that ran was ended, and nothing more is begun
        leader.wake(Key("team", "demo"))
        await asyncio.sleep(5)
        assert cluster.read == ["demo"]
        assert metrics.LEADER.collect()[0].samples[0].value == 0
        assert metrics.QUEUE_DEPTH.collect()[0].samples == []
        lease.free.set()
        leader.wake(cache.show(KIND, resource("demo")))
        await asyncio.sleep(5)
        assert cluster.read == ["demo", "demo"]

    in_terms(scenario)


def test_a_reconcile_that_does_not_end_is_a_problem():
    async def scenario(leader, cache, cluster, lease):
        async def never(*_):
            await asyncio.Event().wait()

        cluster.get = never
        lease.free.set()
        await asyncio.sleep(1)
        leader.wake(Key("team", "demo"))
        await asyncio.sleep(SETTINGS.stuck_seconds - 1)
        assert leader.problems() == []
        await asyncio.sleep(2)
        assert len(leader.problems()) == 1

    in_terms(scenario)


def test_without_the_lease_the_client_sends_no_write():
    class Api:
        """Fails if it is asked for anything."""

    async def scenario():
        cluster = Cluster(Api())
        cluster.may_write = lambda: False
        for method in ("POST", "PATCH", "PUT", "DELETE"):
            with pytest.raises(NotLeaderError):
                await cluster.request(method, "/api/v1/pods")
        assert cluster.num_requests == 0
        # reading is allowed
        with pytest.raises(AttributeError):
            await cluster.request("GET", "/api/v1/pods")

    asyncio.run(scenario())
