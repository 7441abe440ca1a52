"""Drives a scheduler with the engine of `scheduled_engine.py`, and checks every word it says."""

from __future__ import annotations

from collections import deque

from lightllm_server.messages import (
    Ended,
    FinishReason,
    Generate,
    Opened,
    SampledToken,
    SamplingParams,
    TokenBatch,
)
from lightllm_server.router.admission import AdmissionPolicy, EfficientAdmission
from lightllm_server.router.prefix_cache import PrefixCache
from lightllm_server.router.scheduler import Scheduler, SchedulerConfig
from lightllm_server.router.step_plan import StepPlan, StepResult
from scheduled_engine import EOS_ID, ScheduledEngine, continuation, prompt_logprobs

VOCAB_SIZE = 12


class SchedulerDriver:
    """Small numbers by default; `caching` False runs without a prefix cache."""

    def __init__(
        self,
        policy: AdmissionPolicy | None = None,
        *,
        num_slots: int = 64,
        max_rows: int = 8,
        max_batch_tokens: int = 16,
        max_len: int = 40,
        caching: bool = True,
        steps_ahead: int = 1,
        vocab_size: int = VOCAB_SIZE,
    ) -> None:
        config = SchedulerConfig(
            num_slots=num_slots,
            max_rows=max_rows,
            max_batch_tokens=max_batch_tokens,
            max_req_total_len=max_len,
            eos_ids=frozenset({EOS_ID}),
            vocab_size=vocab_size,
            steps_ahead=steps_ahead,
        )
        self.scheduler = Scheduler(
            config,
            policy or EfficientAdmission(),
            prefix_cache=PrefixCache() if caching else None,
            clock=lambda: 7,
        )
        self.engine = ScheduledEngine(num_slots, max_rows, max_len, vocab_size)
        self.in_flight: deque[tuple[StepPlan, StepResult]] = deque()
        self.plans: list[StepPlan] = []
        self.requests: dict[int, Generate] = {}
        self.stopped: set[tuple[int, int]] = set()
        self.opened: dict[int, Opened] = {}
        self.tokens: dict[tuple[int, int], list[SampledToken]] = {}
        self.ended: dict[int, Ended] = {}

    def add(
        self, prompt: tuple[int, ...] | list[int], *, cache_salt: str = "", **sampling: object
    ) -> int:
        """Send a request; its seed is its id unless one is given. Returns the id."""
        request_id = len(self.requests)
        params = SamplingParams(**{"seed": request_id, **sampling})  # type: ignore[arg-type]
        message = Generate(
            request_id=request_id,
            prompt_ids=tuple(prompt),
            sampling=params,
            cache_salt=cache_salt,
        )
        self.requests[request_id] = message
        self.scheduler.add(message)
        self._take(self.scheduler.take_events())
        return request_id

    def abort(self, request_id: int) -> None:
        self.scheduler.abort(request_id)
        self._take(self.scheduler.take_events())

    def stop(self, request_id: int, choice: int) -> None:
        if self.tokens.get((request_id, choice)):
            self.stopped.add((request_id, choice))
        self.scheduler.stop_choice(request_id, choice)
        self._take(self.scheduler.take_events())

    def abandon(self) -> None:
        """The oldest step in flight fails; the engine's later steps are lost with it."""
        for plan, _ in self.in_flight:
            # whatever they wrote is not to be trusted
            for slot in plan.slots.tolist():
                self.engine.kv[slot] = (-2, -2)
        self.scheduler.abandon([plan for plan, _ in self.in_flight])
        self.in_flight.clear()
        self._take(self.scheduler.take_events())

    def plan(self) -> StepPlan | None:
        plan = self.scheduler.plan()
        if plan is not None:
            assert plan.num_tokens > 0, "an empty step"
            self.plans.append(plan)
            self.in_flight.append((plan, self.engine.run(plan)))
        self._take(self.scheduler.take_events())
        return plan

    def commit(self) -> None:
        plan, result = self.in_flight.popleft()
        self._take(self.scheduler.commit(plan, result))
        self._take(self.scheduler.take_events())

    def turn(self) -> bool:
        """Plan one ahead and commit the oldest, as the router does; False when nothing is left."""
        plan = self.plan()
        steps_ahead = self.scheduler.config.steps_ahead
        if self.in_flight and (plan is None or len(self.in_flight) > steps_ahead):
            self.commit()
            return True
        return plan is not None

    def drain(self, max_turns: int = 20_000) -> None:
        """Run until nothing is left, checking all books after each turn."""
        for _ in range(max_turns):
            if not self.turn():
                return
            self.scheduler.check_invariants()
        raise AssertionError(f"not drained after {max_turns} turns")

    def outputs(self, request_id: int, choice: int = 0) -> list[int]:
        return [token.token_id for token in self.tokens.get((request_id, choice), [])]

    def expected(self, request_id: int, choice: int = 0) -> list[int]:
        """What the request must generate if nobody ends it."""
        message = self.requests[request_id]
        room = self.scheduler.config.max_req_total_len - len(message.prompt_ids)
        return continuation(
            message.prompt_ids,
            message.sampling,
            choice,
            limit=min(message.sampling.max_new_tokens, room),
            vocab_size=self.engine.vocab_size,
        )

    def check_drained(self) -> None:
        """Every request has one end and the right tokens; nothing is held any more."""
        scheduler = self.scheduler
        scheduler.check_invariants()
        assert self.ended.keys() == self.requests.keys() == self.opened.keys()
        held = (scheduler.num_waiting, scheduler.num_running, scheduler.num_running_rows)
        assert held == (0, 0, 0), held
        assert scheduler.slots_used == 0, scheduler.slots_used
        for request_id, ended in self.ended.items():
            for choice in range(self.requests[request_id].sampling.n):
                self._check_choice(request_id, choice, ended)
        generated = sum(len(tokens) for tokens in self.tokens.values())
        assert scheduler.generated_tokens_total == generated

    def _check_choice(self, request_id: int, choice: int, ended: Ended) -> None:
        got, want = self.outputs(request_id, choice), self.expected(request_id, choice)
        assert got == want[: len(got)], (request_id, choice, got, want)
        message = self.requests[request_id]
        if ended.outcome != "finished" or (request_id, choice) in self.stopped:
            return
        assert got == want, (request_id, choice)
        stops = {*message.sampling.stop_token_ids}
        if not message.sampling.ignore_eos:
            stops.add(EOS_ID)
        *before, last = self.tokens[request_id, choice]
        assert all(token.finish_reason is None for token in before)
        reason: FinishReason = "stop" if last.token_id in stops else "length"
        assert last.finish_reason == reason, (last.finish_reason, reason)
        assert last.is_stop_token == (reason == "stop")

    def _take(self, batch: TokenBatch | None) -> None:
        if batch is None:
            return
        for opened in batch.opened:
            assert opened.request_id not in self.opened, "opened twice"
            self.opened[opened.request_id] = opened
            self._check_opened(opened)
        for token in batch.tokens:
            key = (token.request_id, token.choice)
            assert token.request_id in self.opened, "a token before its request was opened"
            assert token.request_id not in self.ended, "a token after the end"
            assert key not in self.stopped, "a token of a stopped choice"
            self.tokens.setdefault(key, []).append(token)
        for ended in batch.ended:
            assert ended.request_id not in self.ended, "ended twice"
            assert ended.request_id in self.opened, "ended before it was opened"
            assert bool(ended.error) == (ended.outcome == "failed"), ended
            self.ended[ended.request_id] = ended

    def _check_opened(self, opened: Opened) -> None:
        message = self.requests[opened.request_id]
        assert opened.prompt_ids == message.prompt_ids
        assert opened.n == message.sampling.n
        if opened.prompt_logprobs is not None:
            assert message.sampling.prompt_logprobs is not None, "logprobs that nobody wanted"
            want = prompt_logprobs(list(message.prompt_ids))
            assert list(opened.prompt_logprobs.logprobs) == want, opened.request_id
