"""Children as objects: what the fields of the spec do to them, and the rules that all keep."""

from __future__ import annotations

from copy import deepcopy

import pytest

from lightllm_operator import cache, manifests
from lightllm_operator.containment import contains
from lightllm_operator.errors import SpecError
from lightllm_operator.facts import Pinned
from lightllm_operator.settings import Settings
from operator_objects import spec_of
from spec_fields import FIELDS

SETTINGS = Settings(serving_image="server:1")
PINNED = Pinned(
    template_version=manifests.TEMPLATE_VERSION,
    image="server:1",
    spec_hash="0",
    tensor_parallel_size=2,
    kv_dtype="int8",
    kv_reason="",
)


def deployment(**spec):
    parsed = spec_of(**spec)
    rollout = manifests.strategy(parsed, any_ready=True, surge_blocked=False)
    return manifests.deployment(parsed, SETTINGS, PINNED, "{}", rollout)


def pod_spec(manifest):
    return manifest["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", FIELDS)
def test_an_edit_of_a_field_reaches_the_pods(name):
    assert deployment(**{name: FIELDS[name]}) != deployment()


@pytest.mark.parametrize(
    "manifest",
    [
        deployment(),
        deployment(**FIELDS),
        manifests.check_job(spec_of(), SETTINGS),
        manifests.check_job(spec_of(**FIELDS), SETTINGS),
        cache.fetch_job(spec_of(**FIELDS, cache={"size": "1Gi"}), SETTINGS),
    ],
    ids=["deployment", "everything", "check", "remote check", "fetch"],
)
def test_pods_pass_the_restricted_standard(manifest):
    spec = pod_spec(manifest)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        security = container["securityContext"]
        assert not security["allowPrivilegeEscalation"]
        assert security["readOnlyRootFilesystem"]
        assert security["capabilities"] == {"drop": ["ALL"]}
    allowed = {"emptyDir", "persistentVolumeClaim", "secret"}
    assert all(set(volume) - {"name"} <= allowed for volume in spec["volumes"])


def test_gpus_are_asked_for_and_their_taint_tolerated():
    spec = pod_spec(deployment(gpu={"count": 2}))
    resources = spec["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "2"
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in spec["tolerations"]
    assert "--device=cuda" in spec["containers"][0]["args"]


def test_the_check_needs_no_gpu_and_runs_on_the_same_nodes():
    spec = spec_of(gpu={"count": 4, "product": "T4"})
    pod = pod_spec(manifests.check_job(spec, SETTINGS))
    assert "nvidia.com/gpu" not in str(pod["containers"][0]["resources"])
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "T4"}


def test_a_check_is_made_for_each_model_and_image():
    names = {
        manifests.check_name(spec, SETTINGS)
        for spec in (spec_of(), spec_of(image="other"), spec_of(model={"uri": "file:///m"}))
    }
    assert len(names) == 3
    assert manifests.check_name(spec_of(replicas=3), SETTINGS) in names


def test_the_pod_outlives_its_drain():
    spec = pod_spec(deployment(drainTimeoutSeconds=60))
    assert spec["terminationGracePeriodSeconds"] == 85
    assert "--drain-time=70" in spec["containers"][0]["args"]


def test_a_load_that_never_ends_is_cut_after_the_startup_timeout():
    # while the model loads the server's /livez is 200 and its /readyz 503
    [container] = pod_spec(deployment(startupTimeoutSeconds=61))["containers"]
    probe = container["startupProbe"]
    assert probe["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert probe["periodSeconds"] * probe["failureThreshold"] == 62
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_no_option_of_the_operator_can_be_overridden():
    [container] = pod_spec(deployment(**FIELDS))["containers"]
    options = [argument for argument in container["args"] if argument not in FIELDS["extraArgs"]]
    assert len(options) == 15
    for option in options:
        for said in ([option], [option.partition("=")[0], "0"]):
            with pytest.raises(SpecError, match="which the operator sets itself"):
                spec_of(extraArgs=said)


def test_the_key_is_a_file_and_never_in_the_environment():
    spec = pod_spec(deployment(apiKeySecretRef={"name": "s", "key": "k"}))
    [container] = spec["containers"]
    assert "--api-key-file=/etc/lightllm/api-key/keys" in container["args"]
    assert container["env"] == []


@pytest.mark.parametrize(
    ("rollout", "any_ready", "blocked", "expected"),
    [
        ({}, True, False, (1, 0)),
        ({}, True, True, (0, 1)),
        ({}, False, False, (0, "100%")),
        ({"type": "RollingUpdate"}, True, True, (1, 0)),
        ({"maxSurge": 0}, True, False, (0, 1)),
        ({"maxUnavailable": 2}, True, False, (0, 2)),
        ({"maxSurge": "50%", "maxUnavailable": 1}, True, False, ("50%", 1)),
    ],
)
def test_how_pods_are_replaced(rollout, any_ready, blocked, expected):
    strategy = manifests.strategy(
        spec_of(rollout=rollout), any_ready=any_ready, surge_blocked=blocked
    )
    surge, unavailable = expected
    assert strategy["rollingUpdate"] == {"maxSurge": surge, "maxUnavailable": unavailable}


def test_every_child_belongs_to_its_resource():
    spec = spec_of()
    children = [
        deployment(),
        manifests.check_job(spec, SETTINGS),
        manifests.service(spec),
        manifests.disruption_budget(spec),
        cache.cache_claim(spec_of(model={"uri": "hf://o/n"}, cache={"size": "1Gi"})),
        cache.fetch_job(spec_of(model={"uri": "hf://o/n"}, cache={"size": "1Gi"}), SETTINGS),
    ]
    for child in children:
        [owner] = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == ("uid-demo", True)


def test_a_live_object_with_defaults_contains_its_manifest():
    wanted = deployment(**FIELDS)
    live = deepcopy(wanted)
    live["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"
    live["spec"]["replicas"] = 3
    del live["spec"]["template"]["metadata"]["annotations"]
    wanted["spec"]["template"]["metadata"]["annotations"] = {}
    assert contains(live, wanted)
    live["spec"]["template"]["spec"]["containers"][0]["args"].pop()
    assert not contains(live, wanted)
