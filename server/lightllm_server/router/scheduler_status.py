"""What the scheduler has done so far, and what it holds now: for the status page and benchmarks."""

from __future__ import annotations

from lightllm_server.router.queue import WaitingQueue
from lightllm_server.router.request import Request
from lightllm_server.router.running_set import RunningSet

__all__ = ["SchedulerStatus"]


class SchedulerStatus:
    """Base of the scheduler: totals since the start, and gauges. Requests, unless the name says
    more.

    admitted_total: first admissions, not resumptions; admitted_tokens_total: their prompt tokens.
    ended_unstarted_total: ended in the queue without ever being admitted; likewise their tokens.
    unknown_aborts_total, ignored_total: aborts, and stops or requests, of an id that does not fit.
    prefix_query_tokens_total, prefix_hit_tokens_total: prompt tokens looked up in the prefix cache
    at first admissions, and found. overrun_tokens_total: sampled for a choice that had ended.
    """

    def __init__(self, queue: WaitingQueue, running: RunningSet) -> None:
        self._queue = queue
        self._running = running
        self._ledger = running.ledger
        self.accepted_total = 0
        self.admitted_total = 0
        self.admitted_tokens_total = 0
        self.ended_unstarted_total = 0
        self.ended_unstarted_tokens_total = 0
        self.finished_total = 0
        self.aborted_total = 0
        self.failed_total = 0
        self.unknown_aborts_total = 0
        self.ignored_total = 0
        self.preempted_total = 0
        self.prefix_query_tokens_total = 0
        self.prefix_hit_tokens_total = 0
        self.generated_tokens_total = 0
        self.overrun_tokens_total = 0

    @property
    def prompt_tokens_total(self) -> int:
        """Prompt tokens of the requests that were admitted."""
        return self.admitted_tokens_total

    @property
    def recomputed_tokens_total(self) -> int:
        """Positions prefilled again after a preemption."""
        return self._running.recomputed_tokens_total

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, the preempted ones included."""
        return len(self._queue)

    @property
    def num_preempted_waiting(self) -> int:
        return self._queue.num_preempted

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of the requests in the queue."""
        return self._queue.num_tokens

    @property
    def num_running(self) -> int:
        """Requests that hold rows."""
        return len(self._running)

    @property
    def num_running_rows(self) -> int:
        return self._ledger.rows.num_active

    @property
    def slots_total(self) -> int:
        return self._ledger.slots.num_slots

    @property
    def slots_used(self) -> int:
        """Slots that requests hold; cached prefixes that nobody holds are not used."""
        return self._ledger.slots.num_slots - self._ledger.num_available

    @property
    def slots_cached(self) -> int:
        """Slots of cached prefixes that nobody holds: they can be evicted."""
        return self._ledger.tree.num_evictable

    def count_start(self, request: Request, cached_tokens: int) -> None:
        """A request was admitted for the first time."""
        self.admitted_total += 1
        self.admitted_tokens_total += len(request.prompt)
        self.prefix_query_tokens_total += len(request.prompt)
        self.prefix_hit_tokens_total += cached_tokens

    def count_end(self, request: Request, outcome: str) -> None:
        """A request is over."""
        self.finished_total += outcome == "finished"
        self.aborted_total += outcome == "aborted"
        self.failed_total += outcome == "failed"
        if not request.started_ns:
            self.ended_unstarted_total += 1
            self.ended_unstarted_tokens_total += len(request.prompt)
