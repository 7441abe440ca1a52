"""What cannot run is said within 30 s, with the next step."""

from __future__ import annotations

import pytest

from kube import deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("spec", "kind", "reason", "says"),
    [
        (
            {"model": {"uri": "file:///models/nowhere"}},
            "ConfigValid",
            "UnsupportedModel",
            "/models/nowhere: no such directory",
        ),
        (
            {"gpu": {"count": 4}, "tensorParallelSize": 3},
            "ConfigValid",
            "InvalidTensorParallel",
            "allow 1, 2, 4",
        ),
        ({"gpu": {"count": 8}}, "Available", "GPUsUnavailable", "lower spec.gpu.count"),
        ({"image": "127.0.0.1:5213/nothing:1"}, "Ready", "ImagePullFailed", "spec.image"),
        (
            {"gpu": {"count": 0}, "resources": {"limits": {"memory": "64Mi"}}},
            "Available",
            "OutOfMemory",
            "spec.resources.limits.memory",
        ),
    ],
    ids=["model", "tensor-parallel", "gpus", "image", "memory"],
)
def test_the_condition_says_what_to_do(kube, spec, kind, reason, says):
    kube.apply(deployment_of("bad", **spec))
    told = kube.wait_condition("bad", kind, "False", reason, timeout=30)
    assert says in told["message"]


def test_an_impossible_edit_leaves_the_serving_pods_alone(kube):
    kube.apply(deployment_of("demo", gpu={"count": 2}))
    kube.wait_condition("demo", "Ready", "True", timeout=120)
    before = [pod["metadata"]["uid"] for pod in kube.serving_pods("demo")]
    kube.apply(deployment_of("demo", gpu={"count": 4}, tensorParallelSize=3))
    told = kube.wait_condition("demo", "Ready", "False", "ConfigInvalid", timeout=30)
    assert "go on serving" in told["message"]
    assert [pod["metadata"]["uid"] for pod in kube.serving_pods("demo")] == before
