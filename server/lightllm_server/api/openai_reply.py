"""The parts of OpenAI's answers that completions and chats share."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from lightllm_server.api.call import Usage
from lightllm_server.api.replies import error_body
from lightllm_server.errors import ServerError
from lightllm_server.messages import FinishReason

__all__ = ["DONE", "error_event", "event", "finish_reason", "loggable", "new_id", "usage_body"]

DONE = b"data: [DONE]\n\n"
# OpenAI's stand-in for minus infinity, which JSON cannot say
_LOWEST_LOGPROB = -9999.0


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def error_event(error: ServerError) -> bytes:
    """The last event of a stream that fails; no `[DONE]` follows, since it is not done."""
    return event(error_body(error))


def finish_reason(reason: FinishReason | None) -> str | None:
    """OpenAI knows no `abort`: a sample that the server ended was cut short."""
    return "length" if reason == "abort" else reason


def loggable(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
