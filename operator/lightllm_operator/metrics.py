"""The operator's own metrics; `docs/operator.md` has the table."""

from __future__ import annotations

import contextlib

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "API_REQUESTS",
    "DESIRED_REPLICAS",
    "LEADER",
    "QUEUE_DEPTH",
    "READY_REPLICAS",
    "RECONCILE_ERRORS",
    "RECONCILE_SECONDS",
    "SCALE_DECISIONS",
    "SCRAPE_FAILURES",
    "SCRAPE_SECONDS",
    "WATCH_UNSEEN",
    "WORK_QUEUE_DEPTH",
    "clear_resources",
    "forget_resource",
    "tell_resource",
]

_RESOURCE = ("namespace", "name")

RECONCILE_SECONDS = Histogram(
    "lightllm_operator_reconcile_seconds",
    "How long one reconcile of one resource took",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 15, 60, 300),
)
RECONCILE_ERRORS = Counter(
    "lightllm_operator_reconcile_errors", "Reconciles that failed and are tried again"
)
WORK_QUEUE_DEPTH = Gauge(
    "lightllm_operator_work_queue_depth", "Resources that wait for their reconcile"
)
SCALE_DECISIONS = Counter(
    "lightllm_operator_scale_decisions",
    "Decisions for another count of pods (up, down), or to keep it for want of facts (hold)",
    ("direction",),
)
SCRAPE_SECONDS = Histogram(
    "lightllm_operator_scrape_seconds",
    "How long one pod took to answer with its metrics, or to fail",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3),
)
SCRAPE_FAILURES = Counter(
    "lightllm_operator_scrape_failures", "Scrapes of a pod that gave no sample"
)
API_REQUESTS = Counter(
    "lightllm_operator_api_requests",
    "Requests to the API server, watches apart; code: HTTP status, or `error` without an answer",
    ("verb", "code"),
)
LEADER = Gauge("lightllm_operator_leader", "1 while this replica leads")
WATCH_UNSEEN = Gauge(
    "lightllm_operator_watch_unseen_seconds",
    "Age of the oldest change that a LIST has shown and the watch has not",
)
QUEUE_DEPTH = Gauge(
    "lightllm_operator_queue_depth", "Requests that wait in the resource's pods", _RESOURCE
)
DESIRED_REPLICAS = Gauge("lightllm_operator_desired_replicas", "Pods that should run", _RESOURCE)
READY_REPLICAS = Gauge("lightllm_operator_ready_replicas", "Pods that are Ready", _RESOURCE)

_PER_RESOURCE = (QUEUE_DEPTH, DESIRED_REPLICAS, READY_REPLICAS)

# so that rates are known from the first decision on
for _direction in ("up", "down", "hold"):
    SCALE_DECISIONS.labels(_direction)


def tell_resource(key: tuple[str, str], *, waiting: int, desired: int, ready: int) -> None:
    """key: namespace and name."""
    for gauge, value in zip(_PER_RESOURCE, (waiting, desired, ready), strict=True):
        gauge.labels(*key).set(value)


def forget_resource(key: tuple[str, str]) -> None:
    """A deleted resource leaves no series behind."""
    for gauge in _PER_RESOURCE:
        with contextlib.suppress(KeyError):
            gauge.remove(*key)


def clear_resources() -> None:
    """Of all resources: another replica tells of them."""
    for gauge in _PER_RESOURCE:
        gauge.clear()
