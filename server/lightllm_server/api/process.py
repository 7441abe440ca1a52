"""The api process: opens its channels, serves HTTP, warms up, and drains when it is told to."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import uvloop
import zmq.asyncio

from lightllm_server import channels
from lightllm_server.api.admission import Admission, ServiceRate
from lightllm_server.api.app import main_app, metrics_app
from lightllm_server.api.auth import ApiKeys
from lightllm_server.api.drain import drain, last_words
from lightllm_server.api.health import Health
from lightllm_server.api.http_server import HttpServer
from lightllm_server.api.in_flight import InFlight
from lightllm_server.api.limits import limits_of
from lightllm_server.api.metrics import Metrics
from lightllm_server.api.service import Engine, Service
from lightllm_server.api.tokenize import TokenizePool
from lightllm_server.api.warm_up import wait_for_engine, warm_up
from lightllm_server.channels import AsyncReceiver, AsyncSender, socket_path
from lightllm_server.chat_template import load_chat_template
from lightllm_server.config import ServerConfig
from lightllm_server.errors import EXIT_SOFTWARE
from lightllm_server.messages import (
    ApiToRouter,
    ApiToTokenizer,
    Codec,
    DetokToApi,
    TokenizerToApi,
)
from lightllm_server.status_page import Field, State, StatusPage
from lightllm_server.tokenizer import TextTokenizer, load_tokenizer

__all__ = ["run"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

_HEALTH_PERIOD_S = 0.1


def run(
    config: ServerConfig, run_dir: Path, page: StatusPage, sockets: list[socket.socket]
) -> None:
    """Serve until SIGTERM; `sockets` listen: the main port's, then the metrics port's if any."""
    keys = None
    if config.http.api_key_file is not None:
        keys = ApiKeys.from_file(Path(config.http.api_key_file))
    tokenizer = load_tokenizer(Path(config.engine.model_dir), run_dir)
    _raise_file_limit()
    _quiet_uvicorn()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_ApiProcess(config, run_dir, page, tokenizer).serve(sockets, keys))


def _quiet_uvicorn() -> None:
    # it reports its own start and end, and what clients send; failures of ours are errors
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def _raise_file_limit() -> None:
    # a stream is an open file
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _ApiProcess:
    """Owns the channels and the background tasks."""

    def __init__(
        self, config: ServerConfig, run_dir: Path, page: StatusPage, tokenizer: TextTokenizer
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._page = page
        self._row = page["api"]
        self._health = Health(page)
        self._context = zmq.asyncio.Context()
        rate = ServiceRate()
        metrics = Metrics(page, self._health.not_ready, rate)
        router: AsyncSender[ApiToRouter] = AsyncSender(
            self._context, socket_path(run_dir, channels.ROUTER_FROM_API), Codec(ApiToRouter)
        )
        self._in_flight = InFlight(router, self._row, metrics)
        workers: list[AsyncSender[ApiToTokenizer]] = [
            AsyncSender(
                self._context,
                socket_path(run_dir, channels.tokenize_socket(index)),
                Codec(ApiToTokenizer),
            )
            for index in range(config.http.tokenize_workers)
        ]
        self._pool = TokenizePool(workers)
        self._service = Service(
            config,
            page,
            tokenizer,
            pool=self._pool,
            in_flight=self._in_flight,
            admission=Admission(config.router, self._row, page["router"], rate),
            metrics=metrics,
            health=self._health,
            model_name=config.http.served_model_name
            or Path(config.engine.model_dir).resolve().name,
            has_chat=load_chat_template(Path(config.engine.model_dir)) is not None,
        )
        self._stop = asyncio.Event()

    async def serve(self, sockets: list[socket.socket], keys: ApiKeys | None) -> None:
        """Until SIGTERM and the drain that follows; on a failure elsewhere, `os._exit`."""
        loop = asyncio.get_running_loop()
        # a terminal's Ctrl-C goes to the supervisor, which sends SIGTERM; later ones change nothing
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        apps = [main_app(self._service, keys), metrics_app(self._service)]
        servers = [HttpServer(app, listener) for app, listener in zip(apps, sockets, strict=False)]
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(work)
                for work in (
                    self._in_flight.run_sender(),
                    self._pump(channels.API_FROM_DETOK, Codec(DetokToApi), self._in_flight.deliver),
                    self._pump(
                        channels.API_FROM_TOKENIZE, Codec(TokenizerToApi), self._pool.deliver
                    ),
                    self._watch(servers),
                    self._get_ready(),
                )
            ]
            for server in servers:
                await server.start()
            await self._stop.wait()
            http = self._config.http
            await drain(
                servers,
                self._in_flight,
                self._row,
                delay_s=http.drain_delay,
                limit_s=http.drain_time,
            )
            for task in background:
                task.cancel()
        self._context.destroy(linger=0)

    async def _pump(self, name: str, codec: Codec[T], deliver: Callable[[T], None]) -> None:
        receiver = AsyncReceiver(self._context, socket_path(self._run_dir, name), codec)
        while True:
            deliver(await receiver.receive())

    async def _watch(self, servers: list[HttpServer]) -> None:
        """Tick, so that a stuck event loop is seen, and notice when another process fails."""
        self._row[Field.WORK] = 1
        while True:
            self._row.tick()
            self._health.check_progress()
            problem = self._health.not_live()
            if problem is not None:
                self._row.state = State.FAILED
                await last_words(servers, self._in_flight, problem)
                os._exit(EXIT_SOFTWARE)
            await asyncio.sleep(_HEALTH_PERIOD_S)

    async def _get_ready(self) -> None:
        info = await wait_for_engine(self._page, self._run_dir)
        backend = self._service.tokenizer.backend
        longest = max(len(token.encode()) for token in backend.get_vocab())
        self._service.set_engine(Engine(info, limits_of(self._config, info, longest)))
        await warm_up(self._in_flight)
        gc.collect()
        gc.freeze()
        if not self._stop.is_set():
            self._row.state = State.READY
