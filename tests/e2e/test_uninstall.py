"""`helm uninstall` takes the operator and leaves resources, pods and answers."""

from __future__ import annotations

import subprocess
import time

import pytest

from kube import Load, deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_pods_go_on_serving_and_a_new_install_takes_over(kube, operator, install, programs):
    import layout

    kube.apply(deployment_of("demo"))
    kube.wait_condition("demo", "Ready", "True", timeout=120)
    before = kube.restarts("demo")
    helm = [programs[1], f"--kubeconfig={layout.KUBECONFIG}", f"--namespace={operator.namespace}"]
    with Load(kube.address("demo"), clients=2) as load:
        subprocess.run([*helm, "uninstall", "lightllm", "--wait"], check=True)
        try:
            time.sleep(3)
            assert kube.get("lld", "demo")["status"]["readyReplicas"] == 1
        finally:
            install()
        kube.apply(deployment_of("demo", replicas=2))
        kube.wait("the new operator works", lambda: kube.ready_replicas("demo") == 2, 90)
    assert load.failures == []
    assert load.num_answered > 0
    assert before.items() <= kube.restarts("demo").items()
