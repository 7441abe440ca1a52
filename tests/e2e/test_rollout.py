"""An edit under load: no request of clients with keep-alive and without retries fails."""

from __future__ import annotations

import time

import pytest

from kube import Load, deployment_of, is_ready

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


def test_capacity_stays_while_gpus_are_spare(kube):
    kube.apply(deployment_of("demo", replicas=2))
    kube.wait("two pods serve", lambda: kube.ready_replicas("demo") == 2, 120)
    before = {pod["metadata"]["uid"] for pod in kube.serving_pods("demo")}
    fewest = 2
    with Load(kube.address("demo"), clients=4) as load:
        kube.apply(deployment_of("demo", replicas=2, extraArgs=["--max-n=3"]))

        def rolled() -> bool:
            nonlocal fewest
            pods = kube.serving_pods("demo")
            fewest = min(fewest, sum(map(is_ready, pods)))
            return not before & {pod["metadata"]["uid"] for pod in pods}

        kube.wait("both old pods are gone", rolled, 200)
    assert fewest == 2
    assert load.failures == []


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
