"""The operator starts before the API server, ends within seconds, and outlives an outage."""

from __future__ import annotations

import json
import signal
import time

import pytest

from kube import deployment_of
from operator_process import OperatorProcess, wait_until
from watch_proxy import WatchProxy

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(api_server, tmp_path):
    with WatchProxy(api_server, tmp_path) as proxy:
        yield proxy


def reconciled(kubectl, name, timeout=20.0):
    def holds():
        return bool(kubectl.list("jobs", f"app.kubernetes.io/instance={name}"))

    return wait_until(f"{name} is reconciled", holds, timeout)


def test_started_before_the_api_server_it_waits_and_then_works(kubectl, proxy, namespace, tmp_path):
    proxy.unreachable(True)
    kubectl.apply(deployment_of("demo"))
    log = tmp_path / "operator.log"
    with OperatorProcess(proxy.kubeconfig, namespace, log) as operator:
        operator.wait_alive()
        time.sleep(5)
        # alive, so that nothing restarts it; not ready
        assert operator.is_well()
        assert operator.get("/readyz")[0] == 503
        proxy.unreachable(False)
        operator.wait_ready()
        reconciled(kubectl, "demo")
    assert operator.log.count("waits for the API server") == 1, operator.log


def test_sigterm_while_it_waits_for_the_api_server(proxy, namespace, tmp_path):
    proxy.unreachable(True)
    with OperatorProcess(proxy.kubeconfig, namespace, tmp_path / "operator.log") as operator:
        operator.wait_alive()
        code, seconds = operator.stop()
    assert (code, seconds < 5) == (0, True), operator.log


def test_an_outage_of_the_api_server_is_outlived(kubectl, proxy, namespace, tmp_path):
    with OperatorProcess(proxy.kubeconfig, namespace, tmp_path / "operator.log") as operator:
        operator.wait_ready()
        proxy.unreachable(True)
        time.sleep(10)
        assert operator.is_well(), operator.log
        proxy.unreachable(False)
        kubectl.apply(deployment_of("demo"))
        reconciled(kubectl, "demo", 30)
        assert operator.is_well()
    # one line for the outage, and one for each key that was being worked on: there was none
    assert operator.log.count("objects could not be listed") == 1, operator.log
    assert "Request attempt" not in operator.log


def test_sigterm_lets_running_reconciles_end_and_releases_the_lease(
    kubectl, proxy, namespace, tmp_path
):
    with OperatorProcess(proxy.kubeconfig, namespace, tmp_path / "operator.log") as operator:
        operator.wait_ready()
        proxy.slow_writes(1.0)
        kubectl.apply(deployment_of("demo"))
        wait_until("the Job is being written", lambda: proxy.num_slow > 0, 10)
        code, seconds = operator.stop()
    assert (code, seconds < 10) == (0, True), operator.log
    # its status and events came after the Job
    body = kubectl.get("lld", "demo")
    assert body["status"]["conditions"]
    assert len(kubectl.list("jobs")) == 1
    assert not kubectl.get("lease", "lightllm-operator")["spec"].get("holderIdentity")
    assert "Traceback" not in operator.log


def test_the_log_as_json(proxy, namespace, kubectl, tmp_path):
    log = tmp_path / "operator.log"
    with OperatorProcess(proxy.kubeconfig, namespace, log, LIGHTLLM_LOG_FORMAT="json") as operator:
        operator.wait_ready()
        kubectl.apply(deployment_of("demo"))
        reconciled(kubectl, "demo")
        operator.signal(signal.SIGTERM)
        wait_until("it has stopped", lambda: '"stopped"' in operator.log, 10)
        lines = [json.loads(line) for line in operator.log.splitlines()]
    assert any("demo" in line["message"] for line in lines)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)


def test_an_error_that_the_watch_does_not_survive_ends_the_process(
    kubectl, proxy, namespace, tmp_path
):
    with OperatorProcess(proxy.kubeconfig, namespace, tmp_path / "operator.log") as operator:
        operator.wait_ready()
        proxy.expire(4, code=500)
        # the kubelet starts it anew, and the lease is free for it
        assert operator.wait() == 1, operator.log
    assert not kubectl.get("lease", "lightllm-operator")["spec"].get("holderIdentity")


def test_a_taken_port_ends_the_process(proxy, namespace, tmp_path):
    with OperatorProcess(proxy.kubeconfig, namespace, tmp_path / "first.log") as first:
        first.wait_alive()
        taken = str(first.port)
        with OperatorProcess(
            proxy.kubeconfig, namespace, tmp_path / "second.log", LIGHTLLM_HEALTH_PORT=taken
        ) as second:
            assert second.wait() == 1, second.log
