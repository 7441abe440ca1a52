"""`kvCache.dtype: Auto` is decided over all nodes that the pods may run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kube import deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

V100 = {
    "nvidia.com/gpu.product": "Tesla-V100-SXM2-32GB",
    "nvidia.com/gpu.compute.major": "7",
    "nvidia.com/gpu.compute.minor": "0",
    "pool": "mixed",
}


@pytest.fixture
def pools(kube) -> Iterator[None]:
    """The node with A100s is of both pools; a Node object that nothing can run on is of one."""
    import layout

    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "v100", "labels": V100},
        "spec": {"unschedulable": True},
    }
    kube.apply(node)
    kube("label", "node", layout.NODE, "pool=mixed", "ampere=yes")
    yield
    kube("delete", "node", "v100")
    kube("label", "node", layout.NODE, "pool-", "ampere-")


@pytest.mark.parametrize(
    ("selector", "dtype", "says"),
    [({"ampere": "yes"}, "int8", "all 1 matching nodes"), ({"pool": "mixed"}, "model", "V100")],
    ids=["a100", "with-v100"],
)
def test_auto_follows_the_selected_nodes(kube, pools, selector, dtype, says):
    kube.apply(deployment_of("demo", podTemplate={"nodeSelector": selector}))
    kube.wait_condition("demo", "Ready", "True", timeout=120)
    status = kube.get("lld", "demo")["status"]
    assert status["kvCacheDtype"] == dtype
    assert says in status["kvCacheReason"]
    [pod] = kube.serving_pods("demo")
    assert f"--kv-dtype={dtype}" in pod["spec"]["containers"][0]["args"]


def test_an_explicit_int8_that_a_node_forbids_is_refused(kube, pools):
    selected = {"nodeSelector": {"pool": "mixed"}}
    kube.apply(deployment_of("demo", podTemplate=selected, kvCache={"dtype": "Int8"}))
    told = kube.wait_condition("demo", "ConfigValid", "False", "UnsupportedKVCache", timeout=30)
    assert "node v100" in told["message"]
