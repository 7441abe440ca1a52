"""When resources are looked at again without a change."""

from __future__ import annotations

import asyncio

from lightllm_operator.names import KIND
from lightllm_operator.reconcile import Key
from lightllm_operator.watch_cache import WatchCache
from lightllm_operator.watch_check import WatchCheck
from virtual_time import run

PERIOD_S = 60.0


def resource(name, version=1):
    metadata = {"namespace": "team", "name": name, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {}}


class Lists:
    """What the API server lists; counts the requests."""

    def __init__(self, *resources):
        self.resources = list(resources)
        self.num_requests = 0

    async def list_with_version(self, _version, kind, *_, **__):
        self.num_requests += 1
        return (self.resources if kind == KIND else []), "9"


def watch(seconds, cache, lists, *, then=lambda: None):
    """(second, key) of each wake after the watches were complete; `then` is called in between."""
    woken = []

    async def scenario():
        loop = asyncio.get_running_loop()
        check = WatchCheck(
            lists,
            cache,
            lambda key: woken.append((loop.time() - began, key)),
            namespace=None,
            period=PERIOD_S,
            stale_seconds=90,
        )
        began = loop.time()
        task = asyncio.create_task(check.run())
        await cache.complete.wait()
        began = loop.time()
        then()
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(scenario())
    return woken


def test_a_period_looks_at_every_resource_once_and_at_a_few_at_a_time():
    bodies = [resource(f"r{number}") for number in range(100)]
    cache, lists = WatchCache(), Lists(*bodies)
    for body in bodies:
        cache.show(KIND, body)
    woken = watch(PERIOD_S - 0.1, cache, lists)
    assert {key for _, key in woken} == set(cache.resources())
    assert len(woken) == 100
    for second in range(int(PERIOD_S)):
        assert sum(second <= at < second + 1 for at, _ in woken) <= 3


def test_what_had_changed_is_looked_at_as_soon_as_it_is_known():
    bodies = [resource(f"r{number}") for number in range(10)]
    cache, lists = WatchCache(), Lists(*bodies)
    for body in bodies:
        cache.show(KIND, body)
    woken = watch(
        PERIOD_S + 1, cache, lists, then=lambda: lists.resources.append(resource("new", 8))
    )
    [at] = [at for at, key in woken if key == Key("team", "new")]
    assert PERIOD_S <= at < PERIOD_S + 1


def test_without_resources_a_period_is_as_long():
    cache, lists = WatchCache(), Lists()
    watch(10.5 * PERIOD_S, cache, lists)
    # one LIST of each kind at the start and after each period
    assert lists.num_requests == 11 * 6
