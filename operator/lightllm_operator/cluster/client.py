"""The API server: read, list, apply and delete objects, as plain dicts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import client, config

from lightllm_operator import metrics
from lightllm_operator.errors import ApiError, NotLeaderError, RefusedError
from lightllm_operator.names import FIELD_MANAGER, PLURAL

__all__ = ["Cluster", "Objects", "apply_child", "path_of"]

logger = logging.getLogger(__name__)

Object = dict[str, Any]

_TIMEOUT_S = 30
_ATTEMPTS = 4
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_PLURALS = {
    "Deployment": "deployments",
    "Event": "events",
    "Job": "jobs",
    "Lease": "leases",
    "LightLLMDeployment": PLURAL,
    "Node": "nodes",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "Service": "services",
}


def path_of(api_version: str, kind: str, namespace: str | None, name: str = "") -> str:
    """The URL path of one object, or without a name of all."""
    prefix = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{prefix}{scope}/{_PLURALS[kind]}" + (f"/{name}" if name else "")


class Objects(Protocol):
    """What reconcile asks of the API server; see `Cluster`."""

    async def get(
        self, api_version: str, kind: str, namespace: str, name: str
    ) -> Object | None: ...
    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        cached: bool = False,
    ) -> list[Object]: ...
    async def apply(
        self, manifest: Mapping[str, Any], *, manager: str = ..., subresource: str = ...
    ) -> Object: ...
    async def merge(self, path: str, patch: Mapping[str, Any]) -> Object: ...
    async def create(self, manifest: Mapping[str, Any]) -> Object: ...
    async def delete(self, api_version: str, kind: str, namespace: str, name: str) -> None: ...


class Cluster:
    """Raises ApiError for every answer that is no success; 429, 5xx and lost connections are tried
    again a few times, since every call may be repeated. Raises NotLeaderError instead of writing
    while `may_write` says no."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self.num_requests = 0
        self.may_write: Callable[[], bool] = lambda: True

    @classmethod
    async def connect(cls) -> Cluster:
        """By the pod's service account, else by the kubeconfig."""
        try:
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        except config.ConfigException:
            await config.load_kube_config()  # type: ignore[no-untyped-call]
        configuration = client.Configuration.get_default_copy()
        # looked up once: for each request aiohttp would do it in a thread, and look for a netrc too
        configuration.proxy = configuration.proxy or _proxy_of(configuration.host)
        configuration.client_session_kwargs = {"trust_env": False}
        return cls(client.ApiClient(configuration))

    async def close(self) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """The object, None if there is none."""
        try:
            return await self.request("GET", path_of(api_version, kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list_with_version(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        metadata_only: bool = False,
        cached: bool = False,
    ) -> tuple[list[Object], str]:
        """All objects with these labels, and the resourceVersion at which they were so. cached: as
        the API server's watch cache has them, which costs it little and may be a moment old; else
        it reads every object of the namespace."""
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items())
        query = {"labelSelector": selector} if selector else {}
        if cached:
            query["resourceVersion"] = "0"
        found = await self.request(
            "GET",
            path_of(api_version, kind, namespace),
            query=query,
            accept=_METADATA_ONLY if metadata_only else "application/json",
        )
        # null, where metadata of none is listed
        return found["items"] or [], found["metadata"]["resourceVersion"]

    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        labels: Mapping[str, str] | None = None,
        *,
        cached: bool = False,
    ) -> list[Object]:
        """All objects with these labels; see `list_with_version`."""
        items, _ = await self.list_with_version(api_version, kind, namespace, labels, cached=cached)
        return items

    async def apply(
        self, manifest: Mapping[str, Any], *, manager: str = FIELD_MANAGER, subresource: str = ""
    ) -> Object:
        """Server-side apply: of the fields that `manager` owns, exactly these remain."""
        metadata = manifest["metadata"]
        path = path_of(
            manifest["apiVersion"], manifest["kind"], metadata["namespace"], metadata["name"]
        )
        query = {"fieldManager": manager, "force": "true"}
        return await self.request(
            "PATCH",
            f"{path}/{subresource}" if subresource else path,
            query=query,
            body=manifest,
            content_type="application/apply-patch+yaml",
        )

    async def merge(self, path: str, patch: Mapping[str, Any]) -> Object:
        """A merge patch."""
        return await self.request(
            "PATCH",
            path,
            query={"fieldManager": FIELD_MANAGER},
            body=patch,
            content_type="application/merge-patch+json",
        )

    async def create(self, manifest: Mapping[str, Any]) -> Object:
        path = path_of(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["namespace"])
        return await self.request("POST", path, body=manifest)

    async def delete(self, api_version: str, kind: str, namespace: str, name: str) -> None:
        """No error if it is gone already."""
        path = path_of(api_version, kind, namespace, name)
        try:
            await self.request("DELETE", path, body={"propagationPolicy": "Background"})
        except ApiError as error:
            if error.status != 404:
                raise

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        attempts: int = _ATTEMPTS,
    ) -> Object:
        """One call; the decoded answer."""
        for attempt in range(attempts):
            try:
                return await self._once(method, path, query, body, content_type, accept)
            except ApiError as error:
                again = error.status in (0, 429) or error.status >= 500
                if not again or attempt == attempts - 1:
                    raise
                await asyncio.sleep(0.2 * 4**attempt)
        raise AssertionError("unreachable")

    async def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        accept: str,
    ) -> Object:
        if method != "GET" and not self.may_write():
            raise NotLeaderError(f"{method} {path}: this replica does not lead any more")
        headers = {"Accept": accept, "Content-Type": content_type}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = self._api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        self.num_requests += 1
        try:
            answer = await self._api.call_api(
                method, url, header_params=headers, body=body, _request_timeout=_TIMEOUT_S
            )
            data: bytes = await answer.read()  # type: ignore[no-untyped-call]
            text = data.decode()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            metrics.API_REQUESTS.labels(method, "error").inc()
            raise ApiError(0, f"{method} {path}: {type(error).__name__}: {error}") from error
        metrics.API_REQUESTS.labels(method, answer.status).inc()
        if answer.status >= 400:
            raise ApiError(answer.status, f"{method} {path}: {_message(text)}")
        decoded: Object = json.loads(text)
        return decoded


async def apply_child(
    cluster: Objects, manifest: Mapping[str, Any], *, manager: str = FIELD_MANAGER
) -> Object:
    """Apply what the spec asks for. Raises RefusedError where no retry would change the answer."""
    what = f"{manifest['kind']} {manifest['metadata']['name']}"
    try:
        answer = await cluster.apply(manifest, manager=manager)
    except ApiError as error:
        if error.status in (400, 422):
            raise RefusedError(
                "InvalidSpec", f"{what} is refused: {error}; correct the spec where it comes from"
            ) from error
        if error.status == 403:
            raise RefusedError(
                "Forbidden",
                f"{what} is refused: {error}; a quota, an admission policy or the operator's "
                "rights must allow it, or the spec ask for less",
            ) from error
        raise
    logger.info("%s: %s applied", manifest["metadata"]["namespace"], what)
    return answer


def _proxy_of(url: str) -> str | None:
    """By the environment, as usual: HTTPS_PROXY, NO_PROXY."""
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]
