"""One resource brought through a change by real operators, one of which may be killed."""

from __future__ import annotations

import difflib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster_state import state_of
from crash_proxy import CrashProxy, Fault, Side
from fake_kubelet import ADDRESSES, FakeKubelet, FakeMetrics, Queue
from real_operator import RealOperator
from rest import Rest

__all__ = ["CrashRuns", "Outcome", "Scenario", "State"]

State = Mapping[str, list[Any]]

_RESOURCES = "/apis/serving.lightllm.io/v1alpha1/namespaces/{}/lightllmdeployments"
# more than a scrape and a resync of the operators here; the first end is what others must equal
_QUIET_S = 0.6
_FIRST_QUIET_S = 2.0
_POLL_S = 0.05
_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A resource with `spec` is served; then it is changed. Faults strike while it changes.

    edit: merge patch of the resource. queues: of the first pods, before and then. Without either,
    the change is the resource's creation. served: whether the change may begin. deleted: the
    resource is deleted then: while no operator runs, if one was killed.
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
    """Runs scenarios one after the other; an operator that was not killed goes on to the next.

    source: of a changed operator. timeout_s: for an end to come, on a machine with much else to do.
    """

    rest: Rest
    proxy: CrashProxy
    metrics: FakeMetrics
    folder: Path
    report: str
    source: Path | None = None
    timeout_s: float = 60.0
    _operator: RealOperator | None = None

    def run(
        self,
        scenario: Scenario,
        *,
        k: int = 0,
        side: Side = "before",
        expected: State | None = None,
    ) -> Outcome:
        """k = 0: nobody is killed. expected: what the end must equal; raises AssertionError with
        the difference if it does not come."""
        began = time.monotonic()
        namespace = f"{scenario.name}-{next(_NUMBERS)}"
        kubelet = FakeKubelet(self.rest, namespace, self.report)
        operator = self._running()
        fault = Fault(namespace, operator.pid, k, side)
        self._begin(scenario, namespace, kubelet, fault)
        if scenario.deleted:
            self._settle(namespace, kubelet, scenario.served, fault=fault)
        else:
            quiet = _QUIET_S if expected else _FIRST_QUIET_S
            state = self._settle(
                namespace, kubelet, scenario.reached, fault=fault, expected=expected, quiet=quiet
            )
        struck = fault.struck.is_set()
        if struck:
            operator.stop()
        if scenario.deleted:
            self._delete(namespace)
        if struck or scenario.deleted:
            self._running()
            state = self._settle(namespace, kubelet, scenario.reached, expected=expected)
        if not scenario.deleted:
            self._delete(namespace)
        return Outcome(state, tuple(fault.writes), struck, time.monotonic() - began)

    def _begin(
        self, scenario: Scenario, namespace: str, kubelet: FakeKubelet, fault: Fault
    ) -> None:
        """Create the resource, have it served unless its creation is the change, and change it."""
        self._create_namespace(namespace)
        self._set_queues(scenario.queues[0])
        self.proxy.fault = fault if scenario.creates else Fault(namespace, fault.pid)
        self._create(scenario, namespace)
        if not scenario.creates:
            self._settle(namespace, kubelet, scenario.served)
            self.proxy.fault = fault
            self._set_queues(scenario.queues[1])
            if scenario.edit is not None:
                self._patch(namespace, scenario.edit)

    def stop(self) -> None:
        if self._operator is not None:
            self._operator.stop()

    def _running(self) -> RealOperator:
        if self._operator is None or not self._operator.is_running():
            folder = self.folder / f"operator-{next(_NUMBERS)}"
            source = {} if self.source is None else {"source": self.source}
            self._operator = RealOperator(self.proxy.url, folder, **source)
        return self._operator

    def _settle(
        self,
        namespace: str,
        kubelet: FakeKubelet,
        reached: Callable[[State], bool],
        *,
        fault: Fault | None = None,
        expected: State | None = None,
        quiet: float = _QUIET_S,
    ) -> State:
        """The state once it is as `expected`, or without that is `reached`, and nothing was written
        for a while; or once `fault` has struck."""
        deadline = time.monotonic() + self.timeout_s
        state, since = state_of(self.rest, namespace), time.monotonic()
        while fault is None or not fault.struck.is_set():
            kubelet.step()
            now, seen = time.monotonic(), state_of(self.rest, namespace)
            if seen != state:
                state, since = seen, now
            assert self.proxy.fault is not None, "settles without a fault"
            there = reached(state) if expected is None else state == expected
            if there and now - max(since, self.proxy.fault.last_write) > quiet:
                break
            assert now < deadline, self._said(state, expected)
            time.sleep(_POLL_S)
        return state

    def _said(self, state: State, expected: State | None) -> str:
        assert self._operator is not None
        texts = [json.dumps(each or {}, indent=1).splitlines() for each in (expected, state)]
        shown = "\n".join(difflib.unified_diff(*texts, "unkilled", "killed", lineterm="", n=6))
        return f"not there after {self.timeout_s:.0f} s\n{shown}\n{self._operator.log[-3000:]}"

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
