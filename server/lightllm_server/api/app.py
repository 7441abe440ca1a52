"""The two ASGI applications: the main port's with every route, the metrics port's with a few."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp

from lightllm_server.api import chat, completions, generate, info, models, probes, tokens
from lightllm_server.api.auth import ApiKeys, Authentication
from lightllm_server.api.guard import Guard
from lightllm_server.api.openapi import install_openapi
from lightllm_server.api.replies import install_error_handlers
from lightllm_server.api.service import Service
from lightllm_server.status_page import State

__all__ = ["main_app", "metrics_app", "routes_app"]


def routes_app(service: Service) -> FastAPI:
    """All routes, without the middlewares around them."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    for module in (generate, completions, chat, models, tokens, info, probes):
        app.include_router(module.router)
    app.state.service = service
    install_error_handlers(app)
    install_openapi(app)
    return app


def main_app(service: Service, keys: ApiKeys | None) -> ASGIApp:
    """What the main port serves; with `keys`, nothing but the probes without one."""
    row = service.page["api"]

    def should_close() -> bool:
        # waiting requests should spread to new replicas, which keep-alive would prevent
        return row.state is State.DRAINING or service.admission.queue().num_requests > 0

    app: ASGIApp = routes_app(service)
    if keys is not None:
        app = Authentication(app, keys)
    return Guard(app, row, should_close)


def metrics_app(service: Service) -> ASGIApp:
    """What the metrics port serves: metrics and probes, key-free."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(probes.router)
    app.state.service = service
    install_error_handlers(app)
    return app
