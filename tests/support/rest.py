"""The API server's HTTP interface, status codes and messages included."""

from __future__ import annotations

import json
import ssl
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

__all__ = ["Answer", "Rest"]


@dataclass(frozen=True, slots=True)
class Answer:
    """status: of HTTP. body: the object or the Status object."""

    status: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        """Why it was refused."""
        return str(self.body.get("message", ""))

    def expect(self, status: int) -> dict[str, Any]:
        """The body of an answer with that status; raises AssertionError with the message."""
        assert self.status == status, f"{self.status}: {self.message or self.body}"
        return self.body


class Rest:
    """Requests as the user of a kubeconfig that `tests/cluster` wrote."""

    def __init__(self, kubeconfig: Path) -> None:
        document = json.loads(kubeconfig.read_text(encoding="utf-8"))
        [cluster], [user] = document["clusters"], document["users"]
        authority = b64decode(cluster["cluster"]["certificate-authority-data"]).decode()
        self._client = httpx.Client(
            base_url=cluster["cluster"]["server"],
            headers={"Authorization": f"Bearer {user['user']['token']}"},
            verify=ssl.create_default_context(cadata=authority),
            timeout=30,
            trust_env=False,
        )

    def __enter__(self) -> Rest:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def __call__(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        **query: str,
    ) -> Answer:
        headers = {"Content-Type": content_type, "Accept": accept}
        content = None if body is None else json.dumps(body)
        answer = self._client.request(method, path, content=content, headers=headers, params=query)
        return Answer(answer.status_code, answer.json())
