"""One resource brought through a change by real operators, of which one may be killed on the way."""

from __future__ import annotations

import difflib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster_state import state_of
from crash_proxy import CrashProxy, Fault, Side
from fake_kubelet import ADDRESSES, FakeKubelet, FakeMetrics, Queue
from operator_process import OperatorProcess
from rest import Rest

__all__ = ["CrashRuns", "Outcome", "Scenario", "State"]

State = Mapping[str, list[Any]]

_RESOURCES = "/apis/serving.lightllm.io/v1alpha1/namespaces/{}/lightllmdeployments"
# more than a scrape and a resync of the operators here
_QUIET_S = 0.8
_TIMEOUT_S = 25.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A resource with `spec` is served; then it is changed. Faults strike while it changes.

    edit: merge patch of the resource. queues: of the first pods, before and then. while_down: what
    happens to the resource while no operator runs, or at the end where none was killed; with it, or
    with neither edit nor queues, the change is the resource's creation.
    reached: whether a state can be the end.
    """

    name: str
    spec: dict[str, Any]
    reached: Callable[[State], bool]
    edit: dict[str, Any] | None = None
    queues: tuple[tuple[Queue, ...], tuple[Queue, ...]] = ((), ())
    served: Callable[[State], bool] = lambda state: False
    deleted: bool = False

    @property
    def creates(self) -> bool:
        return self.edit is None and self.queues[0] == self.queues[1]


@dataclass(frozen=True, slots=True)
class Outcome:
    """writes: that were counted; struck: whether an operator was killed."""

    state: State
    writes: tuple[str, ...]
    struck: bool
    seconds: float


@dataclass(slots=True)
class CrashRuns:
    """Runs scenarios one after the other; an operator that was not killed goes on to the next."""

    rest: Rest
    proxy: CrashProxy
    metrics: FakeMetrics
    folder: Path
    report: str
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _operator: OperatorProcess | None = None

    def run(
        self, scenario: Scenario, *, k: int = 0, side: Side = "before", expected: State | None = None
    ) -> Outcome:
        """k = 0: nobody is killed. expected: what the end must equal; raises AssertionError with
        the difference if it does not come."""
        began = time.monotonic()
        namespace = f"{scenario.name}-{next(self._numbers)}"
        kubelet = FakeKubelet(self.rest, namespace, self.report)
        self._create_namespace(namespace)
        self._set_queues(scenario.queues[0])
        operator = self._running()
        fault = Fault(namespace, operator.pid, k, side)
        if scenario.creates:
            self.proxy.fault = fault
            self._create(scenario, namespace)
        else:
            self.proxy.fault = Fault(namespace, operator.pid)
            self._create(scenario, namespace)
            self._settle(namespace, kubelet, scenario.served)
            self.proxy.fault = fault
            self._set_queues(scenario.queues[1])
            if scenario.edit is not None:
                self._patch(namespace, scenario.edit)
        if scenario.deleted:
            self._settle(namespace, kubelet, scenario.served, fault)
            if fault.struck.is_set():
                operator.stop()
            self._delete(namespace)
        else:
            self._settle(namespace, kubelet, scenario.reached, fault, expected)
        if fault.struck.is_set():
            operator.stop()
            self._running()
        state = self._settle(namespace, kubelet, scenario.reached, expected=expected)
        if not scenario.deleted:
            self._delete(namespace)
        seconds = time.monotonic() - began
        return Outcome(state, tuple(fault.writes), fault.struck.is_set(), seconds)

    def stop(self) -> None:
        if self._operator is not None:
            self._operator.stop()

    def _running(self) -> OperatorProcess:
        if self._operator is None or not self._operator.is_running():
            folder = self.folder / f"operator-{next(self._numbers)}"
            self._operator = OperatorProcess(self.proxy.url, folder)
        return self._operator

    def _settle(
        self,
        namespace: str,
        kubelet: FakeKubelet,
        reached: Callable[[State], bool],
        fault: Fault | None = None,
        expected: State | None = None,
    ) -> State:
        """The state once it is `reached`, or as `expected`, and nothing was written for a while; or
        once `fault` has struck."""
        deadline = time.monotonic() + _TIMEOUT_S
        state, since = state_of(self.rest, namespace), time.monotonic()
        while fault is None or not fault.struck.is_set():
            kubelet.step()
            now, seen = time.monotonic(), state_of(self.rest, namespace)
            if seen != state:
                state, since = seen, now
            assert self.proxy.fault is not None
            there = reached(state) if expected is None else state == expected
            if there and now - max(since, self.proxy.fault.last_write) > _QUIET_S:
                break
            assert now < deadline, self._said(state, expected)
            time.sleep(_POLL_S)
        return state

    def _said(self, state: State, expected: State | None) -> str:
        assert self._operator is not None
        texts = [json.dumps(each or {}, indent=1).splitlines() for each in (expected, state)]
        shown = "\n".join(difflib.unified_diff(*texts, "unkilled", "killed", lineterm="", n=6))
        return f"not there after {_TIMEOUT_S:.0f} s\n{shown}\n{self._operator.log[-3000:]}"

    def _set_queues(self, queues: tuple[Queue, ...]) -> None:
        self.metrics.queues = dict(zip(ADDRESSES, queues, strict=False))

    def _create_namespace(self, name: str) -> None:
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        self.rest("POST", "/api/v1/namespaces", manifest).expect(201)

    def _create(self, scenario: Scenario, namespace: str) -> None:
        manifest = {
            "apiVersion": "serving.lightllm.io/v1alpha1",
            "kind": "LightLLMDeployment",
            "metadata": {"name": "demo"},
            "spec": scenario.spec,
        }
        path = _RESOURCES.format(namespace)
        self.rest("POST", path, manifest, fieldManager="user").expect(201)

    def _patch(self, namespace: str, patch: dict[str, Any]) -> None:
        self.rest(
            "PATCH",
            f"{_RESOURCES.format(namespace)}/demo",
            patch,
            content_type="application/merge-patch+json",
            fieldManager="user",
        ).expect(200)

    def _delete(self, namespace: str) -> None:
        self.rest("DELETE", f"{_RESOURCES.format(namespace)}/demo").expect(200)

