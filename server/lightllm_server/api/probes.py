"""Probes and metrics: answered from memory whatever the load, never by asking the engine."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from lightllm_server.api.replies import JsonResponse
from lightllm_server.api.service import service_of

__all__ = ["router"]

router = APIRouter()


def _verdict(problem: str | None) -> Response:
    if problem is None:
        return JsonResponse({"status": "ok"})
    return JsonResponse({"status": "unavailable", "reason": problem}, 503)


@router.get("/livez")
async def livez(request: Request) -> Response:
    """Whether the process tree is alive and makes progress."""
    return _verdict(service_of(request).health.not_live())


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Whether to send requests here: loaded, has generated a token, not draining."""
    return _verdict(service_of(request).health.not_ready())


@router.get("/health")
async def health(request: Request) -> Response:
    """The same as `/readyz`, under LightLLM's name."""
    return _verdict(service_of(request).health.not_ready())


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus exposition."""
    return Response(service_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)
