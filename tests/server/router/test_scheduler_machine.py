"""Random histories over scheduler, slots and tree, with steps in flight.

The engine underneath refuses any slot that holds another's tokens, so aliasing cannot go unseen.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from lightllm_server.router.admission import (
    AdmissionPolicy,
    ConservativeAdmission,
    EfficientAdmission,
    PastFutureAdmission,
)
from scheduler_driver import SchedulerDriver

# two ids, so that prompts share prefixes of all lengths
prompts = st.one_of(
    st.lists(st.integers(2, 3), min_size=1, max_size=18),
    st.integers(1, 16).map(lambda length: [2] * length),
)

POLICIES: dict[str, Callable[[], AdmissionPolicy]] = {
    "conservative": ConservativeAdmission,
    # an estimate far too low provokes preemptions
    "hopeful": lambda: EfficientAdmission(expected_new_tokens=2),
    # a history that is soon all new
    "past-future": lambda: PastFutureAdmission(window=4),
}


class SchedulerMachine(RuleBasedStateMachine):
    driver: SchedulerDriver
    policy: str

    @initialize(
        num_slots=st.sampled_from([40, 56, 96, 300]),
        max_rows=st.sampled_from([3, 4, 8]),
        max_batch_tokens=st.sampled_from([3, 8, 64]),
        steps_ahead=st.sampled_from([0, 1, 1, 1, 2]),
        caching=st.booleans(),
        policy=st.sampled_from(sorted(POLICIES)),
    )
    def start(self, policy: str, **options: object) -> None:
        self.policy = policy
        self.driver = SchedulerDriver(POLICIES[policy](), **options)  # type: ignore[arg-type]

    @precondition(lambda self: len(self.driver.requests) < 30)
    @rule(
        prompt=prompts,
        max_new_tokens=st.sampled_from([0, 1, 2, 8, 20, 40]),
        n=st.sampled_from([1, 1, 1, 2, 3, 4]),
        ignore_eos=st.booleans(),
        stop_token_ids=st.sampled_from([(), (5,)]),
        prompt_logprobs=st.sampled_from([None, None, None, 0]),
        penalty=st.sampled_from([1.0, 1.2]),
        cache_salt=st.sampled_from(["", "", "tenant"]),
    )
    def add(self, prompt: list[int], penalty: float, **options: object) -> None:
        self.driver.add(prompt, repetition_penalty=penalty, **options)  # type: ignore[arg-type]
        self.driver.scheduler.check_invariants()

    @rule(request_id=st.integers(0, 30))
    def abort(self, request_id: int) -> None:
        self.driver.abort(request_id)
        self.driver.scheduler.check_invariants()

    @rule(request_id=st.integers(0, 30), choice=st.integers(0, 4))
    def stop(self, request_id: int, choice: int) -> None:
        self.driver.stop(request_id, choice)
        self.driver.scheduler.check_invariants()

    @rule()
    def plan(self) -> None:
        self.driver.plan()
        self.driver.scheduler.check_invariants()

    @precondition(lambda self: self.driver.in_flight)
    @rule()
    def commit(self) -> None:
        self.driver.commit()
        self.driver.scheduler.check_invariants()

    @rule(turns=st.integers(1, 12))
    def run(self, turns: int) -> None:
        for _ in range(turns):
            self.driver.turn()
            self.driver.scheduler.check_invariants()

    @precondition(lambda self: self.driver.in_flight)
    @rule()
    def lose_steps(self) -> None:
        self.driver.abandon()
        self.driver.scheduler.check_invariants()

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        self.driver.drain()
        self.driver.check_drained()
        if self.policy == "conservative":
            assert self.driver.scheduler.preempted_total == 0


QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large)
SchedulerMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, suppress_health_check=QUIET
)
TestScheduler = SchedulerMachine.TestCase


class DeepSchedulerMachine(SchedulerMachine):
    """The same with many more and longer histories."""


DeepSchedulerMachine.TestCase.settings = settings(
    max_examples=600, stateful_step_count=80, suppress_health_check=QUIET
)
TestSchedulerDeeply = pytest.mark.slow(pytest.mark.timeout(600)(DeepSchedulerMachine.TestCase))
