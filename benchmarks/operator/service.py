"""A simulated inference service: pods with a queue each, arrivals, a policy that sets the count.

A request stays in the queue of the pod it was sent to. A pod runs up to `capacity` requests at
once; a new one loads for `load_s` before it is Ready; one that goes takes no new requests and has
`DRAIN_S` to end those it holds. Not simulated: slower decoding in fuller batches, failing pods,
delayed or missing metrics.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from lightllm_operator.autoscale import PodSample

__all__ = ["DURATION_S", "MAX_PODS", "Outcome", "Policy", "Profile", "Spreading", "View", "run"]

DURATION_S = 7200.0
MAX_PODS = 12
SERVICE_S = 21.0
DRAIN_S = 120.0
_TRACE_S = 15.0

Spreading = Literal["least-loaded", "random"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """rate: requests/s at a second of the run, never above `peak`. capacity: requests that a pod
    can run at once; max_running: what it says of itself, which is more where the KV cache binds."""

    name: str
    rate: Callable[[float], float]
    peak: float
    load_s: float = 240.0
    capacity: int = 16
    max_running: int = 16


@dataclass(frozen=True, kw_only=True)
class View:
    """What a policy sees. replicas: the count it has set; samples: of the Ready pods."""

    now: float
    replicas: int
    samples: list[PodSample]
    num_starting: int


class Policy(Protocol):
    """One autoscaler; asked every `period_s`."""

    name: str
    period_s: float

    def desired(self, view: View) -> int: ...


@dataclass
class Outcome:
    """waits: seconds in a queue, of those that wait at the end too. unfinished: they. cut: running
    when their pod's drain time was over. trace: (second, waiting, ready, desired)."""

    waits: list[float] = field(default_factory=list)
    pod_seconds: float = 0.0
    peak: int = 1
    flips: int = 0
    unfinished: int = 0
    cut: int = 0
    trace: list[tuple[float, int, int, int]] = field(default_factory=list)


@dataclass(eq=False)
class _Pod:
    name: str
    created: float
    ready: bool = False
    draining: bool = False
    gone: bool = False
    running: int = 0
    # (arrival, seconds of service)
    queue: deque[tuple[float, float]] = field(default_factory=deque)
    accepted: int = 0
    served: int = 0
    served_s: float = 0.0

    @property
    def load(self) -> int:
        return self.running + len(self.queue)


class _Service:
    def __init__(self, profile: Profile, policy: Policy, spreading: Spreading, seed: int) -> None:
        self.profile, self.policy, self.spreading = profile, policy, spreading
        self.arrivals, self.choices = random.Random(seed), random.Random(seed + 1)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.names = itertools.count()
        self.now = 0.0
        self.pods: list[_Pod] = []
        self.desired = 1
        self.last_direction = 0
        self.outcome = Outcome()

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), what))

    def run(self) -> Outcome:
        self._create(load_s=0.0)
        # a random phase: arrivals know nothing of the policy's period
        self.at(self.choices.uniform(0.0, self.policy.period_s), self._decide)
        self.at(0.0, self._trace)
        self._next_arrival()
        while self.events and self.events[0][0] < DURATION_S:
            self.now, _, event = heapq.heappop(self.events)
            event()
        self.now = DURATION_S
        for pod in self.pods:
            self.outcome.pod_seconds += self.now - pod.created
            self.outcome.unfinished += len(pod.queue)
            self.outcome.waits += [self.now - arrived for arrived, _ in pod.queue]
        return self.outcome

    # ------------------------------------------------------------ requests

    def _next_arrival(self) -> None:
        """Poisson arrivals of a changing rate, by thinning."""
        when = self.now
        while True:
            when += self.arrivals.expovariate(self.profile.peak)
            if self.arrivals.random() * self.profile.peak < self.profile.rate(when):
                break
        # mean SERVICE_S; the length of an answer is bounded, and so is its time
        service = min(self.arrivals.gammavariate(2.0, SERVICE_S / 2), 5 * SERVICE_S)
        self.at(when, lambda: self._arrive(service))

    def _arrive(self, service: float) -> None:
        open_pods = [pod for pod in self.pods if pod.ready and not pod.draining]
        if self.spreading == "random":
            pod = self.choices.choice(open_pods)
        else:
            least = min(pod.load for pod in open_pods)
            pod = self.choices.choice([pod for pod in open_pods if pod.load == least])
        pod.accepted += 1
        pod.queue.append((self.now, service))
        self._start(pod)
        self._next_arrival()

    def _start(self, pod: _Pod) -> None:
        while pod.queue and pod.running < self.profile.capacity:
            arrived, service = pod.queue.popleft()
            self.outcome.waits.append(self.now - arrived)
            pod.running += 1
            self.at(self.now + service, partial(self._finish, pod, service))

    def _finish(self, pod: _Pod, service: float) -> None:
        if pod.gone:
            return
        pod.running -= 1
        pod.served += 1
        pod.served_s += service
        self._start(pod)
        if pod.draining and not pod.load:
            self._remove(pod)

    # ------------------------------------------------------------ pods

    def _create(self, load_s: float) -> None:
        pod = _Pod(name=f"p{next(self.names)}", created=self.now)
        self.pods.append(pod)
        if load_s:
            self.at(self.now + load_s, lambda: setattr(pod, "ready", True))
        else:
            pod.ready = True

    def _drain(self, pod: _Pod) -> None:
        pod.draining = True
        if pod.load:
            self.at(self.now + DRAIN_S, lambda: self._remove(pod))
        else:
            self._remove(pod)

    def _remove(self, pod: _Pod) -> None:
        if pod.gone:
            return
        pod.gone = True
        self.outcome.cut += pod.running
        self.outcome.unfinished += len(pod.queue)
        self.outcome.waits += [self.now - arrived for arrived, _ in pod.queue]
        self.outcome.pod_seconds += self.now - pod.created
        self.pods.remove(pod)

    # ------------------------------------------------------------ scaling

    def _decide(self) -> None:
        staying = [pod for pod in self.pods if not pod.draining]
        view = View(
            now=self.now,
            replicas=self.desired,
            samples=[self._sample(pod) for pod in staying if pod.ready],
            num_starting=sum(not pod.ready for pod in staying),
        )
        wanted = min(max(self.policy.desired(view), 1), MAX_PODS)
        change = wanted - self.desired
        if change:
            direction = int(math.copysign(1, change))
            self.outcome.flips += direction == -self.last_direction
            self.last_direction = direction
            self.outcome.peak = max(self.outcome.peak, wanted)
        for _ in range(change):
            self._create(self.profile.load_s)
        # as a ReplicaSet does: those not Ready first, then by deletion cost, which is their load;
        # the same for each policy, so that only the count differs
        staying.sort(key=lambda pod: (pod.ready, pod.load))
        for pod in staying[: max(-change, 0)]:
            self._drain(pod)
        self.desired = wanted
        self.at(self.now + self.policy.period_s, self._decide)

    def _sample(self, pod: _Pod) -> PodSample:
        # where the KV cache binds it is full at `capacity`, elsewhere half full
        room = self.profile.capacity
        if self.profile.max_running == self.profile.capacity:
            room *= 2
        return PodSample(
            pod=pod.name,
            waiting=len(pod.queue),
            running=pod.running,
            max_running=self.profile.max_running,
            kv_usage=pod.running / room,
            accepted_total=pod.accepted,
            rejected_total=0,
            service_seconds_total=pod.served_s,
            service_count_total=pod.served,
        )

    def _trace(self) -> None:
        ready = sum(pod.ready and not pod.draining for pod in self.pods)
        waiting = sum(len(pod.queue) for pod in self.pods)
        self.outcome.trace.append((self.now, waiting, ready, self.desired))
        self.at(self.now + _TRACE_S, self._trace)


def run(profile: Profile, policy: Policy, spreading: Spreading, seed: int) -> Outcome:
    """Two hours of the profile, from one Ready pod; the same arrivals for each policy."""
    return _Service(profile, policy, spreading, seed).run()
