"""How the API server is reached."""

from __future__ import annotations

import asyncio
import json

import pytest

from lightllm_operator.cluster.client import Cluster

SERVER = "https://kubernetes.test:6443"


@pytest.fixture
def kubeconfig(tmp_path, monkeypatch):
    path = tmp_path / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": SERVER}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    path.write_text(json.dumps(document))
    for name in ("HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    # read when the client is imported
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy.test:3128"}, "http://proxy.test:3128"),
        ({"HTTP_PROXY": "http://proxy.test:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": "kubernetes.test"}, None),
    ],
)
def test_the_proxy_of_the_environment_is_used(kubeconfig, monkeypatch, environment, proxy):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    async def connect():
        cluster = await Cluster.connect()
        try:
            configuration = cluster._api.configuration
            assert (configuration.host, configuration.proxy) == (SERVER, proxy)
        finally:
            await cluster.close()

    asyncio.run(connect())
