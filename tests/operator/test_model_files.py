"""How pods get a model that must be fetched: init container, cache, Secrets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightllm_operator import cache, manifests
from lightllm_operator.facts import Pinned
from lightllm_operator.settings import Settings
from lightllm_server.cli import _fetch_parser
from operator_objects import spec_of

SETTINGS = Settings(serving_image="server:1")
PINNED = Pinned(
    template_version=manifests.TEMPLATE_VERSION,
    image="server:1",
    spec_hash="0",
    tensor_parallel_size=1,
    kv_dtype="model",
    kv_reason="",
)
HUB = {"uri": "hf://org/name", "revision": "v2", "tokenSecretRef": {"name": "hub", "key": "k"}}
S3 = {
    "uri": "s3://bucket/models/x",
    "endpoint": "http://minio:9000",
    "credentialsSecretRef": {"name": "keys"},
}


def pod_of_deployment(pinned=PINNED, **spec):
    parsed = spec_of(**spec)
    made = manifests.deployment(parsed, SETTINGS, pinned, "{}", {})
    return made["spec"]["template"]["spec"]


def pod_of_check(**spec):
    return manifests.check_job(spec_of(**spec), SETTINGS)["spec"]["template"]["spec"]


def pod_of_fetch(**spec):
    return cache.fetch_job(spec_of(**spec), SETTINGS)["spec"]["template"]["spec"]


def mount(container, path):
    [found] = [m for m in container["volumeMounts"] if m["mountPath"] == path]
    return found


def volume(pod, name):
    [found] = [v for v in pod["volumes"] if v["name"] == name]
    return found


def options_of(container):
    """As the server's own parser takes them."""
    assert container["args"][0] == "fetch"
    return _fetch_parser().parse_args(container["args"][1:])


def argument(container, name):
    [found] = [word for word in container["args"] if word.startswith(f"--{name}=")]
    return found.partition("=")[2]


@pytest.mark.parametrize("uri", ["file:///m", "pvc://claim/m"])
def test_a_model_that_is_there_is_not_fetched(uri):
    assert "initContainers" not in pod_of_deployment(model={"uri": uri})
    assert "initContainers" not in pod_of_check(model={"uri": uri})


def test_without_a_cache_each_pod_fetches_into_a_volume_that_its_server_cannot_write():
    pod = pod_of_deployment(model=HUB)
    [fetch], [server] = pod["initContainers"], pod["containers"]
    options = options_of(fetch)
    assert (options.uri, options.revision, options.headers_only) == ("hf://org/name", "v2", False)
    assert str(options.target) == argument(server, "model-dir")
    assert volume(pod, "model") == {"name": "model", "emptyDir": {}}
    assert "readOnly" not in mount(fetch, "/models/fetched")
    assert mount(server, "/models/fetched")["readOnly"]
    assert "nvidia.com/gpu" not in str(fetch["resources"])


def test_the_check_fetches_headers_alone():
    pod = pod_of_check(model=HUB)
    [fetch], [check] = pod["initContainers"], pod["containers"]
    assert options_of(fetch).headers_only
    assert str(options_of(fetch).target) == check["command"][-1]
    assert mount(check, "/models/fetched")["readOnly"]


def test_all_pods_get_the_commit_that_was_checked():
    pod = pod_of_deployment(replace(PINNED, commit="c0ffee"), model=HUB)
    assert options_of(pod["initContainers"][0]).revision == "c0ffee"


@pytest.mark.parametrize(
    ("field", "claim"), [({"claimName": "mine"}, "mine"), ({"size": "9Gi"}, "demo-cache")]
)
def test_with_a_cache_one_job_fetches_and_the_others_only_read(field, claim):
    spec = {"model": HUB, "cache": field}
    expected = {"name": "model", "persistentVolumeClaim": {"claimName": claim}}
    [fetch] = pod_of_fetch(**spec)["containers"]
    assert "readOnly" not in mount(fetch, "/models/fetched")
    assert "nvidia.com/gpu" not in str(fetch["resources"])
    for pod in (pod_of_deployment(**spec), pod_of_check(**spec), pod_of_fetch(**spec)):
        assert volume(pod, "model") == expected
        assert "initContainers" not in pod
    for pod in (pod_of_deployment(**spec), pod_of_check(**spec)):
        assert mount(pod["containers"][0], "/models/fetched")["readOnly"]
        assert "secret" not in str(pod["volumes"])
    target = str(options_of(fetch).target)
    assert target == argument(pod_of_deployment(**spec)["containers"][0], "model-dir")
    assert target == pod_of_check(**spec)["containers"][0]["command"][-1]


@pytest.mark.parametrize(
    ("model", "name", "secret", "items", "option"),
    [
        (HUB, "hub-token", "hub", [{"key": "k", "path": "token"}], "token_file"),
        (
            S3,
            "s3-credentials",
            "keys",
            [{"key": key, "path": key} for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")],
            "credentials_dir",
        ),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_secrets_are_files_of_the_fetch_container_alone(model, name, secret, items, option, cached):
    if cached:
        pod = pod_of_fetch(model=model, cache={"size": "9Gi"})
        [fetch], others = pod["containers"], []
    else:
        pod = pod_of_deployment(model=model)
        [fetch], others = pod["initContainers"], pod["containers"]
    source = {"secretName": secret, "items": items, "defaultMode": 0o440}
    assert volume(pod, name) == {"name": name, "secret": source}
    [mounted] = [m for m in fetch["volumeMounts"] if m["name"] == name]
    assert mounted["readOnly"]
    assert str(getattr(options_of(fetch), option)).startswith(mounted["mountPath"])
    assert not [m for c in others for m in c["volumeMounts"] if m["name"] == name]
    assert "secretKeyRef" not in str(pod)
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]


def test_the_endpoint_reaches_the_fetch():
    assert options_of(pod_of_deployment(model=S3)["initContainers"][0]).endpoint == S3["endpoint"]


def test_the_environment_reaches_the_fetch():
    env = [{"name": "HTTPS_PROXY", "value": "http://proxy"}]
    [fetch] = pod_of_deployment(model=HUB, env=env)["initContainers"]
    assert fetch["env"] == env


@pytest.mark.parametrize(
    "edit",
    [
        {"uri": "hf://org/other"},
        {"revision": "v3"},
        {"endpoint": "http://mirror"},
        {"tokenSecretRef": {"name": "other", "key": "k"}},
        {"tokenSecretRef": {"name": "hub", "key": "other"}},
    ],
)
def test_an_edit_of_the_source_is_fetched_and_checked_anew(edit):
    before, after = (
        spec_of(model=model, cache={"claimName": "c"}) for model in (HUB, {**HUB, **edit})
    )
    for name in (manifests.check_name, cache.fetch_name):
        assert name(before, SETTINGS) != name(after, SETTINGS)
    assert name(before, SETTINGS) == name(
        spec_of(model=HUB, cache={"claimName": "c"}, replicas=3), SETTINGS
    )


def test_revisions_lie_beside_each_other_in_a_claim():
    dirs = {
        argument(pod_of_deployment(model={**HUB, **edit})["containers"][0], "model-dir")
        for edit in ({}, {"revision": "v3"}, {"endpoint": "http://mirror"}, {"uri": "hf://o/m"})
    }
    assert len(dirs) == 4


def test_the_claim_is_made_as_the_spec_says():
    assert cache.cache_claim(spec_of(model=HUB)) is None
    assert cache.cache_claim(spec_of(model=HUB, cache={"claimName": "mine"})) is None
    asked = {"size": "9Gi", "storageClassName": "fast", "accessMode": "ReadWriteOnce"}
    claim = cache.cache_claim(spec_of(model=HUB, cache=asked))
    assert claim["metadata"]["name"] == "demo-cache"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "9Gi"}},
        "storageClassName": "fast",
    }


def test_what_another_try_does_not_help_ends_its_job():
    from lightllm_server.errors import EXIT_CONFIG
    from lightllm_server.fetch.command import EXIT_CODES

    job = cache.fetch_job(spec_of(model=HUB, cache={"size": "9Gi"}), SETTINGS)
    check = manifests.check_job(spec_of(model=HUB), SETTINGS)
    assert check["spec"]["podFailurePolicy"] == job["spec"]["podFailurePolicy"]
    [rule] = job["spec"]["podFailurePolicy"]["rules"]
    final = {*EXIT_CODES.values(), EXIT_CONFIG} - {EXIT_CODES["DownloadFailed"]}
    assert set(rule["onExitCodes"]["values"]) == final
    assert (
        rule["onExitCodes"]["containerName"]
        == job["spec"]["template"]["spec"]["containers"][0]["name"]
    )
