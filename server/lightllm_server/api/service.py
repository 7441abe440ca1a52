"""What every route works with: limits, tokenizing, admission, the engine. One per process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from msgspec import structs
from pydantic import BaseModel

from lightllm_server.api.admission import Admission
from lightllm_server.api.auth import tenant_of
from lightllm_server.api.body import BodyBudget, discard_body, parse, read_body
from lightllm_server.api.call import Call
from lightllm_server.api.health import Health
from lightllm_server.api.in_flight import InFlight
from lightllm_server.api.limits import Limits
from lightllm_server.api.metrics import Metrics
from lightllm_server.api.sampling import Length, fit
from lightllm_server.api.tokenize import TokenizePool
from lightllm_server.config import ServerConfig
from lightllm_server.engine_info import EngineInfo
from lightllm_server.errors import OverloadedError, RequestError
from lightllm_server.messages import SamplingParams, TextOptions
from lightllm_server.status_page import StatusPage
from lightllm_server.tokenizer import TextTokenizer

__all__ = ["Engine", "Service", "Work", "service_of"]

M = TypeVar("M", bound=BaseModel)

_BODIES_IN_MEMORY = 16
_LARGE_BODY_BYTES = 2**17


@dataclass(frozen=True, slots=True)
class Engine:
    """What is known once the router has loaded the model."""

    info: EngineInfo
    limits: Limits


@dataclass(frozen=True, slots=True)
class Work:
    """One HTTP request, checked and tokenized: what `Service.start` sends."""

    prompts: Sequence[tuple[int, ...]]
    sampling: SamplingParams
    text: TextOptions
    length: Length
    cache_salt: str
    arrived_ns: int
    stream: bool


class Service:
    """Joins the parts; routes call it and nothing below it."""

    def __init__(
        self,
        config: ServerConfig,
        page: StatusPage,
        tokenizer: TextTokenizer,
        *,
        pool: TokenizePool,
        in_flight: InFlight,
        admission: Admission,
        metrics: Metrics,
        health: Health,
        model_name: str,
        has_chat: bool,
    ) -> None:
        self.config = config
        self.page = page
        self.tokenizer = tokenizer
        self.pool = pool
        self.in_flight = in_flight
        self.admission = admission
        self.metrics = metrics
        self.health = health
        self.model_name = model_name
        self.has_chat = has_chat
        self.started_at = int(time.time())
        self._engine: Engine | None = None
        self._large_body = asyncio.Lock()
        self._budget = BodyBudget(_BODIES_IN_MEMORY * config.http.max_body_bytes)

    @property
    def engine(self) -> Engine:
        """Raises RequestError (503) while the model loads."""
        if self._engine is None:
            raise RequestError("the model is loading", status=503, code="loading")
        return self._engine

    def set_engine(self, engine: Engine) -> None:
        self._engine = engine
        self.metrics.set_engine(engine.info)

    @property
    def limits(self) -> Limits:
        return self.engine.limits

    async def read(self, request: Request, schema: type[M], *, runs: bool = True) -> M:
        """The request's body as `schema`; raises RequestError.

        runs: the engine is to run it, so that it is refused unread where too many wait already.
        """
        if runs:
            try:
                self.admission.check_count()
            except OverloadedError:
                # a sender that is cut off in the middle would not see the answer
                await discard_body(request)
                raise
        async with read_body(request, self.config.http.max_body_bytes, self._budget) as body:
            return await self._parse(schema, body)

    async def _parse(self, schema: type[M], body: bytearray) -> M:
        longest = self.limits.max_req_total_len
        if len(body) < _LARGE_BODY_BYTES:
            return parse(schema, body, max_tokens=longest)
        await self._large_body.acquire()
        began = time.monotonic()
        try:
            return parse(schema, body, max_tokens=longest)
        finally:
            # twice as long as this took, the event loop answers everybody else
            pause = 2 * (time.monotonic() - began)
            asyncio.get_running_loop().call_later(pause, self._large_body.release)

    def check_model(self, name: str | None) -> None:
        """Raises RequestError (404) where a name is given and it is another's."""
        if name is not None and name != self.model_name:
            raise RequestError(
                f"model: {name[:64]!a} is not served here, {self.model_name!a} is",
                field="model",
                status=404,
                code="model_not_found",
            )

    @asynccontextmanager
    async def admitted(self, num_prompts: int) -> AsyncIterator[None]:
        """Around a request's work before it is sent; raises OverloadedError."""
        self.admission.check_count(num_prompts)
        self.admission.prepare(num_prompts)
        try:
            yield
        finally:
            self.admission.prepare(-num_prompts)

    def cache_salt(self, request: Request) -> str:
        """Separates the prefix caches of tenants, where they are to be separate."""
        separate = self.config.router.prefix_cache == "per-key"
        return tenant_of(request.scope) if separate else ""

    def start(self, work: Work) -> Call:
        """Accept: every prompt is sent, or none. Raises RequestError or OverloadedError."""
        sampling = [self._fitted(prompt, work) for prompt in work.prompts]
        self.admission.check_tokens(sum(map(len, work.prompts)))
        call = Call(self.in_flight, whole=not work.stream)
        call.submit(
            work.prompts,
            sampling,
            work.text,
            cache_salt=work.cache_salt,
            arrived_ns=work.arrived_ns,
        )
        return call

    def _fitted(self, prompt: tuple[int, ...], work: Work) -> SamplingParams:
        max_new, min_new = fit(len(prompt), work.length, work.sampling.n, self.limits)
        return structs.replace(work.sampling, max_new_tokens=max_new, min_new_tokens=min_new)


def service_of(request: Request) -> Service:
    """The process's service, as put there by `app.py`."""
    service = request.app.state.service
    assert isinstance(service, Service), type(service)
    return service
