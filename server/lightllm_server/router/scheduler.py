"""The scheduler: queue, admission, token budget, preemption; it makes `StepPlan`s and takes their
results. No torch, no I/O.

Every plan carries all decoding rows, one token each, and prefill chunks up to `max_batch_tokens`;
decode rows that are more than that by themselves still all go, without prefill beside them. Prompts
share the prefill budget evenly, what a short one leaves goes to the longer ones in order of
arrival. Plans are made one ahead: a row whose end is known is not planned again, a row that turns
out to have ended has one token too many, which is dropped.

Progress: the oldest running request is preempted by nobody, a lone one always fits (checked when it
is added), so it ends; then the next is the oldest.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from typing import Any

import numpy as np

from lightllm_server.messages import (
    Ended,
    FinishReason,
    Generate,
    Outcome,
    SampledToken,
    TokenBatch,
)
from lightllm_server.router.admission import AdmissionPolicy
from lightllm_server.router.admission_scan import AdmissionScan
from lightllm_server.router.events import Events
from lightllm_server.router.kv_slots import KvSlots
from lightllm_server.router.prefix_cache import Node, PrefixCache
from lightllm_server.router.queue import WaitingQueue
from lightllm_server.router.request import Choice, Request
from lightllm_server.router.row_table import IntArray, RowTable
from lightllm_server.router.running_set import RunningSet
from lightllm_server.router.scheduler_status import SchedulerStatus
from lightllm_server.router.slot_ledger import SlotLedger
from lightllm_server.router.step_builder import PlannedStep
from lightllm_server.router.step_plan import StepPlan, StepResult
from lightllm_server.router.validation import find_fault

__all__ = ["Scheduler", "SchedulerConfig"]

logger = logging.getLogger(__name__)

_NO_IDS: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """num_slots: usable KV slots. max_rows: rows of the request table. max_batch_tokens: tokens per
    step.

    max_req_total_len: prompt and output of one request.
    steps_ahead: plans that may be waiting for their result when another is made.
    """

    num_slots: int
    max_rows: int
    max_batch_tokens: int
    max_req_total_len: int
    eos_ids: frozenset[int]
    vocab_size: int
    steps_ahead: int = 1


class Scheduler(SchedulerStatus):
    """Owned by one thread. User input never raises; an AssertionError is a bug."""

    def __init__(
        self,
        config: SchedulerConfig,
        policy: AdmissionPolicy,
        *,
        prefix_cache: PrefixCache | None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.config = config
        self._clock = clock
        self._policy = policy
        self._rows = RowTable(config.max_rows, config.max_req_total_len)
        ledger = SlotLedger(KvSlots(config.num_slots), self._rows, prefix_cache)
        super().__init__(WaitingQueue(), RunningSet(ledger))
        self._prefill = self._running.prefill
        self._scan = AdmissionScan(
            self._queue, self._ledger, policy, max_batch_tokens=config.max_batch_tokens
        )
        # all requests that have not ended, waiting or running
        self._requests: dict[int, Request] = {}
        # requests of a failed step, until a step of their own has succeeded
        self._suspects: list[Request] = []
        self._in_flight: deque[PlannedStep] = deque()
        self._due = Events()
        self._next_step = 0

    # ------------------------------------------------------------ messages in

    def add(self, message: Generate) -> None:
        """Queue a request; a bad one ends as "failed", naming field, value and bound."""
        if message.request_id in self._requests:
            logger.warning("request id %s is in use already; message ignored", message.request_id)
            self.ignored_total += 1
            return
        config, sampling = self.config, message.sampling
        prompt = np.array(message.prompt_ids, dtype=np.int64)
        fault = find_fault(
            message,
            prompt,
            max_len=config.max_req_total_len,
            num_slots=config.num_slots,
            max_rows=config.max_rows,
            vocab_size=config.vocab_size,
        )
        eos_ids = _NO_IDS if sampling.ignore_eos else config.eos_ids
        request = Request(
            message,
            order=self.accepted_total,
            prompt=prompt.astype(np.int32),
            limit=min(sampling.max_new_tokens, config.max_req_total_len - len(prompt)),
            # most share one set, which stays in the processor's cache
            stop_ids=eos_ids.union(sampling.stop_token_ids) if sampling.stop_token_ids else eos_ids,
        )
        self.accepted_total += 1
        self._requests[request.request_id] = request
        self._queue.append(request)
        if fault:
            self._end(request, "failed", self._due, error=fault)
        else:
            # an empty queue has no head that could have been refused
            self._scan.open |= len(self._queue) == 1

    def abort(self, request_id: int) -> None:
        """End a request, waiting or running, and free all it holds."""
        request = self._requests.get(request_id)
        if request is None:
            self.unknown_aborts_total += 1
            return
        self._end(request, "aborted", self._due)

    def stop_choice(self, request_id: int, choice: int) -> None:
        """A stop string ended this choice: it is over, whatever is in flight."""
        request = self._requests.get(request_id)
        known = request is not None and choice < len(request.choices)
        stopped = request.choices[choice] if request is not None and known else None
        # without a token there is no text that could have matched
        num_outputs = self._rows.num_outputs(stopped) if stopped else 0
        if stopped is None or stopped.ended or not num_outputs:
            self.ignored_total += 1
            return
        self._policy.observe(num_outputs)
        self._end_choice(stopped, self._due)

    def fail(self, request_ids: Iterable[int], error: str) -> None:
        """End these requests as "failed"; `error` may be shown to the client."""
        for request_id in request_ids:
            if request := self._requests.get(request_id):
                self._end(request, "failed", self._due, error=error, keep=False)

    def abandon(self, plans: Sequence[StepPlan]) -> None:
        """All steps in flight, oldest first, will have no result, because the first of them failed.

        What they were to compute is forgotten, and their requests wait again. A request that was
        alone in the failed step ends as "failed"; several run again one by one, to find the
        culprit.
        """
        assert [step.plan.step for step in self._in_flight] == [plan.step for plan in plans]
        steps = list(self._in_flight)
        self._in_flight.clear()
        if not steps:
            return
        purged = self._ledger.purge({step.plan.step for step in steps})
        involved = {request for step in steps for request in step.requests}
        suspects = sorted(steps[0].requests & set(self._requests.values()), key=_order)
        for request in reversed(self._running.oldest_first()):
            built_on = any(self._ledger.tree.leads_through(c.node, purged) for c in request.live)
            if built_on or request in involved:
                self._requeue(request)
        if len(suspects) == 1:
            self._end(suspects[0], "failed", self._due, error="the model failed on this request")
        else:
            self._suspects = sorted({*self._suspects, *suspects}, key=_order)

    def foresee_peak(self) -> int:
        """Slots that the running requests will need at their worst moment, by the policy."""
        return self._scan.peak()

    # ------------------------------------------------------------ steps

    def plan(self) -> StepPlan | None:
        """The next step to launch; None if only a message or a result can bring work."""
        if len(self._in_flight) > self.config.steps_ahead:
            return None
        alone = self._suspects[0] if self._suspects else None
        decode_rows, preempted = self._room_for_decode(alone)
        if alone is None:
            # those preempted just now shall not come back at once
            if not preempted:
                self._admit(self.config.max_batch_tokens - len(decode_rows))
        elif alone in self._queue:
            self._admit_alone(alone)
        chunks = self._choose_chunks(len(decode_rows), alone)
        if not chunks and not len(decode_rows):
            if self._in_flight or not self._prefill:
                return None
            chunks = self._free_for_prefill(alone)
        step = self._running.take_step(self._next_step, chunks, decode_rows)
        # chunks change what can be shared, and what is still to be prefilled
        self._scan.open |= bool(chunks)
        self._in_flight.append(step)
        self._next_step += 1
        return step.plan

    def commit(self, plan: StepPlan, result: StepResult) -> TokenBatch:
        """Take the result of the oldest step in flight; returns what it brings for detok."""
        step = self._in_flight.popleft()
        assert step.plan is plan, f"result of step {plan.step}, expected {step.plan.step}"
        lens = len(result.token_ids), len(result.logprobs)
        assert lens == (len(step.samples), len(step.samples)), (lens, plan.step)
        for index, part in sorted(result.prompt_logprobs.items()):
            request = step.chunks[index].request
            if request.prompt_logprobs_due:
                request.prompt_logprobs.append(part)
        events = Events()
        self._take_tokens(step, result, events)
        if self._suspects:
            # a step of its own has brought a token: not the culprit
            self._suspects = [r for r in self._suspects if not self._running.has_decoded(r)]
        return events.batch()

    def take_events(self) -> TokenBatch | None:
        """What is due without a step: ends of refused, aborted, stopped, failed requests."""
        if not self._due:
            return None
        due, self._due = self._due, Events()
        return due.batch()

    # ------------------------------------------------------------ checks

    def check_invariants(self) -> None:
        """Compare all books with each other.

        Raises:
            AssertionError: with the values that disagree.
        """
        self._running.check_invariants()
        waiting = {request.request_id for request in self._queue}
        running = {request.request_id for request in self._running}
        assert not waiting & running, "a request both waits and runs"
        assert waiting | running == self._requests.keys(), "a request got lost"
        num_preempted = sum(request.preempted for request in self._queue)
        assert num_preempted == self._queue.num_preempted, (num_preempted, self._queue)
        num_tokens = sum(len(request.prompt) for request in self._queue)
        assert num_tokens == self._queue.num_tokens, (num_tokens, self._queue.num_tokens)

    # ------------------------------------------------------------ room and admission

    def _room_for_decode(self, alone: Request | None) -> tuple[IntArray, bool]:
        """The rows to decode, a slot for each; whether any request was preempted for it."""
        preempted = False
        while True:
            decode_rows = np.flatnonzero(self._rows.decodable)
            if alone is not None:
                decode_rows = decode_rows[np.isin(decode_rows, [c.row for c in alone.live])]
            if len(decode_rows) <= self._ledger.num_available:
                return decode_rows, preempted
            self._preempt_youngest(alone)
            preempted = True

    def _free_for_prefill(self, alone: Request | None) -> list[tuple[Choice, int]]:
        """Preempt until a prefill can go on that nothing else will make room for."""
        while True:
            self._preempt_youngest(alone)
            if chunks := self._choose_chunks(0, alone):
                return chunks

    def _preempt_youngest(self, spared: Request | None) -> None:
        """Make room; the oldest request, or the one spared, stays."""
        others = self._running.oldest_first()[spared is None :]
        victims = [request for request in others if request is not spared]
        assert victims, "a lone request must fit: that was checked when it was added"
        logger.info("request %s preempted: the KV cache is full", victims[-1].request_id)
        victims[-1].num_preemptions += 1
        self._requeue(victims[-1])
        self.preempted_total += 1

    def _requeue(self, request: Request) -> None:
        """Back to the head of the queue; what is certain of its KV may stay as cache."""
        for choice in request.live:
            choice.computed = max(choice.computed, int(self._rows.lengths[choice.row]))
        self._running.remove(request, keep=True)
        request.preempted = True
        request.resume_after = self._next_step - 1
        self._queue.put_first(request)
        self._scan.open = True

    def _admit(self, budget: int) -> None:
        oldest_step = self._in_flight[0].plan.step if self._in_flight else self._next_step
        for request, node in self._scan.choose(budget, self._prefill, oldest_step):
            self._start(request, node)

    def _admit_alone(self, request: Request) -> None:
        """Start a suspect, whatever has to give way for it; its tokens in flight are waited for."""
        if self._in_flight and self._in_flight[0].plan.step <= request.resume_after:
            return
        while True:
            node = self._scan.candidate(request)
            enough_rows = len(request.live) <= self._rows.num_free
            if not self._running or (enough_rows and self._scan.fits([(request, node)])):
                self._start(request, node)
                return
            self._requeue(self._running.oldest_first()[-1])

    def _start(self, request: Request, node: Node) -> None:
        """From the queue to the rows."""
        self._queue.remove(request)
        request.preempted = False
        request.prompt_logprobs = []
        if not request.started_ns:
            request.started_ns = self._clock()
            request.cached_tokens = node.end
            self.count_start(request, node.end)
        self._running.start(request, node)

    def _choose_chunks(self, num_decode: int, alone: Request | None) -> list[tuple[Choice, int]]:
        """Which rows prefill how many tokens beside the decode rows."""
        room = min(self.config.max_batch_tokens, self._ledger.num_available) - num_decode
        return self._prefill.split(room, alone)

    # ------------------------------------------------------------ results and ends

    def _take_tokens(self, step: PlannedStep, result: StepResult, events: Events) -> None:
        """Note each token. Most neither open nor end anything: these are taken as arrays."""
        plan, token_ids = step.plan, np.array(result.token_ids, dtype=np.int64)
        table, tops = self._rows, result.tops
        amid = table.are_amid(plan.sample_rows, step.keys, plan.sample_out_lens)
        for eos_id in self.config.eos_ids:
            amid &= token_ids != eos_id
        for i in np.flatnonzero(amid & table.own_stops[plan.sample_rows]).tolist():
            amid[i] = result.token_ids[i] not in step.samples[i].stop_ids
        rows, ids = plan.sample_rows[amid], token_ids[amid]
        table.add_tokens(rows, ids)
        columns: list[Iterable[Any]] = [
            table.request_ids[rows].tolist(),
            table.indices[rows].tolist(),
            ids.tolist(),
            compress(result.logprobs, amid.tolist()),
        ]
        if tops:
            columns += [repeat(None), repeat(False)]
            columns.append(tops.get(i, ()) for i in np.flatnonzero(amid).tolist())
        events.tokens.extend(map(SampledToken, *columns))
        for i in np.flatnonzero(~amid).tolist():
            self._take_token(step, i, result, events)
        self.generated_tokens_total += len(events.tokens)

    def _take_token(self, step: PlannedStep, i: int, result: StepResult, events: Events) -> None:
        """Note token i, whatever it is: its request's first, its choice's last."""
        choice, token = step.samples[i], result.token_ids[i]
        if choice.ended:
            self.overrun_tokens_total += 1
            return
        if choice.row >= 0:
            self._rows.add_token(choice.row, token)
        else:
            choice.output_ids.append(token)
        count = int(step.plan.sample_out_lens[i]) + 1
        if not choice.request.opened:
            events.opened.append(choice.request.open())
        stops = token in choice.stop_ids
        reason: FinishReason | None = "stop" if stops else None
        if count >= choice.limit and not stops:
            reason = "length"
        ids, tops = (choice.request_id, choice.index), result.tops.get(i, ())
        events.tokens.append(SampledToken(*ids, token, result.logprobs[i], reason, stops, tops))
        if stops:
            self._policy.observe(count)
        if reason:
            self._end_choice(choice, events)

    def _end_choice(self, choice: Choice, events: Events) -> None:
        """Free what the choice holds; the last one ends the request."""
        request = choice.request
        if choice.row >= 0:
            self._running.release(choice, keep=True)
        choice.ended = True
        self._scan.open = True
        live = request.live
        if not live:
            self._end(request, "finished", events)
        elif request in self._running and all(c.node is None for c in live):
            # its siblings waited for the prompt that it was computing again
            self._requeue(request)

    def _end(
        self,
        request: Request,
        outcome: Outcome,
        events: Events,
        *,
        error: str = "",
        keep: bool = True,
    ) -> None:
        """The one terminal word. `keep`: what it computed may stay as cache."""
        if request in self._running:
            self._running.remove(request, keep=keep)
        else:
            self._queue.remove(request)
        for choice in request.live:
            choice.ended = True
        del self._requests[request.request_id]
        if request in self._suspects:
            self._suspects.remove(request)
        if not request.opened:
            events.opened.append(request.open())
        events.ended.append(
            Ended(request.request_id, outcome, error, request.cached_tokens, request.started_ns)
        )
        # no cycles: what is over must not wait for the garbage collector
        request.choices = []
        self.count_end(request, outcome)
        self._scan.open = True


def _order(request: Request) -> int:
    return request.order
