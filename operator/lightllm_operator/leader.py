"""What one replica alone does: work the queue and scale, for as long as the lease is its own."""

from __future__ import annotations

import asyncio
import logging
import time

from lightllm_operator import metrics
from lightllm_operator.cached_cluster import CachedCluster, FreshCluster
from lightllm_operator.cluster.client import Cluster
from lightllm_operator.cluster.lease import Lease
from lightllm_operator.cluster.progress import ProgressReader
from lightllm_operator.cluster.scrape import Scraper
from lightllm_operator.errors import WriteWantedError
from lightllm_operator.reconcile import Key, Reconciler
from lightllm_operator.scaler import Scaler
from lightllm_operator.settings import Settings
from lightllm_operator.watch_cache import WatchCache
from lightllm_operator.work_queue import WorkQueue

__all__ = ["Leader"]

logger = logging.getLogger(__name__)

_WORKERS = 16


class Leader:
    """Queue and scaler are made anew for each term, so that no scale-down follows a takeover before
    a window has passed; `cluster` writes nothing without the lease."""

    def __init__(
        self,
        settings: Settings,
        cache: WatchCache,
        cluster: Cluster,
        scraper: Scraper,
        progress: ProgressReader,
        lease: Lease,
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._cluster = cluster
        self._scraper = scraper
        self._progress = progress
        self._lease = lease
        self._queue: WorkQueue[Key] | None = None
        cluster.may_write = lambda: lease.held

    def wake(self, key: Key) -> None:
        """Reconcile it soon, if we lead: who takes over looks at everything anyway."""
        if self._queue is not None and key.name:
            self._queue.add(key)

    def problems(self) -> list[str]:
        """What a restart would mend."""
        busy = 0.0 if self._queue is None else self._queue.busy_seconds()
        if busy <= self._settings.stuck_seconds:
            return []
        return [f"one reconcile has been running for {busy:.0f} s"]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._lease.acquire()
            logger.info("this replica leads")
            await self._lead()
            logger.warning("this replica has lost the lease and leads no more")

    async def settle(self) -> None:
        """Let the reconciles that run end, and begin none."""
        if self._queue is not None:
            await self._queue.settle(self._settings.stop_seconds)

    async def _lead(self) -> None:
        queue: WorkQueue[Key] = WorkQueue(self._reconcile)
        scaler = Scaler(self._cache, self._scraper, queue.add)
        self._by_cache, self._afresh = (
            Reconciler(objects(self._cluster, self._cache), self._settings, scaler, self._progress)
            for objects in (CachedCluster, FreshCluster)
        )
        self._queue = queue
        for key in self._cache.resources():
            queue.add(key)
        metrics.LEADER.set(1)
        metrics.WORK_QUEUE_DEPTH.set_function(lambda: queue.depth)
        tasks = [
            asyncio.create_task(self._lease.hold()),
            asyncio.create_task(queue.run(_WORKERS)),
            asyncio.create_task(self._scale(scaler)),
        ]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            self._queue = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            queue.close()
            metrics.LEADER.set(0)
            metrics.WORK_QUEUE_DEPTH.set_function(lambda: 0)
            metrics.clear_resources()

    async def _reconcile(self, key: Key) -> float | None:
        began = time.monotonic()
        try:
            return await self._look_and_write(key)
        except Exception:
            metrics.RECONCILE_ERRORS.inc()
            raise
        finally:
            metrics.RECONCILE_SECONDS.observe(time.monotonic() - began)

    async def _look_and_write(self, key: Key) -> float | None:
        if self._cache.complete.is_set():
            try:
                return await self._by_cache.reconcile(key)
            except WriteWantedError:
                logger.debug("%s is to be written", key)
        return await self._afresh.reconcile(key)

    async def _scale(self, scaler: Scaler) -> None:
        """Once the pods are known: until then it would look as if none reported."""
        await self._cache.complete.wait()
        await scaler.run(self._settings.scrape_seconds)
