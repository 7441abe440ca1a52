"""Waiting for a step's copy: to the end, but no longer than was allowed."""

from __future__ import annotations

import time
from concurrent.futures import Future

import pytest
import torch

from lightllm_server.engine.runner import LaunchedStep
from lightllm_server.engine.sampler import Sampled
from lightllm_server.engine.step_output import StepOutput
from lightllm_server.errors import DeviceError, EngineError


class Event:
    """Done at a look, or never; or the look finds that the device is lost."""

    def __init__(self, looks: int | None = None, error: Exception | None = None) -> None:
        self.looks = looks
        self._error = error

    def record(self) -> None: ...

    def query(self) -> bool:
        if self._error is not None:
            raise self._error
        if self.looks is None:
            return False
        self.looks -= 1
        return self.looks == 0


def launched(event: Event) -> LaunchedStep:
    output = StepOutput(Sampled(torch.tensor([7]), torch.tensor([-0.5]), {}), {})
    output._copied = event
    future: Future[StepOutput] = Future()
    future.set_result(output)
    return LaunchedStep(3, future)


def test_a_result_is_read_once_its_copy_is_done() -> None:
    event = Event(looks=5)
    began = time.monotonic()
    assert launched(event).wait(10.0).token_ids == [7]
    assert event.looks == 0
    # looks are short: nothing of a step's time is lost to them
    assert time.monotonic() - began < 0.5


def test_a_copy_that_never_ends_is_waited_for_as_long_as_was_said() -> None:
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"step 3 took longer than 0\.2 s"):
        launched(Event()).wait(0.2)
    assert 0.2 <= time.monotonic() - began < 2.0


def test_a_device_that_is_lost_shows_at_the_copy() -> None:
    error = torch.AcceleratorError("CUDA error: device-side assert triggered")
    with pytest.raises(DeviceError, match="step 3 lost the device"):
        launched(Event(error=error)).wait(10.0)
