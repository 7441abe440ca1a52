"""No full walks of the collector, and none needed: what the scheduler drops is free at once."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from lightllm_server.router import garbage_collector
from scheduler_driver import SchedulerDriver


@pytest.fixture
def walks():
    """Generations that the collector walks, in order; its settings are put back afterwards."""
    generations: list[int] = []

    def note(phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            generations.append(info["generation"])

    thresholds = gc.get_threshold()
    gc.callbacks.append(note)
    yield generations
    gc.callbacks.remove(note)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_the_old_generation_is_not_walked_again(walks):
    garbage_collector.spare_live_objects()
    walks.clear()
    # enough for a few full walks with Python's own thresholds
    live: list[list[int]] = []
    for _ in range(300_000):
        live.append([])
    assert 2 not in walks
    assert {0, 1} <= set(walks)


def test_ended_requests_leave_no_cycle():
    driver = SchedulerDriver(num_slots=48, max_rows=6)
    gc.collect()
    gc.disable()
    try:
        for i in range(60):
            shared = [2, 3, 4, 5]
            driver.add([*shared, 6 + i % 5, 7], max_new_tokens=9, n=1 + i % 3)
            driver.turn()
            if i % 7 == 0:
                driver.abort(i)
            if i % 11 == 0:
                driver.stop(i, 0)
            if i % 29 == 0:
                driver.abandon()
        driver.drain()
        driver.check_drained()
        assert driver.scheduler.preempted_total > 0
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_new_objects_are_walked_a_few_at_a_time(walks):
    garbage_collector.spare_live_objects()
    for _ in range(10):
        live = [[] for _ in range(100)]
        garbage_collector.walk_new_objects()
        assert not set(map(id, live)) & set(map(id, gc.get_objects(generation=0)))
