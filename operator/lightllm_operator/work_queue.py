"""A queue of keys: each is worked on by one worker at a time, and again after an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["WorkQueue"]

logger = logging.getLogger(__name__)
K = TypeVar("K")

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 60.0


class WorkQueue(Generic[K]):
    """`work(key)` returns seconds after which to come again, or None; an exception makes it try
    again, later each time."""

    def __init__(self, work: Callable[[K], Awaitable[float | None]]) -> None:
        self._work = work
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        # waiting in the queue; being worked on; wanted again while being worked on
        self._waiting: set[K] = set()
        self._busy: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}

    def add(self, key: K) -> None:
        """Work on the key soon; one that waits already is not queued twice."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._busy:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_later(self, key: K, delay: float) -> None:
        """Work on it after `delay` seconds, unless something asks for it earlier."""
        if key in self._waiting or key in self._again:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self.add, key)

    async def run(self, num_workers: int) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(num_workers):
                tasks.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._busy.add(key)
            try:
                delay = await self._work(key)
                self._failures.pop(key, None)
            except Exception:
                # a worker's top loop: the key's fault must not end the others' work
                failures = self._failures.get(key, 0)
                self._failures[key] = failures + 1
                delay = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**failures)
                logger.exception("%s failed, again in %.1f s", key, delay)
            finally:
                self._busy.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif delay is not None:
                self.add_later(key, delay)
