"""Error bodies. Every route answers an error with OpenAI's shape:

{"error": {"message": str, "type": str, "param": str | null, "code": str | null}}
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from lightllm_server.errors import EngineError, OverloadedError, RequestError, ServerError

__all__ = [
    "ClientGoneError",
    "JsonResponse",
    "error_body",
    "error_response",
    "install_error_handlers",
]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class ClientGoneError(Exception):
    """Nobody is there to read an answer."""


class JsonResponse(Response):
    """A body encoded by msgspec; NaN and infinities become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def _type_of(status: int) -> str:
    default = "server_error" if status >= 500 else "invalid_request_error"
    return _TYPES.get(status, default)


def error_body(error: ServerError) -> dict[str, Any]:
    """The body for any of our errors; what is not meant for clients is not in it."""
    if isinstance(error, RequestError):
        status, param, code = error.status, error.field, error.code
    else:
        status, param, code = 500, None, "engine_error"
    message = str(error) if isinstance(error, RequestError | EngineError) else "internal error"
    return {"error": {"message": message, "type": _type_of(status), "param": param, "code": code}}


def error_response(error: ServerError) -> JsonResponse:
    status = error.status if isinstance(error, RequestError) else 500
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(error.retry_after)
    elif status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "1"
    elif status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JsonResponse(error_body(error), status, headers)


def _on_server_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServerError), type(error)
    return error_response(error)


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), type(error)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    body = {
        "error": {
            "message": f"{request.method} {request.url.path[:200]}: {error.detail}",
            "type": _type_of(error.status_code),
            "param": None,
            "code": code,
        }
    }
    return JsonResponse(body, error.status_code, dict(error.headers or {}))


def _on_any_error(request: Request, error: Exception) -> Response:
    # raised again behind it and logged by uvicorn
    return error_response(ServerError("internal error"))


def _on_client_gone(request: Request, error: Exception) -> Response:
    # nobody reads it; uvicorn drops it
    return Response(status_code=499)


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ClientGoneError, _on_client_gone)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
    app.add_exception_handler(ServerError, _on_server_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_any_error)
