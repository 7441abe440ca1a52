"""Out on a queue, back in on idleness, no stream cut; `kubectl scale` for fixed counts."""

from __future__ import annotations

import time

import pytest

from kube import Load, deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500)]


def test_a_queue_scales_out_and_idleness_in(kube):
    quick = {"stabilizationWindowSeconds": 10, "maxPods": 1, "periodSeconds": 5}
    scaling = {"maxReplicas": 2, "targetQueueDepth": 1, "scaleDown": quick}
    kube.apply(deployment_of("demo", autoscaling=scaling, extraArgs=["--running-max-req-size=2"]))
    kube.wait_condition("demo", "Ready", "True", timeout=120)

    def desired() -> int:
        return kube.get("deployment", "demo")["spec"]["replicas"]

    with Load(kube.address("demo"), clients=8, max_new_tokens=200) as load:
        seconds = kube.wait("a second pod is wanted", lambda: desired() == 2, 30)
        kube.wait("two pods serve", lambda: kube.ready_replicas("demo") == 2, 120)
        time.sleep(5)
    print(f"scale-out was written {seconds:.1f} s after the load began")
    kube.wait("one pod is wanted again", lambda: desired() == 1, 90)
    assert load.num_answered > 0
    assert load.failures == []


def test_kubectl_scale_sets_the_count_and_restarts_nothing(kube):
    kube.apply(deployment_of("demo", replicas=1))
    kube.wait_condition("demo", "Ready", "True", timeout=120)
    [before] = kube.serving_pods("demo")
    kube("scale", "lld", "demo", "--replicas=2")
    kube.wait("two pods serve", lambda: kube.get("lld", "demo")["status"]["readyReplicas"] == 2)
    uids = [pod["metadata"]["uid"] for pod in kube.serving_pods("demo")]
    assert before["metadata"]["uid"] in uids
    assert len(uids) == 2
