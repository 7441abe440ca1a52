"""The listener's end: who is connected is served, who comes later is refused."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from contextlib import ExitStack

import pytest
import uvloop

from lightllm_server.api import http_server
from lightllm_server.api.http_server import HttpServer

GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def listener():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    yield listener
    listener.close()


def run(scenario):
    """On the event loop of the api."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(scenario)


@pytest.fixture
def connect(listener):
    """Connects without waiting."""
    address = listener.getsockname()
    with ExitStack() as sockets:

        def one() -> socket.socket:
            client = sockets.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
            return client

        yield one


def test_what_the_kernel_has_accepted_is_served(listener, connect):
    async def scenario():
        server = HttpServer(app, listener)
        await server.start()
        # nothing else runs until `stop_listening`
        clients = [connect() for _ in range(20)]
        await server.stop_listening(0.01)
        answers = []
        for client in clients:
            await asyncio.get_running_loop().sock_sendall(client, GET)
            answers.append(await asyncio.get_running_loop().sock_recv(client, 100))
        await server.close(1)
        return answers

    answers = run(scenario())
    assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 204 No Content"}


def test_who_comes_between_the_last_accept_and_the_end_is_refused(listener, connect, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        try:
            http_server._drop_new(other)
        except OSError as error:
            pytest.skip(f"this kernel has no socket filters: {error}")
    clients = []

    def accept_all(listener):
        accepted = real(listener)
        clients.append(connect())
        return accepted

    real = http_server._accept_all
    monkeypatch.setattr(http_server, "_accept_all", accept_all)

    async def scenario():
        server = HttpServer(app, listener)
        await server.start()
        await server.stop_listening(0.01)
        await server.close(1)

    run(scenario())
    # the kernel asks again a second later
    assert len(clients) == 2
    for client in clients:
        assert select.select([], [client], [], 10)[1]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
