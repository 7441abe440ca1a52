"""A client that leaves or does not read is noticed; errors before the first byte are answers."""

from __future__ import annotations

import asyncio

import pytest

from lightllm_server.api.http_protocol import ABORT_CONNECTION
from lightllm_server.api.replies import ClientGoneError
from lightllm_server.api.stream import EventStream, while_connected
from lightllm_server.errors import EngineError


class FakeCall:
    def __init__(self) -> None:
        self.num_left = 0

    def leave(self) -> None:
        self.num_left += 1


class Connection:
    """The ASGI side: what was sent, and when the client leaves or stops reading."""

    def __init__(self, *, reads: int = 10**9) -> None:
        self.sent: list[dict] = []
        self.gone = asyncio.Event()
        self.aborted = False
        self._reads = reads
        self.scope = {"extensions": {ABORT_CONNECTION: self._abort}}

    def _abort(self) -> None:
        self.aborted = True

    async def receive(self) -> dict:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        if self._reads == 0:
            await asyncio.sleep(3600)
        self._reads -= 1
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def chunks(*parts: bytes, error: Exception | None = None, forever: bool = False):
    for part in parts:
        yield part
    if error is not None:
        raise error
    if forever:
        await asyncio.sleep(3600)


def run(connection_of, generator, **options):
    async def scenario():
        connection, call = connection_of(), FakeCall()
        stream = EventStream(call, generator, lambda error: f"!{error}".encode(), **options)
        try:
            async with asyncio.timeout(5):
                await stream(connection.scope, connection.receive, connection.send)
        finally:
            assert call.num_left >= 1
        return connection

    return asyncio.run(scenario())


def test_all_is_sent_and_ended():
    connection = run(Connection, chunks(b"a", b"b"))
    assert connection.sent[0]["status"] == 200
    assert (b"cache-control", b"no-cache") in connection.sent[0]["headers"]
    assert connection.body == b"ab"
    assert [message.get("more_body") for message in connection.sent[1:]] == [True, True, False]


def test_a_late_error_is_the_last_event():
    assert run(Connection, chunks(b"a", error=EngineError("lost"))).body == b"a!lost"


def test_an_early_error_is_raised_before_anything_is_sent():
    sent = []

    def connection_of():
        connection = Connection()
        sent.append(connection)
        return connection

    with pytest.raises(EngineError):
        run(connection_of, chunks(error=EngineError("lost")))
    assert sent[0].sent == []


def test_a_client_that_leaves_ends_it_at_once():
    def connection_of():
        connection = Connection()
        asyncio.get_running_loop().call_later(0.05, connection.gone.set)
        return connection

    connection = run(connection_of, chunks(b"a", forever=True))
    assert connection.body == b"a"


def test_a_client_that_stops_reading_is_dropped():
    connection = run(lambda: Connection(reads=2), chunks(b"a", b"b", b"c"), stall_limit_s=0.05)
    assert connection.body == b"a"
    assert connection.aborted


class FakeRequest:
    def __init__(self, receive) -> None:
        self.receive = receive


def test_waiting_for_an_answer_ends_when_the_client_leaves():
    async def scenario():
        connection, cancelled = Connection(), []

        async def work():
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        asyncio.get_running_loop().call_later(0.02, connection.gone.set)
        with pytest.raises(ClientGoneError):
            await while_connected(FakeRequest(connection.receive), work())
        assert cancelled == [True]

    asyncio.run(scenario())


def test_an_answer_in_time_is_returned():
    async def scenario():
        async def work():
            return 5

        return await while_connected(FakeRequest(Connection().receive), work())

    assert asyncio.run(scenario()) == 5
