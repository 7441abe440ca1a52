"""Writes a resource's status where it changed, and the events that the changes make."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import Any

from lightllm_operator.cluster.client import Objects
from lightllm_operator.errors import ApiError
from lightllm_operator.names import API_VERSION, FIELD_MANAGER, KIND, STATUS_MANAGER
from lightllm_operator.status import Observation, summarise
from lightllm_operator.timestamps import timestamp_now
from lightllm_operator.transitions import transitions

__all__ = ["StatusWriter"]

logger = logging.getLogger(__name__)

Object = dict[str, Any]


class StatusWriter:
    """The only writer of the status."""

    def __init__(self, cluster: Objects) -> None:
        self._cluster = cluster

    async def tell(self, owner: Object, seen: Observation) -> None:
        """owner: the resource as it was read."""
        before, now = owner.get("status", {}), timestamp_now()
        status = summarise(seen, before, now)
        if status != before:
            await self._write(owner, status, now)

    async def _write(self, owner: Object, status: Object, now: str) -> None:
        metadata = owner["metadata"]
        manifest = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            # another resource may have the name by now: with the uid the API server refuses
            "metadata": {key: metadata[key] for key in ("name", "namespace", "uid")},
            "status": status,
        }
        await self._cluster.apply(manifest, manager=STATUS_MANAGER, subresource="status")
        notes = transitions(owner.get("status", {}), status)
        for _, reason, message in notes:
            logger.info("%s/%s: %s: %s", metadata["namespace"], metadata["name"], reason, message)
        await asyncio.gather(*(self._event(owner, *note, now) for note in notes))

    async def _event(self, owner: Object, kind: str, reason: str, message: str, now: str) -> None:
        metadata = owner["metadata"]
        digest = hashlib.sha256(f"{metadata['uid']}{reason}{message}{now}".encode()).hexdigest()
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{digest[:16]}",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:1000],
            "source": {"component": FIELD_MANAGER},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._cluster.create(event)
        except ApiError as error:
            logger.warning("event not posted: %s", error)
