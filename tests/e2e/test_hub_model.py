"""A model of a hub: the look-alike runs on the host, which pods reach by the bridge's address."""

from __future__ import annotations

from pathlib import Path

import pytest

import fake_hub
from kube import Load, condition, deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

MODEL = Path(__file__).parents[2] / "examples" / "demo-model"
TOKEN = "hf_canaryTokenOfTheHub"


@pytest.fixture
def hub(kube):
    import layout

    repos = {
        "org/open": fake_hub.Repo({"main": MODEL}),
        "org/private": fake_hub.Repo({"main": MODEL}, token=TOKEN),
    }
    kube("create", "secret", "generic", "hub", f"--from-literal=token={TOKEN}")
    with fake_hub.running(repos, layout.NODE_IP) as running:
        yield running


def model_of(hub, repo: str, **fields):
    return {"uri": f"hf://{repo}", "endpoint": hub.url, **fields}


def answers(kube, name: str) -> bool:
    with Load(kube.address(name), clients=1, max_new_tokens=5) as load:
        kube.wait("an answer", lambda: load.num_answered or load.failures)
    assert load.failures == []
    return load.num_answered > 0


def test_a_private_model_is_fetched_by_each_pod_with_the_token(kube, hub):
    model = model_of(hub, "org/private", tokenSecretRef={"name": "hub"})
    kube.apply(deployment_of("demo", model=model))
    kube.wait_condition("demo", "Ready", "True", timeout=180)
    assert answers(kube, "demo")
    [pod] = kube.serving_pods("demo")
    commit = fake_hub.commit_of(MODEL)
    assert f"--revision={commit}" in pod["spec"]["initContainers"][0]["args"]
    for what in ("lld", "pods", "jobs", "deployments", "events"):
        assert TOKEN not in kube("get", what, "-o=yaml")
    for container in ("fetch", "server"):
        assert TOKEN not in kube("logs", pod["metadata"]["name"], f"--container={container}")


@pytest.mark.parametrize(
    ("model", "reason", "says"),
    [
        ({"uri": "hf://org/private"}, "AuthenticationFailed", "spec.model.tokenSecretRef"),
        ({"uri": "hf://org/open", "revision": "v9"}, "NotFound", "no revision v9"),
        (
            {"uri": "hf://org/none", "tokenSecretRef": {"name": "hub"}},
            "NotFound",
            "spec.model.uri",
        ),
    ],
    ids=["no-token", "revision", "repository"],
)
def test_what_cannot_be_fetched_is_said_within_30_s(kube, hub, model, reason, says):
    # of which the one without a token has a Job of its own that fetches, the others the check's
    cached = "tokenSecretRef" not in model and "revision" not in model
    cache = {"cache": {"size": "1Gi", "accessMode": "ReadWriteOnce"}} if cached else {}
    kube.apply(deployment_of("bad", model={**model, "endpoint": hub.url}, **cache))
    told = kube.wait_condition("bad", "ModelAvailable", "False", reason, timeout=30)
    assert says in told["message"]
    assert condition(kube.get("lld", "bad"), "Ready")["reason"] == reason


def test_a_secret_that_is_missing_is_named(kube, hub):
    model = model_of(hub, "org/private", tokenSecretRef={"name": "nowhere"})
    kube.apply(deployment_of("bad", model=model))
    told = kube.wait_condition("bad", "ModelAvailable", "False", "SecretNotFound", timeout=60)
    assert "nowhere" in told["message"]


def test_a_cache_is_filled_once_told_about_and_resumed_after_a_kill(kube, hub):
    hub.hold_after = 2_000_000
    cache = {"size": "1Gi", "accessMode": "ReadWriteOnce"}
    kube.apply(deployment_of("demo", model=model_of(hub, "org/open"), cache=cache, replicas=2))
    told = {}

    def is_half_way() -> bool:
        nonlocal told
        told = condition(kube.get("lld", "demo"), "ModelAvailable")
        return told.get("reason") == "Downloading" and "54 %" in told["message"]

    kube.wait("the download is told about", is_half_way, 60)
    assert told["status"] == "Unknown"
    assert "2 of 4 MB" in told["message"]
    [pod] = kube.list("pods", "app.kubernetes.io/component=fetch")
    kube("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
    hub.release.set()
    kube.wait("two pods serve", lambda: _ready(kube) == 2, 180)
    assert answers(kube, "demo")
    begins = [asked.partition("-")[0] for asked in hub.ranges("model.safetensors")]
    assert begins == ["bytes=0", "bytes=2000000"]
    claim = kube.get("pvc", "demo-cache")
    assert claim["metadata"]["ownerReferences"][0]["name"] == "demo"
    # a third pod reads what is there
    kube("scale", "lld", "demo", "--replicas=3")
    kube.wait("three pods serve", lambda: _ready(kube) == 3, 60)
    assert len(hub.ranges("model.safetensors")) == 2


def _ready(kube) -> int:
    return kube.get("lld", "demo").get("status", {}).get("readyReplicas", 0)
