"""The real scheduler over a modelled device, in virtual time.

Steps are planned one ahead and end in order, as in the router's process; only the sampled tokens
are made up. The scheduler's own CPU time is measured beside it and takes no virtual time: on a GPU
it overlaps with the step before.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from device import Device
from loads import MAX_TOTAL_LEN, FloatArray, IntArray, Requests

from lightllm_server.messages import Generate, SamplingParams, TokenBatch
from lightllm_server.router import garbage_collector
from lightllm_server.router.admission import AdmissionPolicy
from lightllm_server.router.prefix_cache import PrefixCache
from lightllm_server.router.scheduler import Scheduler, SchedulerConfig
from lightllm_server.router.step_plan import StepPlan, StepResult

__all__ = ["Outcome", "Simulation"]

_EOS_ID, _OTHER_ID, _VOCAB_SIZE = 1, 2, 32000


@dataclass(kw_only=True)
class Outcome:
    """What happened to N requests, [N] each; times in virtual seconds.

    first, last: of the first and the newest token. longest_gap: between two tokens of a request.
    generated: tokens that reached the client. ends: "finished" and the like, one per end told.
    """

    first: FloatArray
    last: FloatArray
    longest_gap: FloatArray
    generated: IntArray
    ends: list[list[str]]
    seconds: float = 0.0
    steps: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    overrun_tokens: int = 0
    max_slots_used: int = 0
    max_rows: int = 0
    busiest_plan: int = 0
    # share of the slots in use, a sample per step
    slots_used: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


class Simulation:
    """One load against one policy; `run` it once."""

    def __init__(
        self,
        requests: Requests,
        policy: AdmissionPolicy,
        device: Device,
        *,
        max_rows: int = 1000,
        max_batch_tokens: int = 8192,
        check: bool = False,
        seed: int = 0,
    ) -> None:
        number = len(requests)
        self._requests = requests
        self._device = device
        self._check = check
        self._rng = np.random.default_rng(seed)
        config = SchedulerConfig(
            num_slots=device.slots,
            max_rows=max_rows,
            max_batch_tokens=max_batch_tokens,
            max_req_total_len=MAX_TOTAL_LEN,
            eos_ids=frozenset({_EOS_ID}),
            vocab_size=_VOCAB_SIZE,
        )
        self._scheduler = Scheduler(
            config, policy, prefix_cache=PrefixCache(), clock=lambda: int(1e9 * self._now) + 1
        )
        self._now = 0.0
        self._device_free = 0.0
        self._arrived = 0
        # plans, the time of their end, and whose tokens they sample
        self._in_flight: deque[tuple[StepPlan, float, IntArray]] = deque()
        # which request has a row, by what its sampling says
        self._row_requests: IntArray = np.zeros(max_rows, dtype=np.int64)
        nothing = np.full(number, np.nan)
        self.outcome = Outcome(
            first=nothing.copy(),
            last=nothing.copy(),
            longest_gap=np.zeros(number),
            generated=np.zeros(number, dtype=np.int64),
            ends=[[] for _ in range(number)],
        )

    def run(self) -> Outcome:
        """Until the last request has ended."""
        garbage_collector.spare_live_objects()
        while self._turn():
            if self._check:
                self._scheduler.check_invariants()
        gc.unfreeze()
        outcome, scheduler = self.outcome, self._scheduler
        outcome.seconds = self._now - float(self._requests.arrivals[0])
        outcome.preemptions = scheduler.preempted_total
        outcome.recomputed_tokens = scheduler.recomputed_tokens_total
        outcome.overrun_tokens = scheduler.overrun_tokens_total
        return outcome

    def _turn(self) -> bool:
        """Arrivals, a plan, the end of the oldest step in flight; False when nothing is left."""
        scheduler, arrivals = self._scheduler, self._requests.arrivals
        while self._arrived < len(arrivals) and arrivals[self._arrived] <= self._now:
            self._add(self._arrived)
            self._arrived += 1
        began = time.thread_time()
        plan = scheduler.plan()
        planned = time.thread_time() - began
        if plan is not None:
            self._launch(plan)
        self._take(scheduler.take_events())
        if self._in_flight and (plan is None or len(self._in_flight) > 1):
            self._commit(planned)
            return True
        if plan is None:
            if self._arrived == len(arrivals):
                return False
            self._now = max(self._now, float(arrivals[self._arrived]))
        return True

    def _add(self, index: int) -> None:
        requests = self._requests
        prompt = self._rng.integers(_OTHER_ID, _VOCAB_SIZE, requests.prompt_lens[index])
        sampling = SamplingParams(
            max_new_tokens=int(requests.limits[index]),
            ignore_eos=requests.ignore_eos,
            # the engine's side knows a request by its seed
            seed=index,
        )
        self._scheduler.add(
            Generate(request_id=index, prompt_ids=tuple(prompt.tolist()), sampling=sampling)
        )

    def _launch(self, plan: StepPlan) -> None:
        """The device takes it up when the step before is done."""
        self._device_free = max(self._device_free, self._now) + self._device.step_s(plan)
        for start in plan.starts:
            self._row_requests[start.row] = start.sampling.seed
        indices = self._row_requests[plan.sample_rows]
        self._in_flight.append((plan, self._device_free, indices))
        outcome, scheduler = self.outcome, self._scheduler
        outcome.steps += 1
        outcome.max_rows = max(outcome.max_rows, scheduler.num_running_rows)
        outcome.max_slots_used = max(outcome.max_slots_used, scheduler.slots_used)
        outcome.busiest_plan = max(outcome.busiest_plan, plan.num_tokens)
        outcome.slots_used.append(scheduler.slots_used / self._device.slots)

    def _commit(self, planned_s: float) -> None:
        plan, self._now, indices = self._in_flight.popleft()
        output_lens = self._requests.output_lens[indices]
        counts = plan.sample_out_lens + 1
        ends = (counts == output_lens) & (not self._requests.ignore_eos)
        token_ids: list[int] = np.where(ends, _EOS_ID, _OTHER_ID).tolist()
        result = StepResult(token_ids=token_ids, logprobs=[-1.0] * len(token_ids))
        garbage_collector.walk_new_objects()
        began = time.thread_time()
        batch = self._scheduler.commit(plan, result)
        self.outcome.cpu_ms.append(1e3 * (time.thread_time() - began + planned_s))
        # what comes after an end is dropped
        self._note_tokens(indices[counts <= output_lens])
        self._take(batch)
        self._take(self._scheduler.take_events())

    def _note_tokens(self, indices: IntArray) -> None:
        """A token of each of these requests is out."""
        outcome = self.outcome
        known = indices[outcome.generated[indices] > 0]
        gaps = self._now - outcome.last[known]
        outcome.longest_gap[known] = np.maximum(outcome.longest_gap[known], gaps)
        new = indices[outcome.generated[indices] == 0]
        outcome.first[new] = self._now
        outcome.last[indices] = self._now
        outcome.generated[indices] += 1

    def _take(self, batch: TokenBatch | None) -> None:
        if batch is not None:
            for ended in batch.ended:
                self.outcome.ends[ended.request_id].append(ended.outcome)
