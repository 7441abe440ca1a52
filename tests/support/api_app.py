"""The api's routes in this process: real parsing, tokenizing, tracking; a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from fake_engine import engine_info
from lightllm_server.api.admission import Admission, ServiceRate
from lightllm_server.api.app import routes_app
from lightllm_server.api.health import Health
from lightllm_server.api.in_flight import InFlight
from lightllm_server.api.limits import Limits
from lightllm_server.api.metrics import Metrics
from lightllm_server.api.service import Engine, Service
from lightllm_server.api.tokenize import TokenizePool
from lightllm_server.chat_template import load_chat_template
from lightllm_server.chat_tokenizer import ChatTokenizer
from lightllm_server.config import EngineConfig, HttpConfig, RouterConfig, ServerConfig
from lightllm_server.messages import (
    ApiToRouter,
    ApiToTokenizer,
    ChoiceText,
    Ended,
    Generate,
    TextBatch,
)
from lightllm_server.status_page import StatusPage
from lightllm_server.tokenize_worker import Worker
from lightllm_server.tokenizer import load_tokenizer
from tiny_llama import tiny_llama

__all__ = ["ApiApp", "failing", "one_token"]

Script = Callable[[Generate], list[TextBatch]]


def one_token(message: Generate) -> list[TextBatch]:
    """Answers each choice with the one token "a"."""
    request_id = message.request_id
    choices = tuple(
        ChoiceText(request_id, choice, "a", 1, (64,), (-0.5,), ("a",), (False,), (), "length")
        for choice in range(message.sampling.n)
    )
    return [TextBatch(choices=choices, ended=(Ended(request_id, "finished"),))]


def failing(message: Generate) -> list[TextBatch]:
    """Fails before the first token."""
    return [TextBatch(ended=(Ended(message.request_id, "failed", "on purpose"),))]


class ApiApp:
    """An async context manager; `client` talks to the routes.

    script: what the engine says to each request. options: of HttpConfig or RouterConfig by name.
    """

    def __init__(self, tmp_path: Path, script: Script = one_token, **options: Any) -> None:
        model_dir = tiny_llama()
        router = {k: v for k, v in options.items() if k in RouterConfig.__dataclass_fields__}
        http = {k: v for k, v in options.items() if k not in router}
        self._script = script
        self.received: list[ApiToRouter] = []
        self.page = StatusPage.create(tmp_path / "page", ["supervisor", "api", "router"])
        self.tokenizer = load_tokenizer(model_dir)
        template = load_chat_template(model_dir)
        # its own, as in its own process: the chats add to it
        workers = load_tokenizer(model_dir)
        chats = None if template is None else ChatTokenizer(workers.backend, template)
        self._worker = Worker(workers, chats)
        self._pool = TokenizePool([_TokenizerSender(self)])
        health, rate = Health(self.page), ServiceRate()
        metrics = Metrics(self.page, health.not_ready, rate)
        self.in_flight = InFlight(_RouterSender(self), self.page["api"], metrics)
        config = ServerConfig(
            engine=EngineConfig(model_dir=str(model_dir)),
            router=RouterConfig(**router),
            http=HttpConfig(**http),
        )
        self.service = Service(
            config,
            self.page,
            self.tokenizer,
            pool=self._pool,
            in_flight=self.in_flight,
            admission=Admission(config.router, self.page["api"], self.page["router"], rate),
            metrics=metrics,
            health=health,
            model_name="tiny",
            has_chat=True,
        )
        limits = Limits(
            vocab_size=261,
            max_req_total_len=4096,
            max_total_token_num=65536,
            max_n=8,
            max_prompt_bytes=2**16,
        )
        self.service.set_engine(Engine(engine_info(config), limits))

    async def __aenter__(self) -> ApiApp:
        self._sender = asyncio.create_task(self.in_flight.run_sender())
        transport = httpx.ASGITransport(routes_app(self.service), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://api")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.client.aclose()
        self._sender.cancel()
        with suppress(asyncio.CancelledError):
            await self._sender

    def tokenize(self, message: ApiToTokenizer) -> None:
        self._pool.deliver(self._worker.answer(message))

    def generate(self, message: ApiToRouter) -> None:
        self.received.append(message)
        if isinstance(message, Generate):
            for batch in self._script(message):
                self.in_flight.deliver(batch)


class _TokenizerSender:
    def __init__(self, app: ApiApp) -> None:
        self._app = app

    async def send(self, message: ApiToTokenizer) -> None:
        self._app.tokenize(message)


class _RouterSender:
    def __init__(self, app: ApiApp) -> None:
        self._app = app

    async def send(self, message: ApiToRouter) -> None:
        self._app.generate(message)
