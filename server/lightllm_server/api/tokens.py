"""`POST /tokenize` and `/detokenize`: the model's tokenizer; fields are named as vLLM's."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from lightllm_server.api.fields import Label, Schema, Text, TokenIdList
from lightllm_server.api.openai_schema import Message
from lightllm_server.api.openapi import request_body
from lightllm_server.api.prompts import check_ids, encode_chat, encode_prompts
from lightllm_server.api.replies import JsonResponse
from lightllm_server.api.service import Service, service_of
from lightllm_server.api.stream import while_connected
from lightllm_server.errors import RequestError

__all__ = ["router"]

router = APIRouter()


class TokenizeRequest(Schema):
    """Either a raw `prompt` or the `messages` of a chat."""

    model: Label | None = None
    prompt: Text | None = None
    messages: (
        Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)] | None
    ) = None
    add_special_tokens: bool = True


class DetokenizeRequest(Schema):
    model: Label | None = None
    tokens: TokenIdList
    skip_special_tokens: bool = False


@router.post("/tokenize", openapi_extra=request_body(TokenizeRequest))
async def tokenize(request: Request) -> Response:
    """Token ids of a text, or of a chat as the model would see it."""
    service = service_of(request)
    body = await service.read(request, TokenizeRequest, runs=False)
    return await while_connected(request, _tokenize(service, body))


async def _tokenize(service: Service, body: TokenizeRequest) -> Response:
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("prompt: give either prompt or messages", field="prompt")
    async with service.admitted(1):
        if body.messages is not None:
            token_ids = await encode_chat(service.pool, body.messages, service.limits)
        else:
            (token_ids,) = await encode_prompts(
                service.pool,
                [body.prompt or ""],
                service.limits,
                "prompt",
                add_special_tokens=body.add_special_tokens,
            )
    return JsonResponse(
        {
            "tokens": token_ids,
            "count": len(token_ids),
            "max_model_len": service.limits.max_req_total_len,
        }
    )


@router.post("/detokenize", openapi_extra=request_body(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    service = service_of(request)
    body = await service.read(request, DetokenizeRequest, runs=False)
    service.check_model(body.model)
    check_ids(body.tokens, service.limits, "tokens")
    # a thread: long lists take milliseconds, and this call lets the event loop run
    texts = await asyncio.to_thread(
        service.tokenizer.backend.decode_batch,
        [body.tokens],
        skip_special_tokens=body.skip_special_tokens,
    )
    return JsonResponse({"prompt": texts[0]})
