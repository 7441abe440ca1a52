"""A model in a bucket: moto runs on the host, which pods reach by the bridge's address."""

from __future__ import annotations

from pathlib import Path

import pytest

import s3_server
from kube import Load, deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

MODEL = Path(__file__).parents[2] / "examples" / "demo-model"


@pytest.fixture
def endpoint(kube):
    import layout

    keys = {"AWS_ACCESS_KEY_ID": s3_server.KEY, "AWS_SECRET_ACCESS_KEY": s3_server.SECRET}
    literals = [f"--from-literal={name}={value}" for name, value in keys.items()]
    kube("create", "secret", "generic", "s3", *literals)
    with s3_server.running(layout.NODE_IP) as url:
        s3_server.upload(url, MODEL, "weights", "models/demo")
        yield url


@pytest.mark.parametrize(
    "cache",
    [{}, {"cache": {"size": "1Gi", "accessMode": "ReadWriteOnce"}}],
    ids=["each-pod", "cached"],
)
def test_a_model_of_a_bucket_is_served(kube, endpoint, cache):
    model = {
        "uri": "s3://weights/models/demo",
        "endpoint": endpoint,
        "credentialsSecretRef": {"name": "s3"},
    }
    kube.apply(deployment_of("demo", model=model, **cache))
    kube.wait_condition("demo", "Ready", "True", timeout=180)
    with Load(kube.address("demo"), clients=1, max_new_tokens=5) as load:
        kube.wait("an answer", lambda: load.num_answered or load.failures)
    assert load.failures == []
    for what in ("lld", "pods", "jobs", "deployments", "events"):
        assert s3_server.SECRET not in kube("get", what, "-o=yaml")


def test_a_bucket_that_is_not_there_is_said(kube, endpoint):
    model = {
        "uri": "s3://nobucket/models/demo",
        "endpoint": endpoint,
        "credentialsSecretRef": {"name": "s3"},
    }
    kube.apply(deployment_of("bad", model=model))
    told = kube.wait_condition("bad", "ModelAvailable", "False", "NotFound", timeout=30)
    assert "no such bucket" in told["message"]
