"""A watch that is cut, gone or silent: later changes are seen, or `/healthz` says so."""

from __future__ import annotations

import pytest

from kube import deployment_of
from operator_process import OperatorProcess, wait_until
from watch_proxy import WatchProxy

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(api_server, tmp_path):
    with WatchProxy(api_server, tmp_path) as proxy:
        yield proxy


@pytest.fixture
def operator(proxy, namespace, tmp_path):
    """Resyncs by LIST never, so that only the watch can show a change."""
    with OperatorProcess(
        proxy.kubeconfig, namespace, tmp_path / "operator.log", LIGHTLLM_RESYNC_SECONDS="3600"
    ) as operator:
        operator.wait_ready()
        yield operator


@pytest.fixture
def checking_operator(proxy, namespace, tmp_path):
    with OperatorProcess(proxy.kubeconfig, namespace, tmp_path / "operator.log") as operator:
        operator.wait_ready()
        yield operator


def is_reconciled(kubectl, name):
    """The check Job of the model is the first thing that a reconcile makes."""
    jobs = kubectl.list("jobs", f"app.kubernetes.io/instance={name}")
    return len(jobs) == 1


def reconciled(kubectl, name, timeout=20.0):
    return wait_until(f"{name} is reconciled", lambda: is_reconciled(kubectl, name), timeout)


def test_changes_after_a_cut_are_seen(kubectl, operator, proxy):
    kubectl.apply(deployment_of("before"))
    reconciled(kubectl, "before")
    proxy.cut()
    kubectl.apply(deployment_of("after"))
    reconciled(kubectl, "after")
    assert operator.is_well()


def test_changes_after_410_are_seen(kubectl, operator, proxy):
    kubectl.apply(deployment_of("before"))
    reconciled(kubectl, "before")
    proxy.expire(4)
    kubectl.apply(deployment_of("after"))
    reconciled(kubectl, "after")
    assert proxy.num_gone_left == 0
    assert operator.is_well()


def test_a_silent_watch_fails_healthz_until_it_speaks(kubectl, checking_operator, proxy):
    operator = checking_operator
    proxy.stall()
    kubectl.apply(deployment_of("demo"))
    # the LIST shows it all the same
    reconciled(kubectl, "demo")
    # a second until the LIST, 3 s of patience
    took = wait_until("/healthz fails", lambda: operator.get("/healthz")[0] == 503, 10)
    assert took < 6
    assert "unseen by the watch" in operator.get("/healthz")[1]
    proxy.resume()
    wait_until("/healthz is well again", operator.is_well, 10)
    assert operator.log.count("/healthz fails") == 1


def test_a_resource_deleted_while_the_watch_was_stale_is_forgotten(
    kubectl, checking_operator, proxy
):
    operator = checking_operator
    series = f'lightllm_operator_queue_depth{{name="demo",namespace="{kubectl.namespace}"}}'
    kubectl.apply(deployment_of("demo"))
    reconciled(kubectl, "demo")
    kubectl("apply", "-f", "-", stdin=SERVING)
    wait_until("its series is there", lambda: operator.metric(series) is not None, 10)
    proxy.stall()
    kubectl("delete", "lld", "demo")
    wait_until("its series is gone", lambda: operator.metric(series) is None, 10)
    # nor does its missing DELETED event, after a relist, leave the watch for dead
    proxy.expire(4)
    proxy.resume()
    kubectl.apply(deployment_of("later"))
    reconciled(kubectl, "later")
    assert proxy.num_gone_left == 0
    assert operator.is_well()


# what the deployment controller's side of a served resource looks like
SERVING = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: demo
  labels: &labels
    app.kubernetes.io/name: lightllm
    app.kubernetes.io/instance: demo
    app.kubernetes.io/component: server
    app.kubernetes.io/managed-by: lightllm-operator
spec:
  replicas: 1
  selector: {matchLabels: *labels}
  template:
    metadata: {labels: *labels}
    spec: {containers: [{name: server, image: example.test/server}]}
"""
