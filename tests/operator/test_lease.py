"""Two candidates on one Lease, through a store that guards versions as the API server does."""

from __future__ import annotations

import asyncio
import copy

import pytest

from lightllm_operator.cluster.lease import Lease
from lightllm_operator.errors import ApiError
from virtual_time import run as run_in_virtual_time

SECONDS = 12.0
DEADLINE = SECONDS * 2 / 3


class Store:
    """The one Lease, as the API server keeps it."""

    def __init__(self):
        self.lease = None
        self.version = 0
        self.log = []

    def request(self, method, body):
        if method == "GET" and self.lease is None:
            raise ApiError(404, "not found")
        if method == "POST" and self.lease is not None:
            raise ApiError(409, "exists already")
        if method == "PUT":
            if self.lease is None:
                raise ApiError(404, "not found")
            if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
                raise ApiError(409, "changed meanwhile")
        if method != "GET":
            self.version += 1
            self.lease = copy.deepcopy(body)
            self.lease["metadata"]["resourceVersion"] = str(self.version)
            self.log.append(body["spec"]["holderIdentity"])
        return copy.deepcopy(self.lease)


class Api:
    """One replica's way to the store."""

    def __init__(self, store):
        self.store = store
        self.cut = False
        self.hangs = False
        # the request is carried out, and its answer is lost
        self.loses_answers = False

    async def request(self, method, path, *, body=None, attempts):
        assert attempts == 1
        await asyncio.sleep(0.01)
        if self.hangs:
            await asyncio.sleep(3600)
        if self.cut:
            raise ApiError(0, "no route")
        answer = self.store.request(method, body)
        if self.loses_answers and method != "GET":
            raise ApiError(0, "reset by peer")
        return answer


class Replica:
    """Notes when it led."""

    def __init__(self, store, name):
        self.api = Api(store)
        clock = asyncio.get_running_loop().time
        self.lease = Lease(self.api, "system", "lightllm", name, seconds=SECONDS, clock=clock)
        self.leads = False
        self.task = None

    def start(self):
        self.task = asyncio.create_task(self.run())
        return self

    async def run(self):
        while True:
            await self.lease.acquire()
            self.leads = True
            await self.lease.hold()
            self.leads = False

    async def stop(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def until(holds, at_most=60.0):
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(at_most):
        while not holds():
            await asyncio.sleep(0.01)
    return loop.time() - began


def run(scenario):
    run_in_virtual_time(scenario(Store()))


async def two(store):
    first = Replica(store, "first").start()
    await until(lambda: first.leads)
    second = Replica(store, "second").start()
    await asyncio.sleep(SECONDS * 1.5)
    return first, second


def test_one_leads_and_the_other_waits():
    async def scenario(store):
        first, second = await two(store)
        assert (first.leads, first.lease.held) == (True, True)
        assert (second.leads, second.lease.held) == (False, False)
        assert store.lease["spec"]["leaseTransitions"] == 0
        assert set(store.log) == {"first"}

    run(scenario)


def test_of_many_that_start_at_once_one_leads():
    async def scenario(store):
        replicas = [Replica(store, f"replica-{number}").start() for number in range(5)]
        await asyncio.sleep(SECONDS)
        assert [replica.leads for replica in replicas].count(True) == 1

    run(scenario)


def test_after_a_crash_the_other_takes_over_when_the_lease_has_run_out():
    async def scenario(store):
        first, second = await two(store)
        await first.stop()
        waited = await until(lambda: second.leads)
        assert SECONDS * 2 / 3 < waited < 15
        assert store.lease["spec"]["leaseTransitions"] == 1

    run(scenario)


def test_after_a_release_the_other_takes_over_at_once():
    async def scenario(store):
        first, second = await two(store)
        await first.stop()
        await first.lease.release()
        assert not first.lease.held
        assert await until(lambda: second.leads) < 1.5

    run(scenario)


@pytest.mark.parametrize("fault", ["cut", "hangs"])
def test_who_cannot_renew_stops_before_another_begins(fault):
    async def scenario(store):
        first, second = await two(store)
        setattr(first.api, fault, True)
        waited = await until(lambda: not first.lease.held)
        assert waited <= DEADLINE + 0.1
        await until(lambda: not first.leads, 0.1)
        assert not second.leads
        await until(lambda: second.leads)
        setattr(first.api, fault, False)
        await asyncio.sleep(SECONDS)
        assert (first.leads, second.leads) == (False, True)

    run(scenario)


def test_a_renewal_whose_answer_was_lost_loses_nothing():
    async def scenario(store):
        first, second = await two(store)
        first.api.loses_answers = True
        await asyncio.sleep(SECONDS / 3)
        first.api.loses_answers = False
        await asyncio.sleep(SECONDS * 2)
        assert (first.leads, second.leads) == (True, False)

    run(scenario)


def test_who_finds_another_holder_leads_no_more():
    async def scenario(store):
        first = Replica(store, "first").start()
        await until(lambda: first.leads)
        spec = {**store.lease["spec"], "holderIdentity": "usurper"}
        store.request("PUT", {**store.lease, "spec": spec})
        await until(lambda: not first.leads, DEADLINE)
        assert not first.lease.held

    run(scenario)


def test_a_lease_deleted_under_its_holder_gives_no_second_leader():
    async def scenario(store):
        first, second = await two(store)
        store.lease = None
        for _ in range(40):
            await asyncio.sleep(SECONDS / 20)
            assert not second.leads
        assert first.leads

    run(scenario)


def test_release_leaves_the_lease_of_another_alone():
    async def scenario(store):
        first, second = await two(store)
        await first.stop()
        await until(lambda: second.leads)
        await first.lease.release()
        assert store.lease["spec"]["holderIdentity"] == "second"

    run(scenario)
