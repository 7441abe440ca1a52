"""The examples as they stand come to Ready and answer; one at a time, since there are four GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lightllm_server.client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

EXAMPLES = Path(__file__).parents[2] / "examples"
# example: the resource's name, GPUs that each pod has, type of the KV cache
TESTED = {
    "demo": ("demo", 1, "int8"),
    "tensor-parallel": ("demo-tp", 4, "int8"),
    "int8": ("demo-int8", 1, "int8"),
    "autoscaling": ("demo-autoscaling", 1, "int8"),
    "pvc": ("demo-pvc", 1, "int8"),
}


@pytest.mark.parametrize("example", TESTED)
def test_an_example_comes_to_ready_and_answers(kube, example):
    name, gpus, kv_dtype = TESTED[example]
    kube("apply", "-f", str(EXAMPLES / f"{example}.yaml"))
    kube.wait_condition(name, "Ready", "True", "Serving", timeout=240)
    body = kube.get("lld", name)
    if "autoscaling" in body["spec"]:
        kube.wait_condition(name, "ScalingActive", "True", timeout=30)
    status = body["status"]
    assert (status["tensorParallelSize"], status["kvCacheDtype"]) == (gpus, kv_dtype)
    answer = Client(f"http://{kube.address(name)}").query("What is TokenAttention?")
    assert "every token has its own slot" in answer


def test_the_list_names_exactly_these_as_tested():
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    marked = re.findall(r"^\| \[(\S+)\.yaml\].*\*tested\* \|$", readme, re.MULTILINE)
    assert {*marked} == {*TESTED}


def test_each_resource_has_the_name_expected_here():
    for example, (name, gpus, _) in TESTED.items():
        documents = yaml.safe_load_all((EXAMPLES / f"{example}.yaml").read_text(encoding="utf-8"))
        [body] = [each for each in documents if each["kind"] == "LightLLMDeployment"]
        assert (body["metadata"]["name"], body["spec"]["gpu"]["count"]) == (name, gpus)
