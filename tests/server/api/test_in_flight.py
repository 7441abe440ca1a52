"""Every accepted request is tracked until its one `Ended`, whoever has left."""

from __future__ import annotations

import asyncio

import pytest

from lightllm_server.api.call import Call, collect
from lightllm_server.api.in_flight import InFlight
from lightllm_server.api.mailbox import Item, Mailbox
from lightllm_server.errors import ChannelError, EngineError, RequestError
from lightllm_server.messages import (
    Abort,
    ChoiceText,
    Ended,
    Generate,
    SamplingParams,
    TextBatch,
    TextOptions,
)
from lightllm_server.status_page import Field, StatusPage


class Router:
    """Keeps what is sent, or fails."""

    def __init__(self) -> None:
        self.sent: list = []
        self.broken = False

    async def send(self, message) -> None:
        if self.broken:
            raise ChannelError("nobody reads")
        self.sent.append(message)


class Observer:
    def __init__(self) -> None:
        self.seen: list = []

    def ended(self, flight, ended, now_ns) -> None:
        self.seen.append((flight.request_id, ended.outcome, flight.num_generated))


class World:
    def __init__(self, tmp_path) -> None:
        self.router, self.observer = Router(), Observer()
        self.row = StatusPage.create(tmp_path / "page", ["api"])["api"]
        self.in_flight = InFlight(self.router, self.row, self.observer)

    def call(self, *prompts: tuple[int, ...], n: int = 1) -> Call:
        call = Call(self.in_flight)
        sampling = [SamplingParams(n=n)] * len(prompts)
        call.submit(prompts, sampling, TextOptions(), cache_salt="s", arrived_ns=1)
        return call

    async def settle(self) -> None:
        task = asyncio.create_task(self.in_flight.run_sender())
        await asyncio.sleep(0.01)
        task.cancel()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def piece(request_id: int, text: str, count: int, choice: int = 0, reason=None) -> ChoiceText:
    return ChoiceText(request_id, choice, text, count, (1,), (-0.1,), (), (), (), reason)


def test_a_request_goes_out_and_comes_back(world):
    async def scenario():
        with world.call((1, 2, 3)) as call:
            await world.settle()
            world.in_flight.deliver(TextBatch(choices=(piece(1, "a", 1),)))
            world.in_flight.deliver(
                TextBatch(
                    choices=(piece(1, "b", 2, reason="length"),),
                    ended=(Ended(1, "finished", cached_tokens=2),),
                )
            )
            (result,) = await collect(call, 1, 1)
        await world.settle()
        return call, result.choices[0]

    call, choice = asyncio.run(scenario())
    (generate,) = world.router.sent
    assert isinstance(generate, Generate)
    assert (generate.prompt_ids, generate.cache_salt) == ((1, 2, 3), "s")
    assert (choice.text, choice.num_tokens, choice.finish_reason) == ("ab", 2, "length")
    assert (call.usage.prompt_tokens, call.usage.completion_tokens) == (3, 2)
    assert call.usage.cached_tokens == 2
    assert world.observer.seen == [(1, "finished", 2)]
    assert (world.row[Field.ACCEPTED], world.row[Field.ACCEPTED_TOKENS]) == (1, 3)
    assert world.row[Field.ENDED] == 1
    assert len(world.in_flight) == 0


def test_leaving_aborts_once_and_tracks_to_the_end(world):
    async def scenario():
        call = world.call((1,), (2,))
        world.in_flight.deliver(TextBatch(ended=(Ended(2, "finished"),)))
        call.leave()
        call.leave()
        await world.settle()
        assert len(world.in_flight) == 1
        world.in_flight.deliver(TextBatch(choices=(piece(1, "late", 1),)))
        world.in_flight.deliver(TextBatch(ended=(Ended(1, "aborted"),)))

    asyncio.run(scenario())
    assert world.router.sent[2:] == [Abort(request_id=1)]
    assert [outcome for _, outcome, _ in world.observer.seen] == ["finished", "aborted"]
    assert len(world.in_flight) == 0


def test_words_about_unknown_requests_are_dropped(world):
    async def scenario():
        world.in_flight.deliver(TextBatch(choices=(piece(7, "x", 1),), ended=(Ended(7, "failed"),)))

    asyncio.run(scenario())
    assert world.observer.seen == []


@pytest.mark.parametrize(
    ("ended", "error"),
    [
        (Ended(1, "failed", "out of luck"), EngineError),
        (Ended(1, "failed"), EngineError),
        (Ended(1, "aborted"), RequestError),
    ],
)
def test_what_did_not_finish_is_raised_after_what_came(world, ended, error):
    async def scenario():
        seen = []
        with world.call((1,), (2,)) as call:
            world.in_flight.deliver(TextBatch(choices=(piece(1, "a", 1),), ended=(ended,)))
            with pytest.raises(error):  # noqa: PT012
                async for items in call.items():
                    seen += items
        await world.settle()
        assert [item.word for item in seen] == [piece(1, "a", 1), ended]

    asyncio.run(scenario())
    # the other prompt is of no use without the first
    assert Abort(request_id=2) in world.router.sent


def test_a_router_that_does_not_take_it_ends_the_request(world):
    async def scenario():
        world.router.broken = True
        with world.call((1,)) as call:
            await world.settle()
            with pytest.raises(RequestError) as error:
                await collect(call, 1, 1)
            assert error.value.status == 503

    asyncio.run(scenario())
    assert len(world.in_flight) == 0


def test_fail_all_ends_everybody(world):
    async def scenario():
        calls = [world.call((1,)), world.call((2,))]
        world.in_flight.fail_all(RequestError("over", status=503))
        for call in calls:
            with pytest.raises(RequestError, match="over"):
                await collect(call, 1, 1)
        await world.settle()

    asyncio.run(scenario())
    assert [m for m in world.router.sent if isinstance(m, Abort)] == [
        Abort(request_id=1),
        Abort(request_id=2),
    ]


def test_samples_and_prompts_are_told_apart(world):
    async def scenario():
        with world.call((1,), (2,), n=2) as call:
            choices = [
                piece(request, f"{request}{choice}", 1, choice, "stop")
                for choice in (1, 0)
                for request in (2, 1)
            ]
            ended = (Ended(1, "finished"), Ended(2, "finished"))
            world.in_flight.deliver(TextBatch(choices=tuple(choices), ended=ended))
            results = await collect(call, 2, 2)
        assert [[c.text for c in r.choices] for r in results] == [["10", "11"], ["20", "21"]]
        assert call.usage.completion_tokens == 4

    asyncio.run(scenario())


def test_a_full_mailbox_refuses_and_ends_the_request(world):
    async def scenario():
        with world.call((1,)) as call:
            call._mailbox._max_weight = 10
            for count in range(1, 100):
                world.in_flight.deliver(TextBatch(choices=(piece(1, "x", count),)))
            with pytest.raises(RequestError, match="too slowly"):
                await collect(call, 1, 1)
        await world.settle()

    asyncio.run(scenario())
    assert world.router.sent[1:] == [Abort(request_id=1)]


def test_a_mailbox_takes_one_word_of_any_size():
    mailbox = Mailbox(max_weight=1)
    assert mailbox.put(Item(0, piece(1, "x", 1)))
    assert not mailbox.put(Item(0, piece(1, "x", 2)))
    assert len(asyncio.run(mailbox.take())) == 1
    assert mailbox.put(Item(0, piece(1, "x", 3)))
