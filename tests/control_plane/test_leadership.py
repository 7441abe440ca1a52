"""Two operators, one writer: takeover after a crash, a clean stop, a freeze and a lost network."""

from __future__ import annotations

import signal
import time

import pytest

from kube import deployment_of
from operator_process import OperatorProcess, wait_until
from watch_proxy import WatchProxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

# how long the chart's operator takes it for: 12 s
TAKEOVER_S = 15.0


class Replica:
    """An operator and the proxy that notes what it writes."""

    def __init__(self, proxy, process):
        self.proxy = proxy
        self.process = process

    @property
    def writes(self):
        """Of anything but the Lease, successful."""
        return [w for w in self.proxy.writes if "/leases" not in w.path and w.status < 300]


@pytest.fixture
def replica(api_server, namespace, tmp_path):
    """Starts one more operator and waits until it is ready."""
    ending = []

    def start(name):
        folder = tmp_path / name
        folder.mkdir()
        proxy = WatchProxy(api_server, folder).__enter__()
        ending.append(proxy)
        process = OperatorProcess(proxy.kubeconfig, namespace, folder / f"{name}.log").__enter__()
        ending.append(process)
        process.wait_ready()
        return Replica(proxy, process)

    yield start
    for each in reversed(ending):
        each.__exit__()


@pytest.fixture
def two(replica):
    first = replica("first")
    wait_until("the first leads", lambda: first.process.leads)
    return first, replica("second")


def reconciled(kubectl, name, timeout=10.0):
    def holds():
        return bool(kubectl.list("jobs", f"app.kubernetes.io/instance={name}"))

    return wait_until(f"{name} is reconciled", holds, timeout)


def transitions(kubectl):
    return kubectl.get("lease", "lightllm-operator")["spec"]["leaseTransitions"]


def test_only_the_leader_writes(kubectl, two):
    first, second = two
    for number in range(5):
        kubectl.apply(deployment_of(f"demo-{number}"))
        reconciled(kubectl, f"demo-{number}")
    # a resync of both has come since
    time.sleep(2)
    assert first.process.leads
    assert not second.process.leads
    assert second.process.is_well("/readyz")
    assert first.writes
    assert not second.proxy.writes
    holder = kubectl.get("lease", "lightllm-operator")["spec"]["holderIdentity"]
    assert holder.startswith("first-")
    metric = first.process.metric
    assert metric('lightllm_operator_api_requests_total{code="200",verb="GET"}') > 5
    assert metric('lightllm_operator_api_requests_total{code="200",verb="PATCH"}') >= 5
    assert metric("lightllm_operator_reconcile_seconds_count") >= 5
    assert metric("lightllm_operator_work_queue_depth") is not None
    assert second.process.metric("lightllm_operator_reconcile_seconds_count") == 0


def test_after_a_crash_the_other_takes_over(kubectl, two):
    first, second = two
    first.process.signal(signal.SIGKILL)
    kubectl.apply(deployment_of("demo"))
    took = reconciled(kubectl, "demo", TAKEOVER_S + 1)
    print(f"takeover after a crash: {took:.1f} s")
    assert took <= TAKEOVER_S
    assert second.process.leads
    assert transitions(kubectl) == 1


def test_after_a_clean_stop_the_other_takes_over_at_once(kubectl, two):
    first, second = two
    code, seconds = first.process.stop()
    print(f"clean stop: {seconds:.1f} s")
    assert (code, seconds < 5) == (0, True), first.process.log
    kubectl.apply(deployment_of("demo"))
    took = reconciled(kubectl, "demo", TAKEOVER_S)
    print(f"takeover after a clean stop: {took:.1f} s")
    assert took < 4
    assert second.process.leads


def test_a_frozen_leader_writes_nothing_when_it_wakes(kubectl, two):
    first, second = two
    # it is in the middle of a reconcile, whose next write is due when it wakes
    first.proxy.slow_writes(0.5)
    kubectl.apply(deployment_of("before"))
    wait_until("it writes", lambda: first.proxy.num_slow > 0, 10)
    first.process.signal(signal.SIGSTOP)
    kubectl.apply(deployment_of("meanwhile"))
    reconciled(kubectl, "meanwhile", TAKEOVER_S + 1)
    woken = time.monotonic()
    first.process.signal(signal.SIGCONT)
    wait_until("it leads no more", lambda: not first.process.leads, 10)
    kubectl.apply(deployment_of("after"))
    reconciled(kubectl, "after")
    assert second.process.leads
    assert [w for w in first.writes if w.at > woken] == []
    assert first.process.is_well("/readyz")


def test_a_leader_without_network_stops_before_the_other_begins(kubectl, two):
    first, second = two
    lost = time.monotonic()
    first.proxy.unreachable(True)
    kubectl.apply(deployment_of("demo"))
    wait_until("it leads no more", lambda: not first.process.leads, 12)
    assert not second.process.leads
    wait_until("the other leads", lambda: second.process.leads, TAKEOVER_S)
    print(f"takeover after a lost network: {time.monotonic() - lost:.1f} s")
    reconciled(kubectl, "demo")
    first.proxy.unreachable(False)
    # it goes on as the one that waits, without a restart
    wait_until("its watches are back", lambda: first.process.is_well("/healthz"), 30)
    time.sleep(3)
    assert (first.process.leads, second.process.leads) == (False, True)
    assert [w for w in first.writes if w.at > lost] == []
