"""Typed one-way channels between the processes: ZMQ PUSH → PULL over `ipc://` in the run directory.

The reading side binds, writers connect. ZMQ delivers at most once and says nothing when a peer
dies, so whoever waits for an answer also watches the status page.

Lives here: sockets, their names and limits. Not here: the messages and their encoding
(`messages.py`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import zmq
import zmq.asyncio

from lightllm_server.errors import ChannelError
from lightllm_server.messages import Codec

__all__ = [
    "API_FROM_DETOK",
    "API_FROM_TOKENIZE",
    "DETOK_FROM_ROUTER",
    "MAX_MESSAGE_BYTES",
    "ROUTER_FROM_API",
    "ROUTER_FROM_DETOK",
    "AsyncReceiver",
    "AsyncSender",
    "Receiver",
    "Sender",
    "rank_socket",
    "socket_path",
    "tokenize_socket",
    "wait_any",
]

T = TypeVar("T")

# names of the sockets in the run directory: reader, then writer
ROUTER_FROM_API: Final = "router-from-api.sock"
ROUTER_FROM_DETOK: Final = "router-from-detok.sock"
DETOK_FROM_ROUTER: Final = "detok-from-router.sock"
API_FROM_DETOK: Final = "api-from-detok.sock"
# all tokenize workers write to it
API_FROM_TOKENIZE: Final = "api-from-tokenize.sock"

MAX_MESSAGE_BYTES: Final = 64 * 2**20
_SEND_DEADLINE_S: Final = 5.0
# messages in flight per side; a batch is one message, so this is minutes of work
_DEFAULT_HWM: Final = 10_000
_RECONNECT_MS: Final = 20
# msgspec.MsgspecError is one, and so is the UnicodeDecodeError that it lets through
_MALFORMED: Final = ValueError


def tokenize_socket(index: int) -> str:
    """The socket that tokenize worker `index` reads."""
    return f"tokenize-{index}-from-api.sock"


def rank_socket(rank: int) -> str:
    """The socket on which tensor-parallel rank `rank` (1 …) reads rank 0's plans."""
    return f"rank-{rank}-from-rank-0.sock"


def socket_path(run_dir: Path, name: str) -> Path:
    """The path of a socket; the run directory has room for the names here (`check_path_length`)."""
    return run_dir / name


def _open(context: zmq.Context[Any], kind: int, path: Path, hwm: int) -> Any:
    """A socket with its limits set, bound (PULL) or connected (PUSH); raises ChannelError."""
    socket = context.socket(kind)
    # nothing outlives its process, and nothing is queued for a peer that is not there
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, hwm)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    try:
        (socket.bind if kind == zmq.PULL else socket.connect)(f"ipc://{path}")
    except zmq.ZMQError as error:
        socket.close()
        raise ChannelError(f"{path}: {error}") from error
    return socket


def _check_size(path: Path, frame: bytes) -> bytes:
    # a larger frame would make the reader drop the connection without a word
    if len(frame) > MAX_MESSAGE_BYTES:
        raise ChannelError(
            f"{path.name}: message of {len(frame)} bytes, at most {MAX_MESSAGE_BYTES}"
        )
    return frame


class Sender(Generic[T]):
    """The writing side, blocking."""

    def __init__(
        self,
        context: zmq.Context[Any],
        path: Path,
        codec: Codec[T],
        *,
        hwm: int = _DEFAULT_HWM,
        deadline_s: float = _SEND_DEADLINE_S,
    ) -> None:
        self._path = path
        self._codec = codec
        self._deadline_s = deadline_s
        self._socket: zmq.Socket[bytes] = _open(context, zmq.PUSH, path, hwm)
        self._socket.setsockopt(zmq.SNDTIMEO, round(deadline_s * 1000))

    def send(self, message: T) -> None:
        """Hand over to ZMQ; raises ChannelError if no reader takes it within the deadline."""
        frame = _check_size(self._path, self._codec.encode(message))
        try:
            self._socket.send(frame)
        except zmq.Again as error:
            raise ChannelError(
                f"{self._path.name}: nobody read for {self._deadline_s:g} s"
            ) from error

    def close(self) -> None:
        self._socket.close()


class AsyncSender(Generic[T]):
    """The writing side on an asyncio event loop; made with a `zmq.asyncio.Context`."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        path: Path,
        codec: Codec[T],
        *,
        hwm: int = _DEFAULT_HWM,
        deadline_s: float = _SEND_DEADLINE_S,
    ) -> None:
        self._path = path
        self._codec = codec
        self._deadline_s = deadline_s
        self._socket: zmq.asyncio.Socket = _open(context, zmq.PUSH, path, hwm)
        self._socket.setsockopt(zmq.SNDTIMEO, round(deadline_s * 1000))

    async def send(self, message: T) -> None:
        """As `Sender.send`, without blocking the loop."""
        frame = _check_size(self._path, self._codec.encode(message))
        try:
            await self._socket.send(frame)
        except zmq.Again as error:
            raise ChannelError(
                f"{self._path.name}: nobody read for {self._deadline_s:g} s"
            ) from error

    def close(self) -> None:
        self._socket.close()


class Receiver(Generic[T]):
    """The reading side. A frame that is no message of the hop is counted and dropped."""

    def __init__(
        self,
        context: zmq.Context[Any],
        path: Path,
        codec: Codec[T],
        *,
        hwm: int = _DEFAULT_HWM,
    ) -> None:
        self._codec = codec
        self._socket: zmq.Socket[bytes] = _open(context, zmq.PULL, path, hwm)
        self.num_rejected = 0

    def receive_all(self) -> list[T]:
        """All messages that have arrived, without waiting."""
        messages: list[T] = []
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            try:
                messages.append(self._codec.decode(frame))
            except _MALFORMED:
                self.num_rejected += 1

    def receive(self, timeout_ms: int) -> T | None:
        """The next message, or None if none arrives in `timeout_ms`."""
        deadline = time.monotonic() + timeout_ms / 1000
        while self._socket.poll(max(0, round((deadline - time.monotonic()) * 1000))):
            try:
                return self._codec.decode(self._socket.recv(zmq.NOBLOCK))
            except _MALFORMED:
                self.num_rejected += 1
        return None

    def wait(self, timeout_ms: int) -> bool:
        """Whether a frame is there, after at most `timeout_ms`."""
        return bool(self._socket.poll(timeout_ms))

    def close(self) -> None:
        self._socket.close()


def wait_any(*receivers: Receiver[Any], timeout_ms: int) -> bool:
    """Whether a frame is there for any of the receivers, after at most `timeout_ms`."""
    poller = zmq.Poller()
    for receiver in receivers:
        poller.register(receiver._socket, zmq.POLLIN)
    return bool(poller.poll(timeout_ms))


class AsyncReceiver(Generic[T]):
    """The reading side on an asyncio event loop; made with a `zmq.asyncio.Context`."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        path: Path,
        codec: Codec[T],
        *,
        hwm: int = _DEFAULT_HWM,
    ) -> None:
        self._codec = codec
        self._socket: zmq.asyncio.Socket = _open(context, zmq.PULL, path, hwm)
        self.num_rejected = 0

    async def receive(self) -> T:
        """The next message; waits as long as it takes."""
        while True:
            try:
                return self._codec.decode(await self._socket.recv())
            except _MALFORMED:
                self.num_rejected += 1

    def close(self) -> None:
        self._socket.close()
