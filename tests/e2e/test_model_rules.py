"""What the API server accepts and refuses of a model's source and its cache."""

from __future__ import annotations

import json

import pytest

from kube import deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

HUB, S3, CLAIM = ({"uri": uri} for uri in ("hf://org/name", "s3://bucket/x", "pvc://claim/x"))
TOKEN, KEYS = {"tokenSecretRef": {"name": "s"}}, {"credentialsSecretRef": {"name": "s"}}

ACCEPTED = [
    {"model": {**HUB, **TOKEN, "revision": "v1", "endpoint": "http://hub:8080"}},
    {"model": {"uri": "hf://gpt2"}, "cache": {"claimName": "mine"}},
    {"model": {**S3, **KEYS, "endpoint": "https://minio"}, "cache": {"size": "80Gi"}},
    {
        "model": HUB,
        "cache": {"size": "9Gi", "storageClassName": "fast", "accessMode": "ReadWriteOnce"},
    },
]
REFUSED = [
    ({"model": {"uri": "oci://image"}}, "uri must be hf://"),
    ({"model": {"uri": "hf://org/name/more"}}, "must be hf://org/name"),
    ({"model": {**S3, "revision": "v1"}}, "revision is for hf://"),
    ({"model": {**S3, **TOKEN}}, "tokenSecretRef is for hf://"),
    ({"model": {**HUB, **KEYS}}, "credentialsSecretRef is for s3://"),
    ({"model": {**CLAIM, "endpoint": "http://hub"}}, "endpoint is for"),
    ({"model": {**HUB, "endpoint": "hub"}}, "spec.model.endpoint"),
    ({"model": CLAIM, "cache": {"size": "9Gi"}}, "cache is for hf:// and s3://"),
    ({"model": HUB, "cache": {}}, "set cache.claimName or cache.size"),
    ({"model": HUB, "cache": {"size": "9Gi", "claimName": "c"}}, "cache.claimName or cache.size"),
    ({"model": HUB, "cache": {"claimName": "c", "storageClassName": "s"}}, "storageClassName is"),
    ({"model": HUB, "cache": {"size": "nine"}}, "spec.cache.size"),
    ({"model": HUB, "cache": {"size": "9Gi", "accessMode": "ReadOnlyMany"}}, "accessMode"),
]
EDITS = [
    ({"size": "10Gi"}, None),
    ({"size": "9216Mi"}, None),
    ({"size": "8Gi"}, "only grow"),
    ({"size": "9Gi", "accessMode": "ReadWriteOnce"}, "only size may change"),
    ({"size": "9Gi", "storageClassName": "slow"}, "only size may change"),
    ({"claimName": "mine"}, "cannot become cache.claimName"),
]


@pytest.mark.parametrize("spec", ACCEPTED)
def test_is_accepted(kube, spec):
    manifest = json.dumps(deployment_of("x", **spec))
    kube("create", "--dry-run=server", "-f", "-", stdin=manifest)


@pytest.mark.parametrize(("spec", "says"), REFUSED)
def test_is_refused(kube, spec, says):
    manifest = json.dumps(deployment_of("x", **spec))
    assert says in kube("create", "--dry-run=server", "-f", "-", stdin=manifest, ok=False)


@pytest.mark.parametrize(("cache", "says"), EDITS)
def test_a_cache_may_grow_and_no_more(kube, cache, says):
    # suspended, and with a model that is nowhere: nothing is fetched meanwhile
    hub = {**HUB, "endpoint": "http://127.0.0.1:9"}
    kube.apply(deployment_of("x", model=hub, cache={"size": "9Gi"}, suspend=True))
    manifest = json.dumps(deployment_of("x", model=hub, cache=cache, suspend=True))
    said = kube("replace", "--dry-run=server", "-f", "-", stdin=manifest, ok=says is None)
    assert says is None or says in said
