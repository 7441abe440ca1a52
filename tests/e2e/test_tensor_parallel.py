"""The tensor-parallel size follows from GPUs and heads, never through a crash loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from kube import condition, deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"
WRITER = Path(__file__).parents[1] / "support" / "tiny_llama.py"


def args_of(kube, name: str) -> list[str]:
    [pod] = kube.serving_pods(name)
    [container] = pod["spec"]["containers"]
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    return container["args"]


def test_four_gpus_and_the_example_give_4(kube):
    kube("apply", "-f", str(EXAMPLES / "tensor-parallel.yaml"))
    kube.wait_condition("demo-tp", "Ready", "True", timeout=120)
    assert "--tp=4" in args_of(kube, "demo-tp")
    assert condition(kube.get("lld", "demo-tp"), "GPUsUnderused")["status"] == "False"


@pytest.mark.parametrize(
    ("gpus", "heads", "kv_heads", "size"), [(4, 6, 6, 3), (3, 8, 8, 2)], ids=["4-6", "3-8"]
)
def test_gpus_that_the_heads_do_not_divide_idle(kube, gpus, heads, kv_heads, size):
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    kube.apply(claim)
    shape = f"num_attention_heads={heads}, num_key_value_heads={kv_heads}"
    shape += f", hidden_size={heads * 16}, intermediate_size={heads * 32}"
    write = f"\nwrite_tiny_llama(Path('/models/tiny'), {shape})\n"
    kube.run_pod("writer", "python", "-c", WRITER.read_text() + write, claim="models")
    kube.apply(deployment_of("odd", model={"uri": "pvc://models/tiny"}, gpu={"count": gpus}))
    kube.wait_condition("odd", "Ready", "True", timeout=120)
    assert f"--tp={size}" in args_of(kube, "odd")
    body = kube.get("lld", "odd")
    assert body["status"]["tensorParallelSize"] == size
    told = condition(body, "GPUsUnderused")
    assert told["status"] == "True"
    assert f"set spec.gpu.count to {size}" in told["message"]
