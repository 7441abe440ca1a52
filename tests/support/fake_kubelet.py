"""Plays the kubelet for one namespace: checks end with a report, serving pods get Ready.

Pods are not scheduled, so that a deleted one is gone at once. Their addresses are of loopback,
where `FakeMetrics` answers for them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rest import Rest

__all__ = ["ADDRESSES", "FakeKubelet", "FakeMetrics", "Queue"]

# of this process alone, since the port is the same for all
ADDRESSES = tuple(
    f"127.{64 + os.getpid() // 250 % 128}.{os.getpid() % 250}.{number}" for number in range(1, 9)
)
_METRICS_PORT = 8001
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Queue:
    """Requests of one pod."""

    waiting: int = 0
    running: int = 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A scrape that an operator did not live to read."""


class FakeMetrics:
    """What the pods' routers report, by address; `queues` may be set at any time."""

    def __init__(self) -> None:
        self.queues: Mapping[str, Queue] = {}

    @contextmanager
    def serving(self) -> Iterator[FakeMetrics]:
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = metrics._text(str(self.connection.getsockname()[0])).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Silent."""

        with ExitStack() as stack:
            for address in ADDRESSES:
                server = _Server((address, _METRICS_PORT), Handler)
                stack.callback(server.server_close)
                stack.callback(server.shutdown)
                threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            yield self

    def _text(self, address: str) -> str:
        queue = self.queues.get(address, Queue())
        values = {
            "lightllm_queue_size": queue.waiting,
            "lightllm_batch_current_size": queue.running,
            "lightllm_max_running": 16,
            "lightllm_kv_usage_ratio": 0,
            "lightllm_request_count_total": 100,
            "lightllm_request_rejected_total": 0,
            "lightllm_request_service_duration_sum": 10,
            "lightllm_request_service_duration_count": 100,
        }
        return "".join(f"{name} {value}\n" for name, value in values.items())


class FakeKubelet:
    """report: of the check, as its termination message."""

    def __init__(self, rest: Rest, namespace: str, report: str) -> None:
        self._rest = rest
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._report = report

    def step(self, *, starts: Callable[[dict[str, Any]], bool] = lambda pod: True) -> None:
        """Bring every pod on as far as it goes; those that `starts` refuses stay Pending."""
        pods = self._rest("GET", self._pods).expect(200)["items"]
        taken = {pod["status"].get("podIP") for pod in pods}
        free = [address for address in ADDRESSES if address not in taken]
        for pod in sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"]):
            if pod["status"]["phase"] != "Pending" or not starts(pod):
                continue
            check = pod["metadata"]["labels"]["app.kubernetes.io/component"] == "check"
            self._patch(pod, self._ended() if check else _ready(free.pop(0)))

    def refuse(self, pod: dict[str, Any], message: str, *, since_s: float) -> None:
        """What the scheduler does where no node takes the pod."""
        at = (datetime.now(UTC) - timedelta(seconds=since_s)).strftime(_TIME)
        refused = {**_condition("PodScheduled", "False"), "lastTransitionTime": at}
        refused |= {"reason": "Unschedulable", "message": message}
        self._patch(pod, {"conditions": [refused]})

    def _patch(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        answer = self._rest(
            "PATCH",
            f"{self._pods}/{pod['metadata']['name']}/status",
            {"status": status},
            content_type="application/merge-patch+json",
            fieldManager="kubelet",
        )
        # deleted since it was listed
        if answer.status != 404:
            answer.expect(200)

    def _ended(self) -> dict[str, Any]:
        ended = {"exitCode": 0, "reason": "Completed", "message": self._report}
        container = {"state": {"terminated": ended}, "ready": False}
        return {
            "phase": "Succeeded",
            "conditions": [_condition("Ready", "False")],
            "containerStatuses": [_container("check", container)],
        }


def _ready(address: str) -> dict[str, Any]:
    container = {"state": {"running": {"startedAt": _now()}}, "ready": True}
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": _now(),
        "conditions": [
            _condition(kind, "True")
            for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ],
        "containerStatuses": [_container("server", container)],
    }


def _container(name: str, status: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "image": "image", "imageID": "", "restartCount": 0, **status}


def _condition(kind: str, status: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "lastTransitionTime": _now()}


def _now() -> str:
    return datetime.now(UTC).strftime(_TIME)
