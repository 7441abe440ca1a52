"""The API server as a pass of reconcile sees it: by the watch cache, or afresh.

A first pass decides by the cache, which costs no request; all it writes is status and events. Where
more is to be done, a second one reads from the API server, decides again, and writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightllm_operator.cluster.client import Cluster
from lightllm_operator.errors import WriteWantedError
from lightllm_operator.names import INSTANCE
from lightllm_operator.reconcile import Key
from lightllm_operator.watch_cache import WATCHED, WatchCache

__all__ = ["CachedCluster", "FreshCluster"]

Object = dict[str, Any]

_WATCHED = {each.kind for each in WATCHED}


class FreshCluster:
    """Asks the API server. What it answers to writes is in the cache before the watch shows it, so
    that the next pass does not decide by what was before."""

    def __init__(self, cluster: Cluster, cache: WatchCache) -> None:
        self._cluster = cluster
        self._cache = cache

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        return await self._cluster.get(api_version, kind, namespace, name)

    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        cached: bool = False,
    ) -> list[Object]:
        return await self._cluster.list(api_version, kind, namespace, labels, cached=cached)

    async def apply(self, manifest: Mapping[str, Any], **options: str) -> Object:
        answer = await self._cluster.apply(manifest, **options)
        if manifest["kind"] in _WATCHED:
            self._cache.note(manifest["kind"], answer)
        return answer

    async def merge(self, path: str, patch: Mapping[str, Any]) -> Object:
        return await self._cluster.merge(path, patch)

    async def create(self, manifest: Mapping[str, Any]) -> Object:
        return await self._cluster.create(manifest)

    async def delete(self, api_version: str, kind: str, namespace: str, name: str) -> None:
        await self._cluster.delete(api_version, kind, namespace, name)


class CachedCluster(FreshCluster):
    """Reads the watched kinds from the cache, which must be complete. Raises WriteWantedError
    instead of changing an object, but for the status of a resource."""

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        if kind not in _WATCHED:
            return await super().get(api_version, kind, namespace, name)
        return self._cache.get(kind, Key(namespace, name))

    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        cached: bool = False,
    ) -> list[Object]:
        if kind != "Pod" or namespace is None or labels is None:
            # nodes are looked at where pods are to be made
            raise WriteWantedError(f"the watches show no {kind}")
        return self._cache.pods_with(Key(namespace, labels[INSTANCE]), labels)

    async def apply(self, manifest: Mapping[str, Any], **options: str) -> Object:
        if options.get("subresource") != "status":
            raise _wanted(manifest["kind"])
        return await super().apply(manifest, **options)

    async def merge(self, path: str, patch: Mapping[str, Any]) -> Object:
        raise _wanted(path)

    async def delete(self, api_version: str, kind: str, namespace: str, name: str) -> None:
        raise _wanted(kind)


def _wanted(what: str) -> WriteWantedError:
    return WriteWantedError(f"{what} is to be changed")
