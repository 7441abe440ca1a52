"""Whether one more request may wait: bounded by count and by tokens, decided before any work.

Waiting = accepted by the api and not running, read from the status page: nobody is asked.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass

from lightllm_server.config import RouterConfig
from lightllm_server.errors import OverloadedError, RequestError
from lightllm_server.status_page import Field, StatusRow

__all__ = ["Admission", "Queue", "ServiceRate", "read_queue"]

_RATE_WINDOW_S = 30.0
_MAX_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class Queue:
    """Requests accepted and not running, and the prompt tokens of those that never ran."""

    num_requests: int
    num_tokens: int


def read_queue(api: StatusRow, router: StatusRow) -> Queue:
    """The queue at this moment, from both rows.

    The router's counters are read first: what it counts as started was accepted before.
    """
    started = router[Field.STARTED] + router[Field.ENDED_UNSTARTED]
    started_tokens = router[Field.STARTED_TOKENS] + router[Field.ENDED_UNSTARTED_TOKENS]
    preempted = router[Field.PREEMPTED_WAITING]
    return Queue(
        max(0, api[Field.ACCEPTED] - started + preempted),
        max(0, api[Field.ACCEPTED_TOKENS] - started_tokens),
    )


class ServiceRate:
    """Requests that ended per second, over the last half minute."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=10_000)

    def ended(self) -> None:
        self._ends.append(time.monotonic())

    def per_second(self) -> float:
        """0 when nothing ended lately."""
        now = time.monotonic()
        while self._ends and self._ends[0] < now - _RATE_WINDOW_S:
            self._ends.popleft()
        if not self._ends:
            return 0.0
        return len(self._ends) / max(1.0, now - self._ends[0])


class Admission:
    """Refuses with 429 and Retry-After what would wait beyond the bounds."""

    def __init__(
        self, config: RouterConfig, api: StatusRow, router: StatusRow, rate: ServiceRate
    ) -> None:
        self._config = config
        self._api = api
        self._router = router
        self._rate = rate
        self._num_preparing = 0

    def queue(self) -> Queue:
        return read_queue(self._api, self._router)

    def check_count(self, num_requests: int = 1) -> None:
        """Before any work on them; raises OverloadedError, or RequestError for what never fits."""
        limit = self._config.max_queued_requests
        if num_requests > limit:
            raise RequestError(
                f"prompt: got {num_requests} prompts, must be at most {limit}, which is how many "
                "requests may wait",
                field="prompt",
            )
        waiting = self.queue().num_requests + self._num_preparing
        if waiting + num_requests > limit:
            raise self._refusal(f"{waiting} requests wait, at most {limit} may", waiting)

    def check_tokens(self, num_tokens: int) -> None:
        """Once the prompt's length is known; raises OverloadedError.

        A request that finds nobody waiting is let in whatever its length, or it could never run.
        """
        queue = self.queue()
        limit = self._config.max_queued_tokens
        if queue.num_requests and queue.num_tokens + num_tokens > limit:
            raise self._refusal(
                f"{queue.num_tokens} prompt tokens wait, at most {limit} may", queue.num_requests
            )

    def prepare(self, num_requests: int) -> None:
        """Count requests that are being tokenized; give the number back with its negative."""
        self._num_preparing += num_requests

    def _refusal(self, message: str, waiting: int) -> OverloadedError:
        self._api.add(Field.REJECTED_429)
        rate = self._rate.per_second()
        seconds = math.ceil(waiting / rate) if rate else _MAX_RETRY_AFTER_S
        return OverloadedError(
            f"overloaded: {message}", retry_after=max(1, min(_MAX_RETRY_AFTER_S, seconds))
        )
