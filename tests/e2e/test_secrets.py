"""A canary in a Secret: it opens the server, and shows nowhere else."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from kube import deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CANARY = "canary-7f3a91c4e8"
KINDS = "lld,deployments,replicasets,pods,jobs,services,configmaps,events,poddisruptionbudgets"


def status_of(url: str, key: str) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_key_opens_the_server_and_is_nowhere_to_be_seen(kube, operator):
    kube("create", "secret", "generic", "keys", f"--from-literal=key={CANARY}")
    kube.apply(deployment_of("demo", apiKeySecretRef={"name": "keys", "key": "key"}))
    kube.wait_condition("demo", "Ready", "True", timeout=120)
    url = f"http://{kube.address('demo')}/v1/models"
    assert status_of(url, CANARY) == 200
    assert status_of(url, "another") == 401
    [pod] = kube.serving_pods("demo")
    environment = (
        "import pathlib\n"
        "for process in pathlib.Path('/proc').glob('[0-9]*'):\n"
        "    print((process / 'environ').read_bytes(), (process / 'cmdline').read_bytes())"
    )
    shown = {
        "objects": kube("get", KINDS, "-o=json"),
        "server's log": kube("logs", pod["metadata"]["name"]),
        "processes": kube("exec", pod["metadata"]["name"], "--", "python", "-c", environment),
        "operator's log": operator("logs", "deployment/lightllm", "--tail=-1"),
    }
    for where, text in shown.items():
        assert len(text) > 100, where
        assert CANARY not in text, where
    assert "lightllm" in shown["processes"]
