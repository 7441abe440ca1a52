"""LightLLM's own routes: `POST /generate`, `/generate_stream` and `/`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from lightllm_server.api.call import Call, Completion, PromptResult, collect
from lightllm_server.api.lightllm_schema import CompatRequest, GenerateRequest
from lightllm_server.api.openapi import request_body
from lightllm_server.api.prompts import encode_prompts
from lightllm_server.api.replies import JsonResponse, error_body
from lightllm_server.api.sampling import Length, from_lightllm
from lightllm_server.api.service import Service, Work, service_of
from lightllm_server.api.stream import EventStream, while_connected
from lightllm_server.errors import RequestError, ServerError
from lightllm_server.messages import ChoiceText, TextOptions

__all__ = ["router"]

router = APIRouter()


@router.post("/generate", openapi_extra=request_body(GenerateRequest))
async def generate(request: Request) -> Response:
    """The whole text at once, one entry per sample."""
    arrived_ns = time.monotonic_ns()
    service = service_of(request)
    body = await service.read(request, GenerateRequest)
    return await while_connected(request, _whole(service, request, body, arrived_ns))


@router.post("/generate_stream", openapi_extra=request_body(GenerateRequest))
async def generate_stream(request: Request) -> Response:
    """One server-sent event per token."""
    arrived_ns = time.monotonic_ns()
    service = service_of(request)
    body = await service.read(request, GenerateRequest)
    return await while_connected(request, _stream(service, request, body, arrived_ns))


@router.post("/", openapi_extra=request_body(CompatRequest))
async def compat(request: Request) -> Response:
    """Either of the two, by the body's `stream`."""
    arrived_ns = time.monotonic_ns()
    service = service_of(request)
    body = await service.read(request, CompatRequest)
    answer = _stream if body.stream else _whole
    return await while_connected(request, answer(service, request, body, arrived_ns))


async def _start(
    service: Service, request: Request, body: GenerateRequest, arrived_ns: int, *, stream: bool
) -> Call:
    params = body.parameters
    sampling = from_lightllm(params, service.limits)
    async with service.admitted(1):
        prompts = await encode_prompts(
            service.pool,
            [body.inputs],
            service.limits,
            "inputs",
            add_special_tokens=params.add_special_tokens,
        )
        return service.start(
            Work(
                prompts,
                sampling,
                TextOptions(
                    stop=tuple(params.stop_sequences or ()),
                    min_new_tokens=params.min_new_tokens,
                    skip_special_tokens=params.skip_special_tokens,
                    every_token=stream or params.return_details,
                ),
                Length(
                    max_new=params.max_new_tokens,
                    field="parameters.max_new_tokens",
                    min_new=params.min_new_tokens,
                    min_field="parameters.min_new_tokens",
                ),
                service.cache_salt(request),
                arrived_ns,
                stream=stream,
            )
        )


async def _whole(
    service: Service, request: Request, body: GenerateRequest, arrived_ns: int
) -> Response:
    details = body.parameters.return_details
    with await _start(service, request, body, arrived_ns, stream=False) as call:
        n = body.parameters.n or body.parameters.best_of
        (result,) = await collect(call, 1, n)
    return JsonResponse(_answer(result, call.usage.prompt_tokens, details=details))


def _answer(result: PromptResult, prompt_tokens: int, *, details: bool) -> dict[str, Any]:
    """LightLLM's shape: per-sample values are bare where there is one sample."""
    choices = result.choices
    answer: dict[str, Any] = {
        "generated_text": [choice.text for choice in choices],
        "count_output_tokens": _bare([choice.num_tokens for choice in choices]),
        "finish_reason": _bare([choice.finish_reason for choice in choices]),
        "prompt_tokens": prompt_tokens,
    }
    if details:
        answer["tokens"] = _bare([list(_tokens(choice, prompt_tokens)) for choice in choices])
    return answer


def _bare(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _tokens(choice: Completion, prompt_tokens: int) -> Iterator[dict[str, Any]]:
    columns = zip(
        choice.token_ids, choice.token_texts, choice.logprobs, choice.special, strict=True
    )
    for count, (token_id, text, logprob, special) in enumerate(columns, start=1):
        yield _token(token_id, text, logprob, special, count, prompt_tokens)


def _token(
    token_id: int | None,
    text: str,
    logprob: float | None,
    special: bool,
    count: int,
    prompt_tokens: int,
) -> dict[str, Any]:
    return {
        "id": token_id,
        "text": text,
        "logprob": logprob,
        "special": special,
        "count_output_tokens": count,
        "prompt_tokens": prompt_tokens,
    }


async def _stream(
    service: Service, request: Request, body: GenerateRequest, arrived_ns: int
) -> Response:
    n = body.parameters.n or body.parameters.best_of
    if n != 1:
        raise RequestError(
            f"parameters.best_of: got {n}, must be 1 for a stream", field="parameters.best_of"
        )
    call = await _start(service, request, body, arrived_ns, stream=True)
    return EventStream(call, _events(call), _error_event)


async def _events(call: Call) -> AsyncGenerator[bytes, None]:
    texts: list[str] = []
    num_sent = 0
    async for items in call.items():
        events = bytearray()
        for item in items:
            if isinstance(item.word, ChoiceText):
                texts.append(item.word.text)
                for event in _piece(item.word, num_sent, call.usage.prompt_tokens, texts):
                    events += event
                num_sent += len(item.word.token_ids)
        if events:
            yield bytes(events)


def _piece(
    piece: ChoiceText, num_sent: int, prompt_tokens: int, texts: list[str]
) -> Iterator[bytes]:
    """One event per token; a last piece that brings text but no token is one without id."""
    tokens: list[tuple[int | None, str, float | None, bool]] = list(
        zip(piece.token_ids, piece.token_texts, piece.logprobs, piece.special, strict=True)
    )
    if not tokens and piece.finish_reason is None and not piece.text:
        return
    for index, (token_id, text, logprob, special) in enumerate(
        tokens or [(None, piece.text, None, False)]
    ):
        finished = piece.finish_reason is not None and index == max(len(tokens) - 1, 0)
        count = num_sent + index + (1 if tokens else 0)
        event = {
            "token": _token(token_id, text, logprob, special, count, prompt_tokens),
            "generated_text": "".join(texts) if finished else None,
            "finished": finished,
            "finish_reason": piece.finish_reason if finished else None,
            "details": None,
        }
        # LightLLM puts no space after the colon
        yield b"data:" + msgspec.json.encode(event) + b"\n\n"


def _error_event(error: ServerError) -> bytes:
    return b"data:" + msgspec.json.encode(error_body(error)) + b"\n\n"
