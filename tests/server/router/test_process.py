"""The loop between scheduler, runner and sockets: it sleeps only when nothing can be planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightllm_server import channels, processes
from lightllm_server.errors import EXIT_SOFTWARE, DeviceError, EngineError
from lightllm_server.messages import Generate, SamplingParams, TokenBatch
from lightllm_server.router.admission import EfficientAdmission
from lightllm_server.router.process import RouterLoop
from lightllm_server.router.step_plan import StepPlan, StepResult
from lightllm_server.status_page import Field, StatusPage, StatusRow
from scheduled_engine import ScheduledEngine
from scheduler_driver import SchedulerDriver

# too large for an eos to turn up by chance
QUIET_VOCAB = 100_000


class AsleepError(Exception):
    """The loop would have slept."""


class Inbox:
    """A receiver that has all its messages at the first look."""

    num_rejected = 0

    def __init__(self, messages: list[Generate]) -> None:
        self._messages = messages

    def receive_all(self) -> list[Generate]:
        messages, self._messages = self._messages, []
        return messages


class Outbox:
    """What is sent; by then the row says so already."""

    def __init__(self, row: StatusRow) -> None:
        self.batches: list[TokenBatch] = []
        self._row = row

    def send(self, batch: TokenBatch) -> None:
        self.batches.append(batch)
        num_ended = sum(len(sent.ended) for sent in self.batches)
        assert self._row[Field.GENERATED_TOKENS] >= sum(len(sent.tokens) for sent in self.batches)
        assert self._row[Field.RUNNING] <= self._row[Field.STARTED] - num_ended


class Step:
    def __init__(self, result: StepResult | Exception) -> None:
        self._result = result

    def wait(self, timeout: float) -> StepResult:
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class Runner:
    """The scripted engine; step `failing` fails with `error`."""

    def __init__(self, engine: ScheduledEngine, failing: int, error: Exception) -> None:
        self._engine = engine
        self._failing = failing
        self._error = error

    def launch(self, plan: StepPlan) -> Step:
        result = self._engine.run(plan)
        return Step(self._error if plan.step == self._failing else result)


def serve(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: SchedulerDriver,
    *,
    failing: int = -1,
    error: Exception | None = None,
    max_new_tokens: int = 3,
) -> dict[int, str]:
    """Turn until the loop would sleep; the outcome of each of six equal requests."""
    requests = [
        Generate(
            request_id=i,
            prompt_ids=(5 + i, 6),
            sampling=SamplingParams(seed=i, max_new_tokens=max_new_tokens),
        )
        for i in range(6)
    ]
    row = StatusPage.create(tmp_path / "page", ["router"])["router"]
    outbox = Outbox(row)
    loop = RouterLoop(
        driver.scheduler,
        Runner(driver.engine, failing, error or EngineError("on purpose")),  # type: ignore[arg-type]
        row,
        from_api=Inbox(requests),  # type: ignore[arg-type]
        from_detok=Inbox([]),  # type: ignore[arg-type]
        to_detok=outbox,  # type: ignore[arg-type]
    )

    def asleep(*receivers: object, timeout_ms: int) -> bool:
        raise AsleepError

    monkeypatch.setattr(channels, "wait_any", asleep)
    with pytest.raises(AsleepError):
        loop.run_forever()
    return {ended.request_id: ended.outcome for batch in outbox.batches for ended in batch.ended}


def test_waves_of_equal_requests_follow_each_other_without_a_sleep(tmp_path, monkeypatch):
    """The end of a wave is known beforehand, so that nothing is planned until it is committed."""
    driver = SchedulerDriver(max_rows=2, vocab_size=QUIET_VOCAB)
    assert serve(tmp_path, monkeypatch, driver) == dict.fromkeys(range(6), "finished")
    assert driver.scheduler.num_waiting == 0


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_requests_of_a_failed_step_run_again_without_a_sleep(tmp_path, monkeypatch, failing):
    driver = SchedulerDriver(max_rows=2, vocab_size=QUIET_VOCAB)
    outcomes = serve(tmp_path, monkeypatch, driver, failing=failing)
    assert outcomes == dict.fromkeys(range(6), "finished")


def test_a_preempted_request_comes_back_without_a_sleep(tmp_path, monkeypatch):
    hopeful = EfficientAdmission(expected_new_tokens=1)
    driver = SchedulerDriver(hopeful, num_slots=24, vocab_size=QUIET_VOCAB)
    outcomes = serve(tmp_path, monkeypatch, driver, max_new_tokens=12)
    assert outcomes == dict.fromkeys(range(6), "finished")
    assert driver.scheduler.preempted_total > 0


@pytest.mark.parametrize("failing", [0, 1])
def test_a_lost_device_ends_the_process(tmp_path, monkeypatch, failing):
    """A step of any request would fail on it: a pod that stayed ready would fail them all."""
    driver = SchedulerDriver(max_rows=2, vocab_size=QUIET_VOCAB)

    def enter(*arguments: object) -> None:
        serve(tmp_path, monkeypatch, driver, failing=failing, error=DeviceError("on purpose"))

    monkeypatch.setattr(processes, "_enter", enter)
    router = processes.ProcessId("router")
    assert processes._run(router, tmp_path, 0, "") == EXIT_SOFTWARE
