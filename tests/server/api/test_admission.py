"""The queue is read from the page, and bounded by count and by tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from api_app import ApiApp
from lightllm_server.api.admission import Admission, ServiceRate, read_queue
from lightllm_server.config import RouterConfig
from lightllm_server.errors import OverloadedError, RequestError
from lightllm_server.status_page import Field, StatusPage


@pytest.fixture
def page(tmp_path: Path) -> StatusPage:
    return StatusPage.create(tmp_path / "page", ["api", "router"])


def admission(page: StatusPage, rate: ServiceRate | None = None, **bounds: int) -> Admission:
    config = RouterConfig(**bounds)
    return Admission(config, page["api"], page["router"], rate or ServiceRate())


def accept(page: StatusPage, requests: int, tokens: int) -> None:
    page["api"].add(Field.ACCEPTED, requests)
    page["api"].add(Field.ACCEPTED_TOKENS, tokens)


def test_waiting_is_accepted_less_started_less_ended_plus_preempted(page):
    accept(page, 10, 100)
    router = page["router"]
    router[Field.STARTED] = 4
    router[Field.STARTED_TOKENS] = 40
    router[Field.ENDED_UNSTARTED] = 1
    router[Field.ENDED_UNSTARTED_TOKENS] = 10
    router[Field.PREEMPTED_WAITING] = 2
    queue = read_queue(page["api"], router)
    assert (queue.num_requests, queue.num_tokens) == (7, 50)


def test_the_count_is_bounded(page):
    bounded = admission(page, max_queued_requests=3)
    accept(page, 2, 2)
    bounded.check_count(1)
    with pytest.raises(OverloadedError, match="2 requests wait, at most 3"):
        bounded.check_count(2)
    accept(page, 1, 1)
    with pytest.raises(OverloadedError):
        bounded.check_count(1)
    assert page["api"][Field.REJECTED_429] == 2


def test_more_prompts_than_may_ever_wait_are_a_bad_request(page):
    """A 429 would have the client try for ever."""
    bounded = admission(page, max_queued_requests=3)
    bounded.check_count(3)
    for num_waiting in (0, 3):
        accept(page, num_waiting, num_waiting)
        with pytest.raises(RequestError, match="prompt: got 4 prompts, must be at most 3") as error:
            bounded.check_count(4)
        assert (error.value.status, error.value.field) == (400, "prompt")
    assert page["api"][Field.REJECTED_429] == 0


def test_what_is_being_tokenized_counts(page):
    bounded = admission(page, max_queued_requests=3)
    bounded.prepare(3)
    with pytest.raises(OverloadedError):
        bounded.check_count(1)
    bounded.prepare(-3)
    bounded.check_count(1)


def test_tokens_are_bounded_once_somebody_waits(page):
    bounded = admission(page, max_queued_tokens=100)
    bounded.check_tokens(1000)
    accept(page, 1, 60)
    bounded.check_tokens(40)
    with pytest.raises(OverloadedError, match="60 prompt tokens wait, at most 100"):
        bounded.check_tokens(41)


def test_retry_after_is_the_time_that_the_queue_takes(page, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    rate = ServiceRate()
    for _ in range(20):
        rate.ended()
    now += 10
    assert rate.per_second() == pytest.approx(2)
    bounded = admission(page, rate, max_queued_requests=8)
    accept(page, 8, 8)
    with pytest.raises(OverloadedError) as refused:
        bounded.check_count()
    assert refused.value.retry_after == 4
    # nothing ended for half a minute
    now += 40
    assert rate.per_second() == 0
    with pytest.raises(OverloadedError) as refused:
        bounded.check_count()
    assert refused.value.retry_after == 60


ROUTES = ("/generate", "/generate_stream", "/", "/v1/completions", "/v1/chat/completions")


def test_a_full_queue_refuses_before_the_body_is_read(tmp_path):
    """Overload must cost nothing: not even a body that is no JSON is looked at."""

    async def scenario():
        async with ApiApp(tmp_path, max_queued_requests=2) as app:
            accept(app.page, 2, 2)
            full = [await app.client.post(path, content=b"no JSON") for path in ROUTES]
            # what does not run has nobody to wait for
            detokenized = await app.client.post("/detokenize", json={"tokens": [64]})
            app.page["router"][Field.STARTED] = 1
            room = [await app.client.post(path, content=b"no JSON") for path in ROUTES]
            return full, detokenized, room, app.page["api"][Field.REJECTED_429]

    full, detokenized, room, num_rejected = asyncio.run(scenario())
    assert [answer.status_code for answer in full] == [429] * len(ROUTES)
    assert {answer.headers["retry-after"] for answer in full} == {"60"}
    assert num_rejected == len(ROUTES)
    assert detokenized.status_code == 200
    assert [answer.status_code for answer in room] == [400] * len(ROUTES)
