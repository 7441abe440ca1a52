"""`GET /v1/models` and `GET /v1/models/{id}`: the one model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from lightllm_server.api.replies import JsonResponse
from lightllm_server.api.service import Service, service_of

__all__ = ["router"]

router = APIRouter()


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "lightllm",
        "max_model_len": service.limits.max_req_total_len,
    }


@router.get("/v1/models")
async def models(request: Request) -> Response:
    return JsonResponse({"object": "list", "data": [_model(service_of(request))]})


@router.get("/v1/models/{model_id:path}")
async def model(request: Request, model_id: str) -> Response:
    service = service_of(request)
    service.check_model(model_id)
    return JsonResponse(_model(service))
