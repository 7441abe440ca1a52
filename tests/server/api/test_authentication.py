"""With keys, everything but the probes is refused without one; the metrics port needs none."""

from __future__ import annotations

import pytest

import fake_engine
from http_calls import call, metric, post_json
from lightllm_server.api.app import routes_app
from server_process import ServerProcess, free_port
from tiny_llama import tiny_llama

pytestmark = pytest.mark.slow

PROBES = {"/livez", "/readyz", "/health"}


@pytest.fixture(scope="module")
def metrics_port():
    return free_port()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, metrics_port):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("first-key\n\nsecond-key\n")
    options = ("--api-key-file", str(keys), "--metrics-port", str(metrics_port))
    with ServerProcess(tiny_llama(), *options, command=fake_engine.COMMAND) as server:
        server.wait_ready(120)
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def all_routes() -> list[tuple[str, str]]:
    app = routes_app(None)
    found = []
    for path, operations in app.openapi()["paths"].items():
        found += [(method.upper(), path) for method in operations]
    assert len(found) >= 15
    return [*found, ("GET", "/openapi.json")]


@pytest.mark.parametrize(("method", "path"), all_routes())
def test_every_route_but_the_probes_needs_a_key(guarded, method, path):
    answer = call(guarded.url, method, path.replace("{model_id}", "x"), b"{}")
    if path in PROBES:
        assert answer.status == 200
    else:
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.error["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "path",
    ["//livez", "/livez/", "/livez/../v1/models", "/livez%2f..%2fmetrics", "/LIVEZ", "/nope"],
)
def test_paths_like_probes_are_no_probes(guarded, path):
    assert call(guarded.url, "GET", path).status == 401


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "TRACE", "PUT"])
def test_other_methods_need_a_key_too(guarded, method):
    assert call(guarded.url, method, "/v1/models").status == 401


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_each_key_opens(guarded, key):
    assert call(guarded.url, "GET", "/v1/models", headers=bearer(key)).status == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer wrong",
        "Bearer ",
        "Bearer",
        "Basic first-key",
        "first-key",
        "Bearer first-key2",
        "Bearer first-ke",
        "Bearer first-key second-key",
        "",
    ],
)
def test_other_credentials_do_not(guarded, authorization):
    headers = {"Authorization": authorization}
    assert call(guarded.url, "GET", "/v1/models", headers=headers).status == 401


def test_a_huge_key_is_refused(guarded):
    answer = call(guarded.url, "GET", "/v1/models", headers=bearer("k" * 60_000))
    assert answer.status == 401


def test_the_metrics_port_serves_metrics_and_probes_key_free(guarded, metrics_port):
    url = f"http://127.0.0.1:{metrics_port}"
    assert metric(url, "lightllm_ready") == 1
    for path in PROBES:
        assert call(url, "GET", path).status == 200
    assert call(url, "GET", "/v1/models").status == 404
    assert post_json(url, "/generate", {"inputs": "x"}).status == 404
    assert call(guarded.url, "GET", "/metrics").status == 401


def test_keys_are_in_no_log_and_no_answer(guarded):
    call(guarded.url, "GET", "/v1/models", headers=bearer("first-key"))
    call(guarded.url, "GET", "/v1/models", headers=bearer("a-wrong-key"))
    assert "first-key" not in guarded.log
    assert "a-wrong-key" not in guarded.log
