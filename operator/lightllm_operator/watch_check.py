"""Compares what the watches have shown with what the API server has, from time to time.

kopf's watch may stop without a word, and after a relist it never tells of what was deleted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from lightllm_operator import metrics
from lightllm_operator.cluster.client import Cluster
from lightllm_operator.errors import ApiError
from lightllm_operator.reconcile import Key
from lightllm_operator.watch_cache import WATCHED, WatchCache, Watched

__all__ = ["WatchCheck"]

logger = logging.getLogger(__name__)

_STARTING_PERIOD_S = 1.0
_GRACE_S = 0.2


class WatchCheck:
    """`wake` is called with what had changed after each round, and with every other resource once
    until the next."""

    def __init__(
        self,
        cluster: Cluster,
        cache: WatchCache,
        wake: Callable[[Key], None],
        *,
        namespace: str | None,
        period: float,
        stale_seconds: float,
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._wake = wake
        self._namespace = namespace
        self._period = period
        self._stale_seconds = stale_seconds
        self._said = ""

    def problems(self) -> list[str]:
        """Why the watch must be taken for dead."""
        age = self._cache.unseen_seconds(time.monotonic())
        metrics.WATCH_UNSEEN.set(age)
        if age <= self._stale_seconds:
            return []
        return [
            f"a change of {self._cache.unseen_example()} is unseen by the watch for {age:.0f} s"
        ]

    async def run(self) -> None:
        """Until cancelled."""
        while not self._cache.complete.is_set():
            await asyncio.sleep(_STARTING_PERIOD_S)
            await self._look_first()
        logger.info("the watches have shown everything")
        while True:
            await self._wake_all()
            await self._round()

    async def _wake_all(self) -> None:
        """Spread over the period, so that other work never waits for all resources at once."""
        resources = [*self._cache.resources()]
        for key in resources:
            self._wake(key)
            await asyncio.sleep(self._period / len(resources))
        if not resources:
            await asyncio.sleep(self._period)

    async def _look_first(self) -> None:
        complete = True
        for watched in WATCHED:
            complete = await self._compare(watched) is not None and complete
        # what changed just now is on its way
        await asyncio.sleep(_GRACE_S)
        if complete and not self._cache.unseen_seconds(time.monotonic()):
            self._cache.complete.set()

    async def _round(self) -> None:
        changed: set[Key] = set()
        for watched in WATCHED:
            if not await self._compare(watched):
                continue
            try:
                bodies, version = await self._list(watched, metadata_only=False)
            except ApiError as error:
                self._say(str(error))
                continue
            found = self._cache.replace(watched.kind, bodies, version)
            if found:
                logger.info(
                    "%s: the watch had not shown the objects of %s", watched.kind, _few(found)
                )
            changed |= found
        for key in changed:
            self._wake(key)

    async def _compare(self, watched: Watched) -> bool | None:
        """Whether the cache differs; None if that is not known."""
        try:
            listed, version = await self._list(watched, metadata_only=True)
        except ApiError as error:
            self._say(str(error))
            return None
        self._say("")
        return self._cache.compare(watched.kind, listed, version, time.monotonic())

    async def _list(
        self, watched: Watched, *, metadata_only: bool
    ) -> tuple[list[dict[str, object]], str]:
        return await self._cluster.list_with_version(
            watched.api_version,
            watched.kind,
            self._namespace,
            watched.labels,
            metadata_only=metadata_only,
        )

    def _say(self, error: str) -> None:
        """Once per outage, not once per round."""
        if bool(error) != bool(self._said):
            if error:
                logger.warning("objects could not be listed: %s", error)
            else:
                logger.info("objects can be listed again")
        self._said = error


def _few(keys: Iterable[Key]) -> str:
    names = sorted(f"{key.namespace}/{key.name}" for key in keys)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
