"""Leadership by a Lease: of several replicas one leads, and it has stopped before another begins.

`kubernetes.aio.leaderelection` will not do: it goes by the wall clock, counts its deadline from the
last attempt instead of the last success, lets one request hang past it, and releases nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from lightllm_operator.cluster.client import Cluster, path_of
from lightllm_operator.errors import ApiError

__all__ = ["Lease"]

logger = logging.getLogger(__name__)

_API_VERSION, _KIND = "coordination.k8s.io/v1", "Lease"
_NEVER = float("-inf")
_MISSING = "missing"


class Lease:
    """seconds: others take it when it was not renewed for so long. Its holder stops after two
    thirds of that, counted from when it sent the last renewal that succeeded.

    All times are this process's monotonic clock: those of other machines are never compared.
    """

    def __init__(
        self,
        api: Cluster,
        namespace: str,
        name: str,
        identity: str,
        *,
        seconds: float = 12.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seconds = seconds
        self._deadline = seconds * 2 / 3
        self._pause = seconds / 6
        self._clock = clock
        # as last read or written; None: to be read
        self._lease: dict[str, Any] | None = None
        # the version that was read last, and when it was first seen
        self._version = ""
        self._version_since = 0.0
        self._renewed = _NEVER
        self._said = ""

    @property
    def held(self) -> bool:
        """Whether nobody else can have it: to be asked before each write."""
        return self._clock() < self._renewed + self._deadline

    async def acquire(self) -> None:
        """Until it is ours."""
        while True:
            if await self._attempt():
                return
            await asyncio.sleep(self._pause / 2)

    async def hold(self) -> None:
        """Renew it; returns when it is lost, or may be soon."""
        while self.held:
            left = self._renewed + self._deadline - self._clock()
            try:
                async with asyncio.timeout(left):
                    await asyncio.sleep(self._pause)
                    await self._attempt()
            except TimeoutError:
                # whether the last renewal was written is not known
                self._lease = None
            if self._holder() not in (self._identity, None):
                self._renewed = _NEVER

    async def release(self) -> None:
        """Let another replica have it at once; to be called when nothing is written any more."""
        if self._renewed == _NEVER:
            return
        self._renewed = _NEVER
        try:
            async with asyncio.timeout(self._pause):
                if self._lease is None:
                    self._lease = await self._request("GET", self._path)
                if self._holder() == self._identity:
                    spec = {**self._lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                    await self._write({**self._lease, "spec": spec})
        except (ApiError, TimeoutError) as error:
            logger.warning("lease %s not released: %s", self._name, error or "no answer")

    @property
    def _path(self) -> str:
        return path_of(_API_VERSION, _KIND, self._namespace, self._name)

    def _holder(self) -> str | None:
        """Its holder as last read; None if that is not known."""
        return None if self._lease is None else self._lease["spec"].get("holderIdentity", "")

    async def _attempt(self) -> bool:
        """Take or renew it; whether it is ours now."""
        asked = self._clock()
        try:
            # a request that hangs must not outlast the deadline
            async with asyncio.timeout(2 * self._pause):
                taken = await self._take()
        except (ApiError, TimeoutError) as error:
            # it may have been written all the same, or by another: read it the next time
            self._lease = None
            self._say(f"lease {self._name}: {error or 'no answer'}")
            return False
        self._say("")
        if taken:
            self._renewed = asked
        return taken

    async def _take(self) -> bool:
        lease = self._lease if self._holder() == self._identity else await self._read()
        if lease is None:
            if not self.held and not self._was_missing_long():
                return False
            path = path_of(_API_VERSION, _KIND, self._namespace)
            self._lease = await self._request("POST", path, self._renewal(None))
            return True
        if self._holder() not in (self._identity, "") and not self._is_expired(lease):
            return False
        await self._write(self._renewal(lease))
        return True

    async def _read(self) -> dict[str, Any] | None:
        try:
            lease = await self._request("GET", self._path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        self._lease = lease
        if lease["metadata"]["resourceVersion"] != self._version:
            self._version = lease["metadata"]["resourceVersion"]
            self._version_since = self._clock()
        return lease

    def _was_missing_long(self) -> bool:
        """Somebody may have deleted it under its holder."""
        if self._version not in ("", _MISSING):
            self._version, self._version_since = _MISSING, self._clock()
        return not self._version or self._clock() >= self._version_since + self._seconds

    def _is_expired(self, lease: dict[str, Any]) -> bool:
        seconds: float = lease["spec"].get("leaseDurationSeconds", self._seconds)
        return self._clock() >= self._version_since + max(seconds, 1)

    async def _write(self, lease: dict[str, Any]) -> None:
        """Raises ApiError 409 if somebody wrote it since it was read."""
        self._lease = await self._request("PUT", self._path, lease)

    async def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return await self._api.request(method, path, body=body, attempts=1)

    def _renewal(self, lease: dict[str, Any] | None) -> dict[str, Any]:
        before = {} if lease is None else lease["spec"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours = before.get("holderIdentity") == self._identity
        spec = {
            **before,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": math.ceil(self._seconds),
            "renewTime": now,
            "acquireTime": before["acquireTime"] if ours else now,
            "leaseTransitions": before.get("leaseTransitions", -1) + (not ours),
        }
        if lease is not None:
            return {**lease, "spec": spec}
        metadata = {"namespace": self._namespace, "name": self._name}
        return {"apiVersion": _API_VERSION, "kind": _KIND, "metadata": metadata, "spec": spec}

    def _say(self, problem: str) -> None:
        """Once per outage, not once per attempt."""
        if problem and not self._said:
            logger.warning("%s", problem)
        self._said = problem
