"""Scrapes the serving pods every few seconds and decides how many there should be.

Stores the decision; `reconcile`, which it wakes, writes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lightllm_operator import metrics
from lightllm_operator.autoscale import Decision, History, PodSample, decide
from lightllm_operator.pods import (
    find_refusal,
    has_ended,
    is_ready,
    is_terminating,
    unschedulable_since,
)
from lightllm_operator.reconcile import Key
from lightllm_operator.sizing import KvChoice
from lightllm_operator.spec import DeploymentSpec, read
from lightllm_operator.timestamps import timestamp_now

__all__ = ["Scaler", "Source"]

logger = logging.getLogger(__name__)

Object = Mapping[str, Any]

_STATUS_PERIOD_S = 10.0
_UNSCHEDULABLE_S = 10.0


class Source(Protocol):
    """Where the scaler reads from: caches of a watch."""

    def resources(self) -> Mapping[Key, Object]: ...
    def pods(self, key: Key) -> list[Object]: ...
    def deployment(self, key: Key) -> Object | None: ...


class _Scrape(Protocol):
    async def scrape(self, pods: Mapping[str, str]) -> dict[str, PodSample]: ...


@dataclass(slots=True)
class _Known:
    """spec: of `body`, the resource as the source gave it last."""

    history: History
    body: Object
    spec: DeploymentSpec
    decision: Decision | None = None
    samples: Mapping[str, PodSample] = field(default_factory=dict)
    last_scale: str | None = None
    kv: KvChoice | None = None
    told: float = 0.0
    told_waiting: int = -1


class Scaler:
    """One round per period over all resources; implements `reconcile.ScaleView`."""

    def __init__(
        self,
        source: Source,
        scraper: _Scrape,
        wake: Callable[[Key], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._scraper = scraper
        self._wake = wake
        self._clock = clock
        self._known: dict[Key, _Known] = {}

    def decision(self, key: Key) -> Decision | None:
        known = self._known.get(key)
        return known.decision if known else None

    def load(self, key: Key) -> Mapping[str, PodSample]:
        """The last samples, by pod."""
        known = self._known.get(key)
        return known.samples if known else {}

    def kv_choice(self, key: Key) -> KvChoice | None:
        """What the servers chose, None before one has said it."""
        known = self._known.get(key)
        return known.kv if known else None

    def last_scale_time(self, key: Key) -> str | None:
        known = self._known.get(key)
        return known.last_scale if known else None

    def forget(self, key: Key) -> None:
        self._known.pop(key, None)
        metrics.forget_resource(key)

    async def run(self, period: float) -> None:
        """Until cancelled."""
        while True:
            began = self._clock()
            try:
                await self.round()
            except Exception:
                # the loop's top: the next round may succeed
                logger.exception("a round of scaling failed")
            await asyncio.sleep(max(0.1, period - (self._clock() - began)))

    async def round(self) -> None:
        """Scrape everything at once, then decide."""
        resources = dict(self._source.resources())
        pods = {
            key: [pod for pod in self._source.pods(key) if not has_ended(pod)] for key in resources
        }
        samples = await asyncio.gather(
            *(self._scraper.scrape(_addresses(pods[key])) for key in resources)
        )
        for (key, body), found in zip(resources.items(), samples, strict=True):
            self._decide(key, body, pods[key], found)
        # deleted, also while this round went on
        for key in self._known.keys() - self._source.resources().keys():
            self.forget(key)

    def _decide(
        self, key: Key, body: Object, pods: list[Object], samples: dict[str, PodSample]
    ) -> None:
        now = self._clock()
        known = self._known.get(key)
        if known is None or known.body is not body:
            spec = read(body)
            known = self._known.setdefault(key, _Known(History(started=now), body, spec))
            known.body, known.spec = body, spec
        spec, known.samples = known.spec, samples
        self._note_kv(key, known)
        deployment = self._source.deployment(key)
        if deployment is None:
            return
        replicas: int = deployment["spec"].get("replicas", 1)
        waiting = sum(sample.waiting for sample in samples.values())
        running = sum(sample.running for sample in samples.values())
        before = known.decision
        ready = [pod for pod in pods if is_ready(pod)]
        if spec.autoscaling is None or spec.suspend:
            known.decision = Decision(replicas=replicas, waiting=waiting, running=running)
        elif before is None and not ready:
            # it starts: there is nobody to ask
            metrics.tell_resource(key, waiting=0, desired=replicas, ready=0)
            return
        else:
            starting = [pod for pod in pods if not is_ready(pod) and not is_terminating(pod)]
            known.decision = decide(
                spec.autoscaling,
                list(samples.values()),
                missing={pod["metadata"]["name"] for pod in ready} - samples.keys(),
                num_starting=len(starting),
                replicas=replicas,
                history=known.history,
                now=now,
                blocked=_blocked(deployment, starting),
            )
        metrics.tell_resource(
            key, waiting=waiting, desired=known.decision.replicas, ready=len(ready)
        )
        self._tell(key, known, before, replicas, now)

    def _note_kv(self, key: Key, known: _Known) -> None:
        said = {KvChoice(s.kv_dtype, s.kv_reason) for s in known.samples.values() if s.kv_dtype}
        # during a rollout pods may differ: the first one's stands while it runs anywhere
        if said and known.kv not in said:
            known.kv = min(said, key=lambda kv: kv.dtype)
            self._wake(key)

    def _tell(
        self, key: Key, known: _Known, before: Decision | None, replicas: int, now: float
    ) -> None:
        """Wake `reconcile` for a new count at once, for a new queue depth from time to time."""
        decision = known.decision
        assert decision is not None, "called without a decision"
        if decision.held and (before is None or not before.held):
            metrics.SCALE_DECISIONS.labels("hold").inc()
        if decision.replicas != replicas:
            known.last_scale = timestamp_now()
        # not again in the rounds until it is written
        if decision.replicas not in (replicas, before.replicas if before else None):
            metrics.SCALE_DECISIONS.labels("up" if decision.replicas > replicas else "down").inc()
            logger.info("%s: %d → %d pods: %s", key, replicas, decision.replicas, decision.reason)
        changed = before is None or (decision.held, decision.limited) != (
            before.held,
            before.limited,
        )
        stale = now - known.told >= _STATUS_PERIOD_S and decision.waiting != known.told_waiting
        if decision.replicas != replicas or changed or stale:
            known.told, known.told_waiting = now, decision.waiting
            self._wake(key)


def _addresses(pods: list[Object]) -> dict[str, str]:
    return {
        pod["metadata"]["name"]: pod["status"]["podIP"]
        for pod in pods
        if is_ready(pod) and pod.get("status", {}).get("podIP")
    }


def _blocked(deployment: Object, starting: list[Object]) -> str:
    """Why further pods would not start either, as a reason of ScalingLimited, or ""."""
    if find_refusal(deployment) is not None:
        return "PodsRefused"
    return "GPUsUnavailable" if any(map(_is_stuck, starting)) else ""


def _is_stuck(pod: Object) -> bool:
    since = unschedulable_since(pod)
    return since is not None and time.time() - since >= _UNSCHEDULABLE_S
