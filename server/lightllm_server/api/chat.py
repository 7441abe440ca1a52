"""`POST /v1/chat/completions`, as OpenAI's, streamed or whole."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from lightllm_server.api.call import Call, Completion, collect
from lightllm_server.api.openai_reply import (
    DONE,
    error_event,
    event,
    finish_reason,
    loggable,
    new_id,
    usage_body,
)
from lightllm_server.api.openai_schema import ChatRequest
from lightllm_server.api.openapi import request_body
from lightllm_server.api.prompts import encode_chat
from lightllm_server.api.replies import JsonResponse
from lightllm_server.api.sampling import Length, from_openai
from lightllm_server.api.service import Service, Work, service_of
from lightllm_server.api.stream import EventStream, while_connected
from lightllm_server.errors import RequestError
from lightllm_server.messages import ChoiceText, TextOptions, TopLogprob

__all__ = ["router"]

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=request_body(ChatRequest))
async def chat_completions(request: Request) -> Response:
    """One answer to a conversation."""
    arrived_ns = time.monotonic_ns()
    service = service_of(request)
    body = await service.read(request, ChatRequest)
    return await while_connected(request, _answer(service, request, body, arrived_ns))


async def _answer(
    service: Service, request: Request, body: ChatRequest, arrived_ns: int
) -> Response:
    service.check_model(body.model)
    _check_options(body)
    reply = _Reply(service.model_name, with_logprobs=bool(body.logprobs))
    call = await _start(service, request, body, arrived_ns)
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = _chunks(call, reply, body.n or 1, with_usage=with_usage)
        return EventStream(call, chunks, error_event)
    with call:
        (result,) = await collect(call, 1, body.n or 1)
    choices = [reply.choice(index, choice) for index, choice in enumerate(result.choices)]
    return JsonResponse(
        {
            **reply.head("chat.completion"),
            "choices": choices,
            "usage": usage_body(call.usage),
        }
    )


def _check_options(body: ChatRequest) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs: needs logprobs to be true", field="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options: needs stream to be true", field="stream_options")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise RequestError(
            "max_tokens: is the old name of max_completion_tokens, give one of them",
            field="max_tokens",
        )


async def _start(service: Service, request: Request, body: ChatRequest, arrived_ns: int) -> Call:
    newer = body.max_completion_tokens is not None
    sampling = from_openai(
        body, service.limits, logprobs=(body.top_logprobs or 0) if body.logprobs else None
    )
    async with service.admitted(1):
        prompt = await encode_chat(service.pool, body.messages, service.limits)
        return service.start(
            Work(
                [prompt],
                sampling,
                TextOptions(
                    stop=tuple(body.stop or ()),
                    min_new_tokens=body.min_tokens or 0,
                    include_stop=bool(body.include_stop_str_in_output),
                    skip_special_tokens=body.skip_special_tokens is not False,
                    every_token=bool(body.logprobs),
                    token_bytes=bool(body.logprobs),
                ),
                Length(
                    max_new=body.max_completion_tokens if newer else body.max_tokens,
                    field="max_completion_tokens" if newer else "max_tokens",
                    min_new=body.min_tokens or 0,
                ),
                service.cache_salt(request),
                arrived_ns,
                stream=bool(body.stream),
            )
        )


@dataclass(frozen=True, slots=True)
class _Reply:
    """The shapes of one answer: its id, time and model stand in every chunk."""

    model: str
    with_logprobs: bool
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def choice(self, index: int, choice: Completion) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self.logprobs(choice),
            "finish_reason": finish_reason(choice.finish_reason),
        }

    def logprobs(self, piece: Completion | ChoiceText) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        tops: Iterable[tuple[TopLogprob, ...]] = piece.tops or [()] * len(piece.token_ids)
        columns = zip(piece.token_texts, piece.logprobs, piece.token_bytes, tops, strict=True)
        content = [
            {
                **_token(text, logprob, token_bytes),
                "top_logprobs": [_token(t.text, t.logprob, t.token_bytes) for t in top],
            }
            for text, logprob, token_bytes, top in columns
        ]
        return {"content": content, "refusal": None}

    def chunk(self, choices: list[dict[str, Any]], **usage: Any) -> bytes:
        return event({**self.head("chat.completion.chunk"), "choices": choices, **usage})


def _token(text: str, logprob: float, token_bytes: bytes | None) -> dict[str, Any]:
    """`token_bytes` is not the text's encoding where the token is a part of a character."""
    shown = None if token_bytes is None else list(token_bytes)
    return {"token": text, "logprob": loggable(logprob), "bytes": shown}


def _delta(
    index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


async def _chunks(
    call: Call, reply: _Reply, n: int, *, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The role first, then text as it comes, the reason, the usage if asked for, `[DONE]`."""
    # OpenAI: with usage, every other chunk says that it has none
    usage = {"usage": None} if with_usage else {}
    started = False
    async for items in call.items():
        out = bytearray()
        for item in items:
            word = item.word
            if not isinstance(word, ChoiceText):
                continue
            if not started:
                # not before there is text: what fails without any is an ordinary error answer
                started = True
                for index in range(n):
                    role = _delta(index, {"role": "assistant", "content": ""})
                    out += reply.chunk([role], **usage)
            if word.text or (reply.with_logprobs and word.token_ids):
                delta = _delta(word.choice, {"content": word.text}, reply.logprobs(word))
                out += reply.chunk([delta], **usage)
            if word.finish_reason is not None:
                reason = finish_reason(word.finish_reason)
                out += reply.chunk([_delta(word.choice, {}, None, reason)], **usage)
        if out:
            yield bytes(out)
    end = reply.chunk([], usage=usage_body(call.usage)) if with_usage else b""
    yield end + DONE
