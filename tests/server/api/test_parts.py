"""The API's smaller parts: keys, tokenize pool, health, guard, limits of the body budget."""

from __future__ import annotations

import asyncio
import time

import pytest

from lightllm_server.api.auth import ApiKeys
from lightllm_server.api.body import BodyBudget
from lightllm_server.api.health import Health
from lightllm_server.api.tokenize import TokenizePool
from lightllm_server.errors import ConfigError, OverloadedError, RequestError
from lightllm_server.messages import ChatMessage, EncodeChat, Encoded, EncodeFailed
from lightllm_server.status_page import BEAT_LIMIT_S, Field, State, StatusPage

# ---------------------------------------------------------------- keys


def test_keys_have_tenants_that_tell_nothing():
    keys = ApiKeys(["one", "two"])
    tenants = {keys.tenant(b"one"), keys.tenant(b"two")}
    assert len(tenants) == 2
    assert None not in tenants
    assert keys.tenant(b"three") is None
    assert keys.tenant(b"") is None
    assert not any("one" in str(value) for value in vars(keys).values())


def test_a_key_file_without_keys_is_a_config_error(tmp_path):
    path = tmp_path / "keys"
    with pytest.raises(ConfigError, match="--api-key-file"):
        ApiKeys.from_file(path)
    path.write_text(" \n\n")
    with pytest.raises(ConfigError, match="holds 0 keys"):
        ApiKeys.from_file(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match="keys"):
        ApiKeys.from_file(path)


# ---------------------------------------------------------------- tokenize pool


class Worker:
    """Keeps jobs; the test answers."""

    def __init__(self) -> None:
        self.jobs: list = []

    async def send(self, job) -> None:
        self.jobs.append(job)


def test_jobs_go_to_the_worker_with_the_least_to_do():
    async def scenario():
        workers = [Worker(), Worker()]
        pool = TokenizePool(workers)
        texts = ["a" * 100, "b", "c", "d"]
        jobs = [asyncio.create_task(pool.encode_text(text)) for text in texts]
        await asyncio.sleep(0.01)
        assert [len(worker.jobs) for worker in workers] == [1, 3]
        for worker in workers:
            for job in worker.jobs:
                pool.deliver(Encoded(job_id=job.job_id, token_ids=(len(job.text),)))
        assert [await job for job in jobs] == [(100,), (1,), (1,), (1,)]
        assert len(pool) == 0

    asyncio.run(scenario())


def test_a_failed_job_is_a_bad_request():
    async def scenario():
        worker = Worker()
        pool = TokenizePool([worker])
        task = asyncio.create_task(pool.encode_chat((ChatMessage("user", "x"),)))
        await asyncio.sleep(0.01)
        assert isinstance(worker.jobs[0], EncodeChat)
        pool.deliver(EncodeFailed(job_id=worker.jobs[0].job_id, error="no template"))
        with pytest.raises(RequestError, match="no template") as error:
            await task
        assert error.value.status == 400

    asyncio.run(scenario())


def test_a_job_given_up_leaves_nothing_behind():
    async def scenario():
        worker = Worker()
        pool = TokenizePool([worker])
        task = asyncio.create_task(pool.encode_text("x"))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        pool.deliver(Encoded(job_id=worker.jobs[0].job_id, token_ids=()))
        assert len(pool) == 0
        assert pool._outstanding == [0]

    asyncio.run(scenario())


def test_a_worker_that_does_not_answer_is_503():
    async def scenario():
        with pytest.raises(RequestError) as error:
            await TokenizePool([Worker()], deadline_s=0.02).encode_text("x")
        assert error.value.status == 503

    asyncio.run(scenario())


# ---------------------------------------------------------------- health


@pytest.fixture
def page(tmp_path):
    page = StatusPage.create(tmp_path / "page", ["supervisor", "api", "router"])
    for row in page.rows.values():
        row.state = State.READY
        row.beat()
    return page


def test_ready_when_all_rows_are(page):
    health = Health(page)
    assert health.not_ready() is None
    assert health.not_live() is None


@pytest.mark.parametrize("name", ["api", "router"])
@pytest.mark.parametrize("state", [State.STARTING, State.LOADING, State.DRAINING, State.FAILED])
def test_not_ready_while_one_is_not(page, name, state):
    page[name].state = state
    health = Health(page)
    assert health.not_ready()
    assert bool(health.not_live()) == (state is State.FAILED)


def test_the_supervisors_verdict_ends_readiness(page):
    page["supervisor"].state = State.FAILED
    assert Health(page).not_ready() == "supervisor failed"


def test_an_old_beat_is_death(page):
    health = Health(page)
    page["router"][Field.BEAT_NS] = time.monotonic_ns() - int((BEAT_LIMIT_S + 1) * 1e9)
    assert health.not_ready() == "router is dead"
    health.check_progress()
    assert "no beat" in health.not_live()


def test_after_a_pause_of_its_own_it_judges_nobody_for_a_while(page, monkeypatch):
    """As when the whole machine stood still: the others could not beat either."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "monotonic_ns", lambda: int(now * 1e9))
    page["router"].beat()
    health = Health(page)
    health.check_progress()
    now += BEAT_LIMIT_S + 5
    health.check_progress()
    assert health.not_live() is None
    for _ in range(100):
        now += 0.125
        health.check_progress()
    assert "no beat" in health.not_live()


# ---------------------------------------------------------------- bodies in memory


def test_bodies_in_memory_are_bounded():
    budget = BodyBudget(100)
    budget.take(60)
    with pytest.raises(OverloadedError):
        budget.take(41)
    budget.give_back(60)
    budget.take(100)
