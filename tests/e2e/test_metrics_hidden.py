"""Pods whose metrics cannot be read: the count is held, and the condition says why."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kube import Load, deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

METRICS_PORT = 8001
WINDOW_S = 10


@contextmanager
def hidden(addresses: list[str]) -> Iterator[None]:
    """The pods at these addresses drop what comes to their metrics port."""
    spaces = [space for space in _network_namespaces() if _address(space) in addresses]
    assert len(spaces) == len(addresses), (spaces, addresses)
    for space in spaces:
        _drop(space, "-I")
    try:
        yield
    finally:
        for space in spaces:
            _drop(space, "-D")


def _network_namespaces() -> list[str]:
    lines = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in lines.splitlines()]


def _address(space: str) -> str:
    command = ["ip", "-n", space, "-json", "-4", "address", "show", "dev", "eth0"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return json.loads(shown)[0]["addr_info"][0]["local"] if shown.strip() else ""


def _drop(space: str, how: str) -> None:
    rule = [how, "INPUT", "-p", "tcp", "--dport", str(METRICS_PORT), "-j", "DROP"]
    subprocess.run(["ip", "netns", "exec", space, "iptables", *rule], check=True)


def test_hidden_metrics_hold_the_count(kube):
    quick = {"stabilizationWindowSeconds": WINDOW_S, "maxPods": 1, "periodSeconds": 5}
    scaling = {"maxReplicas": 2, "targetQueueDepth": 1, "scaleDown": quick}
    kube.apply(deployment_of("demo", autoscaling=scaling, extraArgs=["--running-max-req-size=2"]))
    kube.wait_condition("demo", "Ready", "True", timeout=120)
    with Load(kube.address("demo"), clients=8, max_new_tokens=200):
        kube.wait("two pods serve", lambda: kube.ready_replicas("demo") == 2, 120)
        with_ip = [pod["status"]["podIP"] for pod in kube.serving_pods("demo")]
        hiding = hidden(with_ip)
        hiding.__enter__()
    try:
        told = kube.wait_condition("demo", "ScalingActive", "False", "MetricsUnavailable", 60)
        assert "held at 2" in told["message"]
        # idle for longer than the window and a period: nothing is known, nothing is taken
        time.sleep(2 * WINDOW_S + 5)
        assert kube.get("deployment", "demo")["spec"]["replicas"] == 2
    finally:
        hiding.__exit__(None, None, None)
    kube.wait_condition("demo", "ScalingActive", "True", timeout=30)

    def wanted() -> int:
        return kube.get("deployment", "demo")["spec"]["replicas"]

    kube.wait("one pod is wanted once they are seen", lambda: wanted() == 1, 60)
