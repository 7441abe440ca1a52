"""Channels between real sockets: order, limits, deadlines, hostile frames."""

from __future__ import annotations

import asyncio
import pickle
import random
import stat
import time
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zmq
import zmq.asyncio

from lightllm_server import channels
from lightllm_server.channels import (
    MAX_MESSAGE_BYTES,
    AsyncReceiver,
    AsyncSender,
    Receiver,
    Sender,
    socket_path,
    wait_any,
)
from lightllm_server.errors import ChannelError, ConfigError
from lightllm_server.messages import Abort, ApiToRouter, Codec, EncodeText, Stopped
from lightllm_server.run_directory import check_path_length

CODEC = Codec[ApiToRouter](ApiToRouter)
TEXTS = Codec[EncodeText](EncodeText)


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context


@pytest.fixture
def sockets(context):
    """Makes channels that are closed when the test ends."""
    with ExitStack() as stack:

        def make(kind, *args, **options):
            return stack.enter_context(closing(kind(context, *args, **options)))

        yield make


@pytest.fixture
def path(tmp_path):
    return socket_path(tmp_path, channels.ROUTER_FROM_API)


def abort(request_id: int) -> Abort:
    return Abort(request_id=request_id)


def receive_some(receiver: Receiver, count: int) -> list:
    messages = []
    while len(messages) < count:
        assert receiver.wait(5000), f"{len(messages)} of {count} arrived"
        messages += receiver.receive_all()
    return messages


def test_messages_arrive_in_order_whoever_starts_first(sockets, path):
    sender = sockets(Sender, path, CODEC)
    receiver = sockets(Receiver, path, CODEC)
    for i in range(1000):
        sender.send(abort(i))
    assert receive_some(receiver, 1000) == [abort(i) for i in range(1000)]
    assert receiver.receive_all() == []
    sender.send(abort(7))
    assert receiver.receive(5000) == abort(7)


def test_many_writers_one_reader(sockets, path):
    receiver = sockets(Receiver, path, CODEC)
    senders = [sockets(Sender, path, CODEC) for _ in range(3)]
    for i, sender in enumerate(senders):
        sender.send(abort(i))
    assert {m.request_id for m in receive_some(receiver, 3)} == {0, 1, 2}


def test_receive_gives_up_in_time(sockets, path):
    receiver = sockets(Receiver, path, CODEC)
    start = time.monotonic()
    assert receiver.receive(50) is None
    assert not receiver.wait(50)
    assert 0.09 < time.monotonic() - start < 3


def test_sending_to_nobody_fails_after_the_deadline(sockets, path):
    sender = sockets(Sender, path, CODEC, deadline_s=0.1)
    start = time.monotonic()
    with pytest.raises(ChannelError, match=r"router-from-api\.sock: nobody read for 0\.1 s"):
        sender.send(abort(1))
    assert 0.09 < time.monotonic() - start < 3


def test_a_reader_that_does_not_read_is_an_error_not_a_memory_leak(sockets, path):
    receiver = sockets(Receiver, path, TEXTS, hwm=10)
    sender = sockets(Sender, path, TEXTS, hwm=10, deadline_s=0.1)
    big = EncodeText(job_id=1, text="x" * 100_000)
    num_sent = 0
    try:
        while num_sent < 1000:
            sender.send(big)
            num_sent += 1
    except ChannelError:
        pass
    # two queues of 10 and what the kernel holds between them
    assert 10 <= num_sent < 100
    assert len(receive_some(receiver, num_sent)) == num_sent


def test_a_message_too_large_is_refused_by_the_sender(sockets, path):
    receiver = sockets(Receiver, path, TEXTS)
    sender = sockets(Sender, path, TEXTS)
    with pytest.raises(ChannelError, match="at most"):
        sender.send(EncodeText(job_id=1, text="x" * MAX_MESSAGE_BYTES))
    sender.send(EncodeText(job_id=2, text="y"))
    assert receiver.receive(5000) == EncodeText(job_id=2, text="y")


def raw_sender(context, path):
    socket = context.socket(zmq.PUSH)
    socket.linger = 0
    socket.connect(f"ipc://{path}")
    return socket


def test_a_frame_too_large_is_dropped_and_the_channel_lives(sockets, path):
    receiver = sockets(Receiver, path, CODEC)
    socket = sockets(raw_sender, path)
    socket.send(bytes(MAX_MESSAGE_BYTES + 1))
    deadline = time.monotonic() + 20
    # the connection is cut and made again, on which messages may be lost
    while receiver.receive(50) != abort(1):
        assert time.monotonic() < deadline
        socket.send(CODEC.encode(abort(1)), zmq.NOBLOCK)


def test_hostile_frames_are_counted_and_dropped(sockets, path):
    receiver = sockets(Receiver, path, CODEC)
    socket = sockets(raw_sender, path)
    rng = random.Random(0)
    frames = [
        b"",
        pickle.dumps(abort(1)),
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\x82\xa4type\xa5Abort\xa4\xff\xfe\xfd\xfc\x01",
        Codec(Stopped).encode(Stopped(request_id=1, choice=0)),
        *(rng.randbytes(rng.randrange(1, 100)) for _ in range(2000)),
    ]
    for frame in frames:
        socket.send(frame)
    socket.send_multipart([b"\xc1", CODEC.encode(abort(5))])
    socket.send(CODEC.encode(abort(6)))
    assert receive_some(receiver, 2) == [abort(5), abort(6)]
    assert receiver.num_rejected == len(frames) + 1
    socket.send(b"\xc1")
    socket.send(CODEC.encode(abort(7)))
    assert receiver.receive(5000) == abort(7)
    assert receiver.num_rejected == len(frames) + 2


def test_wait_any_hears_either(sockets, tmp_path):
    one = sockets(Receiver, socket_path(tmp_path, "one.sock"), CODEC)
    other_path = socket_path(tmp_path, "other.sock")
    other = sockets(Receiver, other_path, CODEC)
    assert not wait_any(one, other, timeout_ms=20)
    sockets(Sender, other_path, CODEC).send(abort(1))
    assert wait_any(one, other, timeout_ms=5000)
    assert (one.receive_all(), other.receive_all()) == ([], [abort(1)])


def test_a_run_directory_passes_only_if_all_its_sockets_can_be_bound(sockets, tmp_path):
    with TemporaryDirectory(dir="/tmp") as folder:
        longest = Path(folder) / ("x" * (65 - len(folder)))
        longest.mkdir()
        check_path_length(longest)
        names = [getattr(channels, name) for name in dir(channels) if "_FROM_" in name]
        assert len(names) == 5
        for name in [*names, channels.tokenize_socket(99_999), channels.rank_socket(99_999)]:
            sockets(Receiver, socket_path(longest, name), CODEC)
        with pytest.raises(ConfigError, match=r"too long for sockets: 108 bytes.*at most 107"):
            check_path_length(longest.with_name(longest.name + "y"))


def test_a_path_that_cannot_be_bound_is_named(sockets, tmp_path):
    path = tmp_path / "missing" / "a.sock"
    with pytest.raises(ChannelError, match=r"missing/a\.sock"):
        sockets(Receiver, path, CODEC)


def test_only_unix_sockets(sockets, path):
    sockets(Receiver, path, CODEC)
    assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_on_an_event_loop(tmp_path, loop):
    path = socket_path(tmp_path, channels.API_FROM_DETOK)

    async def talk(make):
        lonely = make(AsyncSender, tmp_path / "nobody.sock", CODEC, deadline_s=0.1)
        with pytest.raises(ChannelError, match=r"nobody\.sock"):
            await lonely.send(abort(1))
        receiver = make(AsyncReceiver, path, CODEC)
        await make(raw_sender, path).send(b"\xc1")
        sender = make(AsyncSender, path, CODEC)

        async def send():
            for i in range(500):
                await sender.send(abort(i))

        sending = asyncio.create_task(send())
        received = [await asyncio.wait_for(receiver.receive(), 5) for _ in range(500)]
        await sending
        assert received == [abort(i) for i in range(500)]
        # the two writers are read in turn
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receiver.receive(), 0.05)
        assert receiver.num_rejected == 1

    async def main():
        with zmq.asyncio.Context() as context, ExitStack() as stack:
            await talk(lambda kind, *a, **o: stack.enter_context(closing(kind(context, *a, **o))))

    factory = None
    if loop == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
