"""Pods and operators that are killed under load: what was served before is served after."""

from __future__ import annotations

import random
import time

import pytest

from kube import Load, condition, deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


# run inside a pod, whose first process cannot be killed from there
KILL_ROUTER = """
import os, pathlib, signal
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if b"router" in (process / "cmdline").read_bytes():
        os.kill(int(process.name), signal.SIGKILL)
"""


def test_a_killed_pod_comes_back_and_the_condition_tells(kube):
    kube.apply(deployment_of("demo", replicas=1))
    kube.wait_condition("demo", "Ready", "True", timeout=120)
    with Load(kube.address("demo"), clients=4) as load:
        time.sleep(1)
        [pod] = kube.serving_pods("demo")
        name = pod["metadata"]["name"]
        kube("exec", name, "--", "python", "-c", KILL_ROUTER, ok=False)
        # before the server has ended the pod is just not Ready
        told = kube.wait_condition("demo", "Available", "False", "CrashLoopBackOff", timeout=30)
        kube.wait_condition("demo", "Ready", "True", timeout=120)
        num_before = load.num_answered
        kube.wait("requests are answered again", lambda: load.num_answered > num_before, 30)
    assert f"pod {name} ended with exit code 70: " in told["message"]
    assert load.failures, "the requests of the killed pod must have ended in an error"
    assert kube.restarts("demo") == {pod["metadata"]["uid"]: 1}


def test_operators_killed_at_random_restart_nothing(kube, operator):
    seed = 20261121
    kube.apply(deployment_of("demo", replicas=2))
    kube.wait("two pods serve", lambda: kube.ready_replicas("demo") == 2, 120)
    before = kube.restarts("demo")
    pauses = random.Random(seed)
    with Load(kube.address("demo"), clients=4) as load:
        for _ in range(3):
            time.sleep(pauses.uniform(0.5, 4))
            operator("delete", "pods", "--all", "--grace-period=0", "--force")
            operator("rollout", "status", "deployment/lightllm", "--timeout=60s")
    assert load.failures == []
    assert load.num_answered > 0
    kube.apply(deployment_of("demo", replicas=3))
    kube.wait("the newest operator works", lambda: kube.ready_replicas("demo") == 3, 90)
    assert before.items() <= kube.restarts("demo").items()
    assert condition(kube.get("lld", "demo"), "Ready")["status"] == "True"
