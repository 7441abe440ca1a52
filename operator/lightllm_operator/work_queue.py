"""A queue of keys: each is worked on by one worker at a time, and again after an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from lightllm_operator.errors import OperatorError

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
        # waiting in the queue; being worked on, since when; wanted again while being worked on
        self._waiting: set[K] = set()
        self._busy: dict[K, float] = {}
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._settling = False
        self._nothing_busy = asyncio.Event()
        self._nothing_busy.set()

    @property
    def depth(self) -> int:
        """How many keys wait."""
        return len(self._waiting)

    def busy_seconds(self) -> float:
        """For how long the slowest of those being worked on has been."""
        began = min(self._busy.values(), default=None)
        return 0.0 if began is None else asyncio.get_running_loop().time() - began

    async def settle(self, seconds: float) -> None:
        """Begin no work any more; until all that was begun has ended, at most `seconds`."""
        self._settling = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._nothing_busy.wait()

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

    def close(self) -> None:
        """Forget what was to come later."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    async def run(self, num_workers: int) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(num_workers):
                tasks.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            key = await self._ready.get()
            if self._settling:
                return
            self._waiting.discard(key)
            self._busy[key] = asyncio.get_running_loop().time()
            self._nothing_busy.clear()
            try:
                delay = await self._work(key)
                self._failures.pop(key, None)
            except Exception as error:
                # a worker's top loop: the key's fault must not end the others' work
                failures = self._failures.get(key, 0)
                self._failures[key] = failures + 1
                delay = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**failures)
                # only of our own errors does the message alone tell enough
                trace = None if isinstance(error, OperatorError) else error
                logger.warning("%s: %s; again in %.1f s", key, error, delay, exc_info=trace)
            finally:
                del self._busy[key]
                if not self._busy:
                    self._nothing_busy.set()
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif delay is not None:
                self.add_later(key, delay)
