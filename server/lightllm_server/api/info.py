"""`GET /info` and `GET /token_load`: what runs here, and how full it is."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from lightllm_server.api.replies import JsonResponse
from lightllm_server.api.service import Service, service_of
from lightllm_server.status_page import Field

__all__ = ["router"]

router = APIRouter()


@router.get("/info")
async def info(request: Request) -> Response:
    """The engine as it resolved itself, and the limits of requests."""
    service = service_of(request)
    engine: dict[str, Any] = msgspec.to_builtins(service.engine.info)
    return JsonResponse(
        {
            "model": service.model_name,
            "chat_template": service.has_chat,
            **engine,
            "limits": _limits(service),
        }
    )


def _limits(service: Service) -> dict[str, Any]:
    config, limits = service.config, service.limits
    return {
        "max_req_total_len": limits.max_req_total_len,
        "max_total_token_num": limits.max_total_token_num,
        "max_n": limits.max_n,
        "max_prompt_bytes": limits.max_prompt_bytes,
        "max_body_bytes": config.http.max_body_bytes,
        "max_queued_requests": config.router.max_queued_requests,
        "max_queued_tokens": config.router.max_queued_tokens,
        "admission": config.router.admission,
        "prefix_cache": config.router.prefix_cache,
    }


@router.get("/token_load")
async def token_load(request: Request) -> Response:
    """LightLLM's load figures: shares of the KV cache, above 1 where requests wait for it."""
    service = service_of(request)
    router_row = service.page["router"]
    total = max(1, router_row[Field.SLOTS_TOTAL])
    used = router_row[Field.SLOTS_USED]
    wanted = used + service.admission.queue().num_tokens
    return JsonResponse(
        {
            # slots that running requests hold
            "current_load": used / total,
            # with the prompts that wait
            "logical_max_load": wanted / total,
            # at the worst moment that the router foresees for the running ones
            "dynamic_max_load": max(wanted, router_row[Field.SLOTS_PEAK]) / total,
        }
    )
