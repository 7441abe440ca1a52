"""One worker per key, one run per burst, again after errors."""

from __future__ import annotations

import asyncio

import pytest

import virtual_time
from lightllm_operator.work_queue import WorkQueue


def run(scenario):
    async def bounded():
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


def test_a_burst_is_one_run_and_a_change_meanwhile_is_another():
    async def scenario():
        runs, gate, started = [], asyncio.Event(), asyncio.Event()

        async def work(key):
            runs.append(key)
            started.set()
            await gate.wait()

        queue = WorkQueue(work)
        for _ in range(5):
            queue.add("a")
        task = asyncio.create_task(queue.run(3))
        await started.wait()
        # while it is worked on: it comes again once, never side by side
        for _ in range(5):
            queue.add("a")
        await asyncio.sleep(0)
        assert runs == ["a"]
        gate.set()
        while len(runs) < 2:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert runs == ["a", "a"]
        task.cancel()

    run(scenario)


def test_an_error_is_tried_again_and_others_go_on():
    async def scenario():
        runs, done = [], asyncio.Event()

        async def work(key):
            runs.append(key)
            if key == "bad" and runs.count("bad") == 1:
                raise RuntimeError("first time")
            if runs.count("bad") == 2:
                done.set()

        queue = WorkQueue(work)
        queue.add("bad")
        queue.add("good")
        task = asyncio.create_task(queue.run(1))
        await done.wait()
        assert runs == ["bad", "good", "bad"]
        task.cancel()

    run(scenario)


def test_a_change_comes_before_the_delay():
    async def scenario():
        runs, twice = [], asyncio.Event()

        async def work(key):
            runs.append(key)
            if len(runs) == 2:
                twice.set()
            return 3600.0

        queue = WorkQueue(work)
        queue.add("a")
        task = asyncio.create_task(queue.run(1))
        while not runs:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        queue.add("a")
        await twice.wait()
        task.cancel()

    run(scenario)


def test_settling_ends_what_runs_and_begins_nothing():
    async def scenario():
        runs, ended, gate = [], [], asyncio.Event()

        async def work(key):
            runs.append(key)
            await gate.wait()
            ended.append(key)

        queue = WorkQueue(work)
        queue.add("running")
        task = asyncio.create_task(queue.run(1))
        await asyncio.sleep(0.01)
        queue.add("waiting")
        assert queue.depth == 1
        asyncio.get_running_loop().call_later(0.05, gate.set)
        await queue.settle(5)
        assert ended == ["running"]
        await asyncio.sleep(0.05)
        assert runs == ["running"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(scenario)


def test_settling_waits_no_longer_than_it_may():
    async def scenario():
        async def work(key):
            await asyncio.Event().wait()

        queue = WorkQueue(work)
        queue.add("hangs")
        task = asyncio.create_task(queue.run(1))
        await asyncio.sleep(0.01)
        assert queue.busy_seconds() > 0
        loop = asyncio.get_running_loop()
        began = loop.time()
        await queue.settle(0.05)
        assert loop.time() - began == pytest.approx(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    virtual_time.run(scenario())
