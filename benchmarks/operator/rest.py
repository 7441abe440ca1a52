"""A small client of the API server that counts what it asks, by resource and verb."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["MERGE", "Rest", "RestError"]

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
_RESOURCE = re.compile(r"/v\w+(?:/namespaces/[^/]+(?=/))?/(\w+)(/[^/]+)?")


class RestError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Rest:
    """An async context manager; the kubeconfig is one of `tests/cluster` (JSON, a token)."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._server = cluster["server"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._context = ssl.create_default_context(cadata=authority)
        self._headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
        # (resource, verb) as in the API server's own metrics → requests
        self.asked: Counter[tuple[str, str]] = Counter()

    async def __aenter__(self) -> Rest:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(ssl=self._context, limit=64),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def text(self, path: str) -> str:
        async with self._session.get(self._server + path) as answer:
            return await answer.text()

    async def __call__(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """Raises RestError."""
        if found := _RESOURCE.search(path):
            resource, name = found.groups()
            self.asked[resource, "LIST" if method == "GET" and not name else method] += 1
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        async with self._session.request(
            method, self._server + path, data=data, headers=headers
        ) as answer:
            text = await answer.text()
        if answer.status >= 400:
            raise RestError(answer.status, f"{method} {path}: {answer.status} {text[:500]}")
        found_object: Object = json.loads(text)
        return found_object

    async def watch(self, path: str) -> AsyncIterator[tuple[str, Object]]:
        """(type, object) of what is there and of every change, until cancelled."""
        listed = await self("GET", path)
        kind = {"apiVersion": listed["apiVersion"], "kind": listed["kind"].removesuffix("List")}
        for item in listed["items"]:
            yield "ADDED", kind | item
        version = listed["metadata"]["resourceVersion"]
        while True:
            # the API server ends a watch that it cannot write to for a moment, without a word
            url = f"{self._server}{path}?watch=true&resourceVersion={version}&timeoutSeconds=3600"
            async with self._session.get(url, read_bufsize=2**22) as answer:
                if answer.status >= 400:
                    raise RestError(answer.status, f"watch of {path}: {answer.status}")
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise RestError(410, f"watch of {path}: {event['object']}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    yield event["type"], event["object"]
            # one that ends at once again must not keep the API server busy
            await asyncio.sleep(0.1)
