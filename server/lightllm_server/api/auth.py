"""API keys, compared in constant time: everything but the probes is refused without one."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from lightllm_server.api.replies import error_response
from lightllm_server.errors import ConfigError, RequestError

__all__ = ["PROBES", "ApiKeys", "Authentication", "tenant_of"]

PROBES = frozenset({"/livez", "/readyz", "/health"})
_MAX_KEYS = 10_000
_TENANT = "lightllm.tenant"


class ApiKeys:
    """SHA-256 digests of the keys; the keys themselves are not kept."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @classmethod
    def from_file(cls, path: Path) -> ApiKeys:
        """One key per line; raises ConfigError where the file cannot be read or holds none."""
        try:
            lines = path.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {path}: {error}") from None
        keys = [key for line in lines if (key := line.strip())]
        if not 1 <= len(keys) <= _MAX_KEYS:
            raise ConfigError(
                f"--api-key-file {path}: holds {len(keys)} keys, must hold 1 to {_MAX_KEYS}"
            )
        return cls(keys)

    def tenant(self, key: bytes) -> str | None:
        """A name for the key that tells nothing of it, or None where it is no key of ours."""
        digest = hashlib.sha256(key).digest()
        # all are compared, so that the time says nothing
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return hashlib.sha256(digest).hexdigest()[:32] if any(matches) else None


def tenant_of(scope: Scope) -> str:
    """The tenant that `Authentication` found, "" where there are no keys."""
    return str(scope.get(_TENANT, ""))


class Authentication:
    """ASGI middleware, default deny: exactly `PROBES` pass without a key."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            tenant = self._tenant(scope)
            if tenant is None:
                await error_response(_unauthorized())(scope, receive, send)
                return
            scope[_TENANT] = tenant
        await self._app(scope, receive, send)

    def _tenant(self, scope: Scope) -> str | None:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return None
        scheme, _, key = given[0].partition(b" ")
        return self._keys.tenant(key.strip()) if scheme.lower() == b"bearer" else None


def _unauthorized() -> RequestError:
    return RequestError(
        "missing or wrong API key: send it as `Authorization: Bearer KEY`",
        status=401,
        code="invalid_api_key",
    )
