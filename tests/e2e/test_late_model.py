"""A model that comes to its claim after the resource was applied is found by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightllm_server.client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "pvc.yaml"


def test_a_model_copied_into_its_claim_later_is_served(kube):
    claim, copy, deployment = yaml.safe_load_all(EXAMPLE.read_text(encoding="utf-8"))
    for manifest in (claim, deployment):
        kube.apply(manifest)
    name = deployment["metadata"]["name"]
    told = kube.wait_condition(name, "ConfigValid", "False", "UnsupportedModel", timeout=60)
    assert "no such directory" in told["message"]
    kube.apply(copy)
    # an empty claim is looked at again a minute after the last look
    kube.wait_condition(name, "Ready", "True", "Serving", timeout=180)
    assert Client(f"http://{kube.address(name)}").query("What is TokenAttention?")
