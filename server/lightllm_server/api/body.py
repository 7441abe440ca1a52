"""A request's body: read within bounds, and made a schema, or a 400 that names the field."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from lightllm_server.api.fields import UNSUPPORTED
from lightllm_server.errors import OverloadedError, RequestError

__all__ = ["BodyBudget", "describe", "discard_body", "parse", "read_body"]

M = TypeVar("M", bound=BaseModel)

_BASE_DEADLINE_S = 30.0
# a sender slower than this is cut off
_MIN_BYTES_PER_S = 16 * 1024
# a refused body is read and dropped up to here
_MAX_DISCARDED_BYTES = 128 * 2**20
_DISCARD_DEADLINE_S = 2.0
_MAX_SHOWN_CHARS = 40
# what a body may hold beyond the longest prompt
_SPARE_ITEMS = 2**17
_SPARE_FIELDS = 2**15
_MAX_ERRORS = 1000
# of an error's type, OpenAI's name where it has one
_CODES = {
    "extra_forbidden": "unknown_field",
    "missing": "missing_field",
    UNSUPPORTED: "unsupported_parameter",
}


class BodyBudget:
    """Bytes of all bodies being read or parsed; beyond the bound a request is refused."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Raises OverloadedError."""
        if self._num_bytes + num_bytes > self._max_bytes:
            raise OverloadedError(
                f"overloaded: request bodies in memory exceed {self._max_bytes} bytes",
                retry_after=1,
            )
        self._num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self._num_bytes -= num_bytes


@asynccontextmanager
async def read_body(
    request: Request, max_bytes: int, budget: BodyBudget
) -> AsyncIterator[bytearray]:
    """The whole body, which counts against `budget` until the caller has made something of it.

    Raises RequestError (408, 413, 415) or OverloadedError.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise RequestError(
            "Content-Encoding: compressed bodies are not supported",
            status=415,
            code="unsupported_encoding",
        )
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        await discard_body(request)
        raise _too_large(f"{int(declared)} bytes", max_bytes)
    body = bytearray()
    started = time.monotonic()
    try:
        async for chunk in _chunks(request, started):
            if len(body) + len(chunk) > max_bytes:
                await discard_body(request)
                raise _too_large("more", max_bytes)
            budget.take(len(chunk))
            body += chunk
        yield body
    finally:
        budget.give_back(len(body))


async def _chunks(request: Request, started: float) -> Any:
    received = 0
    stream = request.stream()
    while True:
        deadline = started + _BASE_DEADLINE_S + received / _MIN_BYTES_PER_S
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise RequestError(
                f"body: got {received} bytes in {time.monotonic() - started:.0f} s, too slow",
                status=408,
                code="timeout",
            ) from error
        if chunk is None:
            return
        received += len(chunk)
        yield chunk


async def discard_body(request: Request) -> None:
    """Read and drop a body that is refused, within bounds, so that its sender sees the answer."""
    discarded = 0
    try:
        async with asyncio.timeout(_DISCARD_DEADLINE_S):
            while discarded < _MAX_DISCARDED_BYTES:
                message = await request.receive()
                discarded += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except (TimeoutError, ClientDisconnect):
        return


def _too_large(got: str, max_bytes: int) -> RequestError:
    return RequestError(
        f"body: got {got}, must be at most {max_bytes} bytes", status=413, code="too_large"
    )


def parse(schema: type[M], body: bytes | bytearray, *, max_tokens: int = 2**14) -> M:
    """Raises RequestError naming the first fields that are wrong, what they got and what may be.

    max_tokens: of the longest prompt, from which follows how many values a body may hold.
    """
    _check_shape(body, max_tokens)
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise _as_request_error(error) from None


def _check_shape(body: bytes | bytearray, max_tokens: int) -> None:
    # a value costs the parser 20 times its bytes, and a wrong one microseconds: bound their number
    # beforehand by counting bytes, which takes in those inside texts too
    counts = {
        "array items": (body.count(b","), _SPARE_ITEMS + 2 * max_tokens),
        "fields": (body.count(b":"), _SPARE_FIELDS + max_tokens),
        "arrays and objects": (body.count(b"[") + body.count(b"{"), _SPARE_FIELDS + max_tokens),
    }
    for what, (count, limit) in counts.items():
        if count > limit:
            raise RequestError(
                f"body: got up to {count} {what}, must be at most {limit}",
                status=413,
                code="too_large",
            )


def _as_request_error(error: ValidationError) -> RequestError:
    if error.error_count() > _MAX_ERRORS:
        # describing each would take seconds
        return RequestError(f"body: {error.error_count()} fields or items are wrong")
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        return RequestError(f"body: {first['msg']}", code="invalid_json")
    lines = [_line(problem) for problem in problems[:3]]
    if len(problems) > len(lines):
        lines.append(f"and {len(problems) - len(lines)} more")
    code = _CODES.get(first["type"], "invalid_value")
    return RequestError("; ".join(lines), field=_path(first["loc"]) or None, code=code)


def _line(problem: Any) -> str:
    field = _path(problem["loc"]) or "body"
    if problem["type"] == "extra_forbidden":
        return f"{field}: unknown or unsupported field"
    if problem["type"] == "missing":
        return f"{field}: is required"
    if problem["type"] == UNSUPPORTED:
        return f"{field}: {problem['msg']}"
    says = problem["msg"].removeprefix("Value error, ").replace("Input should ", "must ", 1)
    return f"{field}: {says}, got {describe(problem['input'])}"


def _path(loc: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content")` → `messages.0.content`; tags of unions (`<…>`) are left out."""
    parts = [shown for part in loc if not (shown := str(part)).startswith("<")]
    return ".".join(part if len(part) <= 64 else part[:64] + "…" for part in parts)


def describe(value: Any) -> str:
    """A value for an error message: short, ASCII, and never a client's text at length."""
    if isinstance(value, str):
        if len(value) > _MAX_SHOWN_CHARS:
            return f"a string of {len(value)} characters"
        return json.dumps(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        try:
            shown = repr(value)
        except ValueError:
            # int() refuses to print thousands of digits
            return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "?"
        return shown if len(shown) <= _MAX_SHOWN_CHARS else f"a number of {len(shown)} digits"
    if isinstance(value, list | tuple):
        return f"an array of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    return type(value).__name__
