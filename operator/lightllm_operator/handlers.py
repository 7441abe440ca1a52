"""What the operator reacts to: every change of a resource or of a child wakes its reconcile.

Index and event handlers alone: they put no finalizer and no annotation on anybody's object.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp
import kopf

from lightllm_operator.cluster.client import Cluster
from lightllm_operator.cluster.scrape import Scraper
from lightllm_operator.errors import OperatorError
from lightllm_operator.names import (
    API_VERSION,
    FIELD_MANAGER,
    GROUP,
    INSTANCE,
    KIND,
    MANAGED_BY,
    PLURAL,
    SERVER,
    VERSION,
    child_labels,
)
from lightllm_operator.reconcile import Key, Reconciler
from lightllm_operator.scaler import Scaler
from lightllm_operator.settings import Settings
from lightllm_operator.work_queue import WorkQueue

__all__ = ["register"]

logger = logging.getLogger(__name__)

_WORKERS = 16
_OURS = {MANAGED_BY: FIELD_MANAGER}


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


class _Caches:
    """What the watches have shown; implements `scaler.Source`."""

    def __init__(self) -> None:
        self._resources: dict[Key, Mapping[str, Any]] = {}
        self._pods: dict[Key, dict[str, Mapping[str, Any]]] = {}
        self._replicas: dict[Key, int] = {}

    def resources(self) -> Mapping[Key, Mapping[str, Any]]:
        return self._resources

    def pods(self, key: Key) -> list[Mapping[str, Any]]:
        return list(self._pods.get(key, {}).values())

    def replicas(self, key: Key) -> int | None:
        return self._replicas.get(key)

    def take(self, kind: str, key: Key, body: Mapping[str, Any], *, deleted: bool) -> None:
        """Note an object as it is now; `key` is the resource that it belongs to."""
        match kind:
            case "LightLLMDeployment" if deleted:
                self._resources.pop(key, None)
            case "LightLLMDeployment":
                self._resources[key] = body
            case "Pod" if deleted:
                self._pods.get(key, {}).pop(body["metadata"]["name"], None)
            case "Pod":
                self._pods.setdefault(key, {})[body["metadata"]["name"]] = body
            case "Deployment" if deleted:
                self._replicas.pop(key, None)
            case "Deployment":
                self._replicas[key] = body["spec"].get("replicas", 1)

    def replace(self, bodies: list[dict[str, Any]]) -> set[Key]:
        """The resources as a LIST shows them; those that the watch had not shown as they are."""
        listed = {_key(body["metadata"]): body for body in bodies}

        def version(body: Mapping[str, Any] | None) -> str | None:
            return None if body is None else body["metadata"]["resourceVersion"]

        differing = {
            key
            for key in listed.keys() | self._resources.keys()
            if version(listed.get(key)) != version(self._resources.get(key))
        }
        self._resources = dict(listed)
        return differing


class _Operator:
    """The parts, joined when kopf has started."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.caches = _Caches()
        self.queue: WorkQueue[Key] = WorkQueue(self._work)
        self._reconciler: Reconciler | None = None
        self._cluster: Cluster | None = None
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def _work(self, key: Key) -> float | None:
        assert self._reconciler is not None, "works before it has started"
        return await self._reconciler.reconcile(key)

    async def start(self) -> None:
        cluster = self._cluster = await Cluster.connect()
        session = self._session = aiohttp.ClientSession()
        scaler = Scaler(self.caches, Scraper(session), self.queue.add)
        self._reconciler = Reconciler(cluster, self.settings, scaler)
        self._tasks = [
            asyncio.create_task(self.queue.run(_WORKERS)),
            asyncio.create_task(scaler.run(self.settings.scrape_seconds)),
            asyncio.create_task(self._resync(cluster)),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        if self._cluster is not None:
            await self._cluster.close()

    async def _resync(self, cluster: Cluster) -> None:
        """Every minute each resource is looked at, also those that a watch may have missed."""
        while True:
            await asyncio.sleep(self.settings.resync_seconds)
            try:
                bodies = await cluster.list(API_VERSION, KIND, self.settings.namespace)
            except OperatorError as error:
                logger.warning("resources could not be listed: %s", error)
                continue
            if missed := self.caches.replace(bodies):
                logger.info("%d resources differ from what the watch has shown", len(missed))
            for key in {*self.caches.resources(), *missed}:
                self.queue.add(key)


def _key(metadata: Mapping[str, Any]) -> Key:
    return Key(metadata["namespace"], metadata["name"])


def register(registry: kopf.OperatorRegistry, settings: Settings) -> None:
    """Bind the handlers to kopf's registry."""
    operator = _Operator(settings)

    @kopf.on.login(registry=registry)
    def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.peering.standalone = True
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.persistence.diffbase_storage = _NoDiffs()
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 310
        settings.watching.connect_timeout = 10
        settings.networking.request_timeout = 30
        await operator.start()

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await operator.stop()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def resource_changed(body: kopf.Body, type: str | None, **_: Any) -> None:
        key = _key(body["metadata"])
        operator.caches.take(KIND, key, dict(body), deleted=type == "DELETED")
        operator.queue.add(key)

    def child_changed(body: kopf.Body, kind: str, event_type: str | None) -> None:
        metadata = body["metadata"]
        key = Key(metadata["namespace"], metadata["labels"][INSTANCE])
        server = child_labels(key.name, SERVER).items() <= metadata["labels"].items()
        if server:
            operator.caches.take(kind, key, dict(body), deleted=event_type == "DELETED")
        operator.queue.add(key)

    @kopf.on.event("apps", "v1", "deployments", labels=_OURS, registry=registry)
    async def deployment_changed(body: kopf.Body, type: str | None, **_: Any) -> None:
        child_changed(body, "Deployment", type)

    @kopf.on.event("v1", "pods", labels=_OURS, registry=registry)
    async def pod_changed(body: kopf.Body, type: str | None, **_: Any) -> None:
        child_changed(body, "Pod", type)

    @kopf.on.event("batch", "v1", "jobs", labels=_OURS, registry=registry)
    async def job_changed(body: kopf.Body, type: str | None, **_: Any) -> None:
        child_changed(body, "Job", type)
