"""The autoscalers that are compared: the operator's own code, and others' formulas as published.

Each reads the pods without delay, which favours those that read through a metrics pipeline.
"""

from __future__ import annotations

import math
from collections import deque

from service import MAX_PODS, Policy, View

from lightllm_operator.autoscale import History, decide
from lightllm_operator.spec import AutoscalingSpec

__all__ = ["POLICIES"]

_SPEC = AutoscalingSpec(max_replicas=MAX_PODS)
_TARGET = _SPEC.target_queue_depth
_TOLERANCE = _SPEC.tolerance_percent / 100
_DOWN_WINDOW_S = _SPEC.scale_down.stabilization_window_seconds


class Operator:
    """`lightllm_operator.autoscale.decide` with the defaults of the CRD."""

    name = "lightllm-operator"
    period_s = 5.0

    def __init__(self) -> None:
        # the operator has run for a window before
        self._history = History(started=-_DOWN_WINDOW_S)

    def desired(self, view: View) -> int:
        return decide(
            _SPEC,
            view.samples,
            missing=(),
            num_starting=view.num_starting,
            replicas=view.replicas,
            history=self._history,
            now=view.now,
        ).replicas


class Hpa:
    """HorizontalPodAutoscaler, `AverageValue` of the waiting requests, with its default behaviour:
    ceil(sum / target), 10 % tolerance, the highest count of 300 s on the way down, at most
    max(100 %, 4 pods) per 15 s on the way up."""

    name = "HPA, waiting"
    period_s = 15.0

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque()

    def desired(self, view: View) -> int:
        wanted = self._wanted(view)
        self._recent.append((view.now, wanted))
        while self._recent[0][0] < view.now - _DOWN_WINDOW_S:
            self._recent.popleft()
        if wanted > view.replicas:
            return min(wanted, self._most(view.replicas))
        return min(view.replicas, max(count for _, count in self._recent))

    def _wanted(self, view: View) -> int:
        total, target = self._metric(view)
        if abs(total / (target * view.replicas) - 1) <= _TOLERANCE:
            return view.replicas
        return math.ceil(total / target)

    def _metric(self, view: View) -> tuple[float, float]:
        return sum(sample.waiting for sample in view.samples), _TARGET

    def _most(self, replicas: int) -> int:
        return replicas + max(replicas, 4)


class HpaOnLoad(Hpa):
    """HPA on waiting + running requests; the target is 80 % of what a pod says that it can run."""

    name = "HPA, waiting + running"

    def _metric(self, view: View) -> tuple[float, float]:
        total = sum(sample.waiting + sample.running for sample in view.samples)
        return total, 0.8 * view.samples[0].max_running


class Keda(Hpa):
    """KEDA with `useCachedMetrics`: HPA on a value that is read every 30 s (pollingInterval)."""

    name = "KEDA, waiting"

    def __init__(self) -> None:
        super().__init__()
        self._read_at = -math.inf
        self._value = 0.0

    def _metric(self, view: View) -> tuple[float, float]:
        if view.now - self._read_at >= 30.0:
            self._read_at, self._value = view.now, super()._metric(view)[0]
        return self._value, _TARGET


class Ratio(Hpa):
    """count x mean queue of the Ready pods / target, as in Knative's KPA and AIBrix's APA: every
    10 s, at most doubled, the highest count of 300 s on the way down."""

    name = "ratio x count"
    period_s = 10.0

    def _wanted(self, view: View) -> int:
        mean = sum(sample.waiting for sample in view.samples) / len(view.samples)
        ratio = mean / _TARGET
        return view.replicas if abs(ratio - 1) <= _TOLERANCE else math.ceil(view.replicas * ratio)

    def _most(self, replicas: int) -> int:
        return 2 * replicas


POLICIES: tuple[type[Policy], ...] = (Operator, Hpa, HpaOnLoad, Keda, Ratio)
