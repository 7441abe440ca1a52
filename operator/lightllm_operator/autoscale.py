"""How many pods a queue needs: Little's law on what the pods' routers report. Pure.

Scale-up is absolute, not a ratio of the present count, so that pods that still load do not cascade;
missing samples never count as an empty queue.

    lam  arrivals per second, S  seconds of service per request without its queue time
    B    requests that one pod runs at once, q  waiting, r  running, T  target, N  pods now
    up   = ceil((lam·S + q·S/H) / 0.9 B)   if q/N > T(1+tol)
    up   = N+1 at least, then, if no pod loads and none has room
    up   = ceil((q + r) / (B + T))   while lam or S is unknown
    up   = N+1   if the KV caches are full and lam·S > 0.9 B·N: before a queue forms
    down = ceil((q + r + missing·(B+T)) / 0.8 B), at least 1   if q/N < T(1-tol)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeAlias

from lightllm_operator.spec import AutoscalingSpec, ScaleRule

__all__ = ["Decision", "History", "PodSample", "decide"]

_ARRIVALS_WINDOW_S = 60.0
_SERVICE_WINDOW_S = 300.0
_DRAIN_HORIZON_S = 300.0
_BUSY_UP = 0.9
_BUSY_DOWN = 0.8
_FULL_KV = 0.9


# each entry begins with its time
_Timed: TypeAlias = deque[tuple[float, int]] | deque[tuple[float, float, float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSample:
    """One scrape of one Ready pod; counters since its start, service in seconds.

    kv_dtype, kv_reason: of its KV cache; "" where a server of an earlier version does not say.
    """

    pod: str
    waiting: int
    running: int
    max_running: int
    kv_usage: float
    accepted_total: float
    rejected_total: float
    service_seconds_total: float
    service_count_total: float
    kv_dtype: str = ""
    kv_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """replicas: to run. held: why the count was kept for want of facts, or "". limited: a reason of
    ScalingLimited, or ""."""

    replicas: int
    waiting: int = 0
    running: int = 0
    capacity: float = 0.0
    reason: str = ""
    held: str = ""
    limited: str = ""


@dataclass(slots=True)
class History:
    """What one resource's scaler remembers; lost with the operator, so a window without scale-down
    follows its start. Times are monotonic seconds."""

    started: float
    # (time, wanted): for the stabilisation windows
    wanted: deque[tuple[float, int]] = field(default_factory=deque)
    # (time, change of the count) as it was seen to happen: what is decided may come later or never
    changes: deque[tuple[float, int]] = field(default_factory=deque)
    replicas: int | None = None
    # (time, arrivals, seconds of service, services ended) since the scrape before
    flows: deque[tuple[float, float, float, float]] = field(default_factory=deque)
    # (time, running) of pods that had a queue: they are full
    full: deque[tuple[float, int]] = field(default_factory=deque)
    last: dict[str, PodSample] = field(default_factory=dict)

    def take(self, samples: Sequence[PodSample], now: float, missing: Collection[str] = ()) -> None:
        """Note a round of scrapes; missing: pods of which a later one will tell what came since."""
        arrivals = seconds = count = 0.0
        for sample in samples:
            before = self.last.get(sample.pod)
            if before is not None and sample.accepted_total >= before.accepted_total:
                arrivals += sample.accepted_total - before.accepted_total
                arrivals += max(0.0, sample.rejected_total - before.rejected_total)
                seconds += max(0.0, sample.service_seconds_total - before.service_seconds_total)
                count += max(0.0, sample.service_count_total - before.service_count_total)
            if sample.waiting > 0:
                self.full.append((now, sample.running))
        kept = {pod: sample for pod, sample in self.last.items() if pod in missing}
        self.last = kept | {sample.pod: sample for sample in samples}
        self.flows.append((now, arrivals, seconds, count))
        _forget(self.flows, now - _SERVICE_WINDOW_S)
        _forget(self.full, now - _ARRIVALS_WINDOW_S)

    def arrival_rate(self, now: float) -> float | None:
        """Requests per second over a minute; None before there are two scrapes."""
        recent = [flow for flow in self.flows if flow[0] > now - _ARRIVALS_WINDOW_S]
        if len(recent) < 2:
            return None
        # the first one's arrivals came before it
        return sum(flow[1] for flow in recent[1:]) / (recent[-1][0] - recent[0][0])

    def service_seconds(self) -> float | None:
        """Mean seconds of service over five minutes; None if nothing ended."""
        count = sum(flow[3] for flow in self.flows)
        return sum(flow[2] for flow in self.flows) / count if count else None

    def busy(self, now: float) -> float | None:
        """Requests that would run at once without a queue; None before that can be known."""
        rate, seconds = self.arrival_rate(now), self.service_seconds()
        return None if rate is None or seconds is None else rate * seconds

    def capacity(self, samples: Sequence[PodSample]) -> float:
        """Requests that one pod runs at once, at least 1."""
        if self.full:
            return max(1.0, median(running for _, running in self.full))
        most = max(sample.max_running for sample in samples)
        used = [s.running / s.kv_usage for s in samples if s.kv_usage > 0 and s.running]
        return max(1.0, min([float(most), *used]))


def decide(
    spec: AutoscalingSpec,
    samples: Sequence[PodSample],
    *,
    missing: Collection[str],
    num_starting: int,
    replicas: int,
    history: History,
    now: float,
    blocked: str = "",
) -> Decision:
    """The count to run. samples: of Ready pods that answered; missing: Ready ones that did not.

    num_starting: pods of the newest revision that are not Ready. replicas: the count now.
    blocked: why no further pod would start, a reason of ScalingLimited, or "".
    """
    low, high = spec.min_replicas, spec.max_replicas
    if not samples:
        held = "MetricsUnavailable" if replicas else ""
        return Decision(
            replicas=min(max(replicas, low), high), held=held, reason="no pod reported its queue"
        )
    history.take(samples, now, missing)
    if history.replicas is not None and history.replicas != replicas:
        history.changes.append((now, replicas - history.replicas))
    history.replicas = replicas
    waiting = sum(sample.waiting for sample in samples)
    running = sum(sample.running for sample in samples)
    capacity = history.capacity(samples)
    target, tolerance = spec.target_queue_depth, spec.tolerance_percent / 100
    depth = waiting / max(replicas, 1)
    wanted, reason = replicas, f"{waiting} requests wait, within the target of {target} per pod"
    if depth > target * (1 + tolerance) and (not num_starting or waiting > 2 * target * replicas):
        wanted = max(replicas, _up(waiting, running, capacity, target, history, now))
        # a pod with room takes what arrives, and a queue stays where it is: one more would not help
        if not num_starting and running >= _BUSY_UP * capacity * len(samples):
            wanted = max(wanted, replicas + 1)
        reason = f"{waiting} requests wait for {replicas} pods, more than {target} each"
    elif depth > target * (1 + tolerance):
        reason = f"{waiting} requests wait, more than {target} per pod, and a pod loads already"
    elif depth < target * (1 - tolerance):
        load = waiting + running + len(missing) * (capacity + target)
        # the first request must not change what is wanted
        wanted = min(replicas, max(1, math.ceil(load / (_BUSY_DOWN * capacity))))
        reason = f"{waiting} requests wait and {running} run, {wanted} pods are enough"
    usage = sum(sample.kv_usage for sample in samples) / len(samples)
    if usage > _FULL_KV and not num_starting and wanted <= replicas:
        busy = history.busy(now)
        if busy is None or busy > _BUSY_UP * capacity * replicas:
            wanted, reason = replicas + 1, f"the KV caches are {usage:.0%} full"
    bounded = min(max(wanted, low), high)
    history.wanted.append((now, bounded))
    given, limited = _smooth(spec, bounded, replicas, history, now)
    if blocked and given > replicas:
        given, limited = replicas, blocked
    elif given == bounded != wanted:
        limited = "TooManyReplicas" if wanted > high else "TooFewReplicas"
    held = ""
    if bounded < replicas and now - history.started < spec.scale_down.stabilization_window_seconds:
        held = "StartupHold"
    return Decision(
        replicas=given,
        waiting=waiting,
        running=running,
        capacity=capacity,
        reason=reason,
        held=held,
        limited=limited,
    )


def _up(
    waiting: int, running: int, capacity: float, target: int, history: History, now: float
) -> int:
    busy, seconds = history.busy(now), history.service_seconds()
    if busy is None or seconds is None:
        return math.ceil((waiting + running) / (capacity + target))
    drained = waiting * seconds / _DRAIN_HORIZON_S
    return math.ceil((busy + drained) / (_BUSY_UP * capacity))


def _smooth(
    spec: AutoscalingSpec, wanted: int, replicas: int, history: History, now: float
) -> tuple[int, str]:
    """Windows, then rates: the count to give, and whether a rate held it back."""
    longest = max(
        spec.scale_up.stabilization_window_seconds, spec.scale_down.stabilization_window_seconds
    )
    _forget(history.wanted, now - longest)
    low, high = spec.min_replicas, spec.max_replicas
    if not low <= replicas <= high:
        # the bounds were edited: they hold at once
        return min(max(replicas, low), high), ""
    if wanted > replicas:
        up = min(_since(history, now - spec.scale_up.stabilization_window_seconds))
        return _limit(max(up, replicas), replicas, spec.scale_up, history, now)
    if wanted < replicas:
        window = spec.scale_down.stabilization_window_seconds
        if now - history.started < window:
            return replicas, ""
        down = max(_since(history, now - window))
        return _limit(min(down, replicas), replicas, spec.scale_down, history, now)
    return replicas, ""


def _since(history: History, start: float) -> list[int]:
    # the newest one always counts
    return [wanted for at, wanted in history.wanted if at >= start] or [history.wanted[-1][1]]


def _limit(
    wanted: int, replicas: int, rule: ScaleRule, history: History, now: float
) -> tuple[int, str]:
    _forget(history.changes, now - max(rule.period_seconds, 1800))
    step = wanted - replicas
    if step == 0:
        return replicas, ""
    sign = 1 if step > 0 else -1
    recent = sum(
        abs(change)
        for at, change in history.changes
        if at > now - rule.period_seconds and change * sign > 0
    )
    # like HPA's default: a pod count may also double
    most = max(rule.max_pods, replicas) if sign > 0 else rule.max_pods
    allowed = max(0, most - recent)
    given = replicas + sign * min(abs(step), allowed)
    return given, "RateLimited" if given != wanted else ""


def _forget(entries: _Timed, before: float) -> None:
    while entries and entries[0][0] < before:
        entries.popleft()
