"""An edit under load: no request of clients with keep-alive and without retries fails."""

from __future__ import annotations

import time

import pytest

from kube import Load, deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_an_edit_rolls_under_load(kube):
    kube.apply(deployment_of("demo", replicas=1))
    kube.wait_condition("demo", "Ready", "True", timeout=120)
    [before] = kube.serving_pods("demo")
    with Load(kube.address("demo"), clients=4) as load:
        time.sleep(2)
        kube.apply(deployment_of("demo", replicas=1, extraArgs=["--max-n=3"]))
        old = before["metadata"]["name"]
        kube.wait("the old pod is gone", lambda: not kube.get("pod", old), 180)
        time.sleep(2)
    assert load.num_answered > 0
    assert load.failures == []
    [after] = kube.serving_pods("demo")
    assert "--max-n=3" in after["spec"]["containers"][0]["args"]


def test_an_edit_completes_when_all_gpus_are_taken(kube):
    kube.apply(deployment_of("demo", gpu={"count": 4}))
    kube.wait_condition("demo", "Ready", "True", timeout=120)
    [before] = kube.serving_pods("demo")
    kube.apply(deployment_of("demo", gpu={"count": 4}, extraArgs=["--max-n=3"]))

    def rolled() -> bool:
        pods = kube.serving_pods("demo")
        return len(pods) == 1 and pods[0]["metadata"]["uid"] != before["metadata"]["uid"]

    kube.wait("the new pod is alone", rolled, 120)
    kube.wait_condition("demo", "Ready", "True", timeout=60)
