"""`POST /v1/completions`, as OpenAI's: several prompts, samples, echo, streamed or whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from lightllm_server.api.call import Call, Completion, PromptResult, collect
from lightllm_server.api.completion_logprobs import CompletionLogprobs, merged
from lightllm_server.api.mailbox import Item
from lightllm_server.api.openai_reply import (
    DONE,
    error_event,
    event,
    finish_reason,
    new_id,
    usage_body,
)
from lightllm_server.api.openai_schema import CompletionRequest
from lightllm_server.api.openapi import request_body
from lightllm_server.api.prompts import PromptValue, encode_prompts, split_prompts
from lightllm_server.api.replies import JsonResponse
from lightllm_server.api.sampling import Length, from_openai
from lightllm_server.api.service import Service, Work, service_of
from lightllm_server.api.stream import EventStream, while_connected
from lightllm_server.errors import RequestError
from lightllm_server.messages import ChoiceText, PromptLogprobs, PromptText, TextOptions

__all__ = ["router"]

router = APIRouter()

_DEFAULT_MAX_TOKENS = 16
_MAX_PROMPT_LOGPROBS = 2**19


@router.post("/v1/completions", openapi_extra=request_body(CompletionRequest))
async def completions(request: Request) -> Response:
    """Continuations of one or more prompts."""
    arrived_ns = time.monotonic_ns()
    service = service_of(request)
    body = await service.read(request, CompletionRequest)
    return await while_connected(request, _answer(service, request, body, arrived_ns))


async def _answer(
    service: Service, request: Request, body: CompletionRequest, arrived_ns: int
) -> Response:
    service.check_model(body.model)
    _check_options(body)
    prompts = split_prompts(body.prompt)
    call, echoed = await _start(service, request, body, prompts, arrived_ns)
    reply = _Reply(
        service.model_name,
        echoed,
        num_choices=body.n or 1,
        with_logprobs=body.logprobs is not None,
        # only the prompt was asked about; the engine makes at least one token
        prompt_only=body.max_tokens == 0,
    )
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(call, _chunks(call, reply, with_usage=with_usage), error_event)
    with call:
        results = await collect(call, len(prompts), reply.num_choices)
    choices = [
        reply.choice(index, number, result)
        for index, result in enumerate(results)
        for number in range(reply.num_choices)
    ]
    usage = reply.usage(call)
    return JsonResponse({**reply.head(), "choices": choices, "usage": usage})


def _check_options(body: CompletionRequest) -> None:
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise RequestError(
            f"best_of: got {body.best_of}, must equal n ({body.n or 1})", field="best_of"
        )
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options: needs stream to be true", field="stream_options")
    if body.max_tokens == 0 and not body.echo:
        raise RequestError("max_tokens: got 0, must be at least 1 without echo", field="max_tokens")


def _check_prompt_logprobs(num_tokens: int, num_tops: int) -> None:
    # a prompt's travel in one message, with a text each
    if num_tokens * (1 + num_tops) > _MAX_PROMPT_LOGPROBS:
        raise RequestError(
            f"logprobs: {num_tops} and the token's own for each of {num_tokens} prompt tokens "
            f"are more than {_MAX_PROMPT_LOGPROBS} log probabilities",
            field="logprobs",
        )


async def _echoed(service: Service, prompts: list[PromptValue], *, skip_special: bool) -> list[str]:
    """The prompts' texts, those of token ids read as generated ones are."""
    given = [prompt for prompt in prompts if not isinstance(prompt, str)]
    # a thread: long lists take milliseconds, and this call lets the event loop run
    decoded = iter(
        await asyncio.to_thread(
            service.tokenizer.backend.decode_batch, given, skip_special_tokens=skip_special
        )
        if given
        else ()
    )
    return [prompt if isinstance(prompt, str) else next(decoded) for prompt in prompts]


async def _start(
    service: Service,
    request: Request,
    body: CompletionRequest,
    prompts: list[PromptValue],
    arrived_ns: int,
) -> tuple[Call, list[str] | None]:
    """The call under way, and what it echoes."""
    skip_special = body.skip_special_tokens is not False
    sampling = from_openai(
        body,
        service.limits,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    max_new = _DEFAULT_MAX_TOKENS if body.max_tokens is None else max(body.max_tokens, 1)
    async with service.admitted(len(prompts)):
        encoded = await encode_prompts(
            service.pool,
            prompts,
            service.limits,
            "prompt",
            add_special_tokens=body.add_special_tokens is not False,
        )
        if sampling.prompt_logprobs is not None:
            _check_prompt_logprobs(max(map(len, encoded)), sampling.prompt_logprobs)
        # before the engine runs: a client that leaves meanwhile leaves nothing behind
        echoed = await _echoed(service, prompts, skip_special=skip_special) if body.echo else None
        call = service.start(
            Work(
                encoded,
                sampling,
                TextOptions(
                    stop=tuple(body.stop or ()),
                    min_new_tokens=body.min_tokens or 0,
                    include_stop=bool(body.include_stop_str_in_output),
                    skip_special_tokens=skip_special,
                    every_token=body.logprobs is not None,
                ),
                Length(max_new=max_new, field="max_tokens", min_new=body.min_tokens or 0),
                service.cache_salt(request),
                arrived_ns,
                stream=bool(body.stream),
            )
        )
    return call, echoed


@dataclass(frozen=True, slots=True)
class _Reply:
    """The shapes of one answer; `echoed` holds the prompts' texts where they are to be repeated."""

    model: str
    echoed: list[str] | None
    num_choices: int
    with_logprobs: bool
    prompt_only: bool
    id: str = field(default_factory=lambda: new_id("cmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
        }

    def usage(self, call: Call) -> dict[str, Any]:
        if self.prompt_only:
            call.usage.completion_tokens = 0
        return usage_body(call.usage)

    def choice(self, prompt_index: int, number: int, result: PromptResult) -> dict[str, Any]:
        completion = result.choices[number]
        generated = "" if self.prompt_only else completion.text
        echoed = self.echoed[prompt_index] if self.echoed is not None else ""
        return self._choice(
            prompt_index * self.num_choices + number,
            echoed + generated,
            self._logprobs(completion, result.prompt_logprobs),
            "length" if self.prompt_only else finish_reason(completion.finish_reason),
        )

    def _logprobs(
        self, completion: Completion, prompt: PromptLogprobs | None
    ) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        columns = CompletionLogprobs()
        echoed = columns.prompt(prompt) if prompt is not None else None
        if self.prompt_only:
            return echoed
        generated = columns.piece(completion)
        return merged(echoed, generated) if echoed is not None else generated

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def chunk(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None,
        reason: str | None,
        extra: dict[str, Any],
    ) -> bytes:
        choice = self._choice(index, text, logprobs, reason)
        return event({**self.head(), "choices": [choice], **extra})


class _Choices:
    """The state of a stream: what each choice has said so far."""

    def __init__(self, reply: _Reply, extra: dict[str, Any]) -> None:
        self._reply = reply
        self._extra = extra
        self._logprobs: dict[int, CompletionLogprobs] = {}
        self._prompts: dict[int, PromptLogprobs] = {}

    def chunks(self, item: Item) -> bytes:
        """The events that one word from the engine makes."""
        if isinstance(item.word, PromptText):
            self._prompts[item.prompt_index] = item.word.prompt_logprobs
        elif isinstance(item.word, ChoiceText):
            index = item.prompt_index * self._reply.num_choices + item.word.choice
            return self._opening(item.prompt_index, index) + self._piece(index, item.word)
        return b""

    def _opening(self, prompt_index: int, index: int) -> bytes:
        """The echo, in front of a choice's first word."""
        if index in self._logprobs:
            return b""
        self._logprobs[index] = CompletionLogprobs()
        if self._reply.echoed is None:
            return b""
        prompt = self._prompts.get(prompt_index)
        logprobs = self._logprobs[index].prompt(prompt) if prompt is not None else None
        echoed = self._reply.echoed[prompt_index]
        return self._reply.chunk(index, echoed, logprobs, None, self._extra)

    def _piece(self, index: int, piece: ChoiceText) -> bytes:
        reply = self._reply
        if reply.prompt_only:
            over = piece.finish_reason is not None
            return reply.chunk(index, "", None, "length", self._extra) if over else b""
        logprobs = self._logprobs[index].piece(piece) if reply.with_logprobs else None
        if not piece.text and piece.finish_reason is None and not (logprobs and piece.token_ids):
            return b""
        reason = finish_reason(piece.finish_reason)
        return reply.chunk(index, piece.text, logprobs, reason, self._extra)


async def _chunks(call: Call, reply: _Reply, *, with_usage: bool) -> AsyncGenerator[bytes, None]:
    # OpenAI: with usage, every other chunk says that it has none
    choices = _Choices(reply, {"usage": None} if with_usage else {})
    async for items in call.items():
        if out := b"".join(map(choices.chunks, items)):
            yield out
    if with_usage:
        yield event({**reply.head(), "choices": [], "usage": reply.usage(call)}) + DONE
    else:
        yield DONE
