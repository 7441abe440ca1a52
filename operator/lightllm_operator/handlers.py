"""What the operator reacts to: every change of a resource or of a child wakes its reconcile.

Event handlers alone: they put no finalizer and no annotation on anybody's object.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import aiohttp
import kopf

from lightllm_operator.cluster.client import Cluster
from lightllm_operator.cluster.health import HealthServer
from lightllm_operator.cluster.lease import Lease
from lightllm_operator.cluster.progress import ProgressReader
from lightllm_operator.cluster.scrape import Scraper
from lightllm_operator.errors import ApiError
from lightllm_operator.leader import Leader
from lightllm_operator.names import API_VERSION, KIND
from lightllm_operator.settings import Settings
from lightllm_operator.watch_cache import WATCHED, WatchCache, Watched
from lightllm_operator.watch_check import WatchCheck

__all__ = ["register"]

logger = logging.getLogger(__name__)

_STARTING_PERIOD_S = 2.0


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf copies every object of every event to compare it with the one before; nobody asks."""

    def build(
        self, *, body: kopf.Body, extra_fields: Iterable[kopf.FieldSpec] | None = None
    ) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        raise AssertionError("only event handlers are registered, which store nothing")


class _Operator:
    """The parts, joined when kopf has started."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cache = WatchCache()
        self._health = HealthServer(unhealthy=self._unhealthy, unready=self._unready)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Until the API server answers: a restart would not bring it about."""
        settings = self._settings
        await self._health.start(settings.health_port)
        self._cluster = await Cluster.connect()
        self._session = aiohttp.ClientSession()
        # its requests wait for no others, and are not held back with the rest
        self._lease_cluster = await Cluster.connect()
        await self._wait_for_the_api()
        identity = f"{settings.pod_name}-{uuid.uuid4().hex[:8]}"
        self._lease = Lease(
            self._lease_cluster,
            settings.own_namespace,
            settings.lease_name,
            identity,
            seconds=settings.lease_seconds,
        )
        self._leader = Leader(
            settings,
            self._cache,
            self._cluster,
            Scraper(self._session),
            ProgressReader(self._session),
            self._lease,
        )
        self._check = WatchCheck(
            self._cluster,
            self._cache,
            self._leader.wake,
            namespace=settings.namespace,
            period=settings.resync_seconds,
            stale_seconds=settings.watch_stale_seconds,
        )
        self._tasks = [
            asyncio.create_task(self._leader.run(), name="leader"),
            asyncio.create_task(self._check.run(), name="watch check"),
        ]
        for task in self._tasks:
            task.add_done_callback(_tell_crash)

    async def stop(self) -> None:
        await self._leader.settle()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._lease.release()
        await self._session.close()
        await self._cluster.close()
        await self._lease_cluster.close()
        await self._health.stop()
        logger.info("stopped")

    def saw(self, watched: Watched, body: kopf.Body, event_type: str | None) -> None:
        """A watch has shown an object; without a type it was there before."""
        key = self._cache.show(watched.kind, body, deleted=event_type == "DELETED")
        self._leader.wake(key)

    async def _wait_for_the_api(self) -> None:
        said = ""
        while True:
            try:
                await self._cluster.list_with_version(
                    API_VERSION, KIND, self._settings.namespace, metadata_only=True
                )
            except ApiError as error:
                if str(error) != said:
                    logger.warning("waits for the API server: %s", error)
                said = str(error)
                await asyncio.sleep(_STARTING_PERIOD_S)
            else:
                return

    def _unhealthy(self) -> list[str]:
        if not self._tasks:
            return []
        ended = [f"the {task.get_name()} has ended" for task in self._tasks if task.done()]
        return [*ended, *self._leader.problems(), *self._check.problems()]

    def _unready(self) -> list[str]:
        if not self._tasks:
            return ["the API server has not answered yet"]
        return (
            [] if self._cache.complete.is_set() else ["the watches have not shown everything yet"]
        )


def _tell_crash(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("the %s has ended", task.get_name(), exc_info=error)


class _Backoffs:
    """Seconds between kopf's attempts, without an end: an outage of the API server is no reason
    to end, and kopf ends with its watches."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1, 2, 4), itertools.repeat(8))


def _configure(settings: kopf.OperatorSettings) -> None:
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = _Backoffs()
    for watched in WATCHED:
        if watched.labels:
            labels = ",".join(f"{key}={value}" for key, value in watched.labels.items())
            settings.watching.label_selectors[watched.api_version, watched.plural] = labels


def register(registry: kopf.OperatorRegistry, settings: Settings) -> None:
    """Bind the handlers to kopf's registry."""
    operator = _Operator(settings)

    @kopf.on.login(registry=registry)
    def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.startup(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        _configure(settings)
        await operator.start()

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await operator.stop()

    for watched in WATCHED:
        _register_watch(registry, operator, watched)


def _register_watch(registry: kopf.OperatorRegistry, operator: _Operator, watched: Watched) -> None:
    labels = dict(watched.labels) if watched.labels else None

    @kopf.on.event(
        watched.api_version, watched.plural, labels=labels, id=watched.plural, registry=registry
    )
    async def changed(body: kopf.Body, type: str | None, **_: Any) -> None:
        operator.saw(watched, body, type)
