"""What the API server does with resources: defaults, pruning, subresources, columns, conflicts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from crd_cases import HUB, spec
from crd_schema import resources, version
from rest import Rest

pytestmark = pytest.mark.slow

MERGE = "application/merge-patch+json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
STATUS = {
    "replicas": 3,
    "readyReplicas": 2,
    "desiredReplicas": 3,
    "selector": "app.kubernetes.io/instance=demo",
    "tensorParallelSize": 2,
    "kvCacheDtype": "int8",
    "queueDepth": 7,
    "url": "http://demo.default.svc",
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Serving",
            "message": "2 pods serve",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
}


@pytest.fixture
def path(namespace: str) -> str:
    return resources(namespace)


def create(rest: Rest, path: str, **fields: Any) -> dict[str, Any]:
    return rest("POST", path, spec(**fields), fieldValidation="Strict").expect(201)


def test_absent_fields_get_their_defaults(rest: Rest, path: str) -> None:
    made = create(rest, path, autoscaling={"maxReplicas": 3})
    rule = {"periodSeconds": 60}
    assert made["spec"] == {
        "model": {"uri": "file:///models/demo-model", "dtype": "auto"},
        "gpu": {"count": 1, "resourceName": "nvidia.com/gpu"},
        "kvCache": {"dtype": "Auto", "memoryPercent": 90},
        "autoscaling": {
            "minReplicas": 1,
            "maxReplicas": 3,
            "targetQueueDepth": 4,
            "tolerancePercent": 10,
            "scaleUp": {"stabilizationWindowSeconds": 0, "maxPods": 4, **rule},
            "scaleDown": {"stabilizationWindowSeconds": 300, "maxPods": 1, **rule},
        },
        "rollout": {"type": "Auto", "progressDeadlineSeconds": 1800},
        "drainTimeoutSeconds": 120,
        "startupTimeoutSeconds": 1800,
        "suspend": False,
        "service": {"type": "ClusterIP", "port": 80},
        "podTemplate": {},
    }
    # a default there would make every GitOps tool see a difference that nobody made
    assert "replicas" not in made["spec"]


def test_every_default_of_the_schema_is_seen(rest: Rest, path: str) -> None:
    made = create(
        rest,
        path,
        model={"uri": HUB, "tokenSecretRef": {"name": "a"}},
        cache={"size": "1Gi"},
        autoscaling={"maxReplicas": 3},
    )

    def defaults(schema: dict[str, Any], at: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        for name, child in schema.get("properties", {}).items():
            if child.get("default", {}) != {}:
                yield (*at, name, child["default"])
            yield from defaults(child, (*at, name))

    listed = [*defaults(version()["schema"]["openAPIV3Schema"], ())]
    assert len(listed) >= 20
    for *keys, value in listed:
        found: Any = made
        for key in keys:
            found = found[key]
        assert found == value, keys


def test_unknown_fields_are_refused_by_kubectl_and_else_dropped(rest: Rest, path: str) -> None:
    body = spec(gpus=4, gpu={"counts": 4})
    strict = rest("POST", path, body, fieldValidation="Strict")
    assert strict.status == 400
    assert 'unknown field "spec.gpus"' in strict.message
    assert 'unknown field "spec.gpu.counts"' in strict.message
    made = rest("POST", path, body, fieldValidation="Ignore").expect(201)
    assert "gpus" not in made["spec"]
    assert made["spec"]["gpu"] == {"count": 1, "resourceName": "nvidia.com/gpu"}


def test_the_status_is_apart_from_the_spec(rest: Rest, path: str) -> None:
    made = create(rest, path)
    patch = {"spec": {"replicas": 9}, "status": STATUS}
    told = rest("PATCH", f"{path}/demo/status", patch, content_type=MERGE).expect(200)
    assert told["status"] == STATUS
    assert "replicas" not in told["spec"]
    assert told["metadata"]["generation"] == made["metadata"]["generation"] == 1
    patch = {"spec": {"replicas": 2}, "status": {"replicas": 0}}
    edited = rest("PATCH", f"{path}/demo", patch, content_type=MERGE).expect(200)
    assert edited["status"] == STATUS
    assert (edited["spec"]["replicas"], edited["metadata"]["generation"]) == (2, 2)


def test_metadata_alone_is_no_new_generation(rest: Rest, path: str) -> None:
    create(rest, path)
    patch = {"metadata": {"annotations": {"serving.lightllm.io/upgrade": "1"}}}
    edited = rest("PATCH", f"{path}/demo", patch, content_type=MERGE).expect(200)
    assert edited["metadata"]["generation"] == 1


def test_scale_reads_and_writes_the_replicas(rest: Rest, path: str) -> None:
    create(rest, path, replicas=2)
    rest("PATCH", f"{path}/demo/status", {"status": STATUS}, content_type=MERGE).expect(200)
    scale = rest("GET", f"{path}/demo/scale").expect(200)
    assert scale["kind"] == "Scale"
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 3, "selector": STATUS["selector"]}
    patch = {"spec": {"replicas": 5}}
    rest("PATCH", f"{path}/demo/scale", patch, content_type=MERGE).expect(200)
    body = rest("GET", f"{path}/demo").expect(200)
    assert (body["spec"]["replicas"], body["metadata"]["generation"]) == (5, 2)


def test_scale_without_replicas_can_be_written_but_not_read(rest: Rest, path: str) -> None:
    """Why users of an HPA must set spec.replicas once: it reads before it writes."""
    create(rest, path)
    answer = rest("GET", f"{path}/demo/scale")
    assert answer.status == 500
    assert ".spec.replicas" in answer.message
    patch = {"spec": {"replicas": 3}}
    rest("PATCH", f"{path}/demo/scale", patch, content_type=MERGE).expect(200)
    assert rest("GET", f"{path}/demo/scale").expect(200)["spec"] == {"replicas": 3}


def test_an_autoscaled_resource_refuses_scale(rest: Rest, path: str) -> None:
    create(rest, path, autoscaling={"maxReplicas": 3})
    patch = {"spec": {"replicas": 2}}
    answer = rest("PATCH", f"{path}/demo/scale", patch, content_type=MERGE)
    assert answer.status == 422
    assert "set replicas or autoscaling, not both" in answer.message


def test_a_scaled_resource_is_autoscaled_again_by_what_the_refusal_says(
    rest: Rest, path: str
) -> None:
    create(rest, path)
    by_scale = {"spec": {"replicas": 2}}
    rest("PATCH", f"{path}/demo/scale", by_scale, content_type=MERGE).expect(200)
    manifest = {"spec": {"autoscaling": {"maxReplicas": 3}}}
    refused = rest("PATCH", f"{path}/demo", manifest, content_type=MERGE)
    assert refused.status == 422
    [removal] = re.findall(r"kubectl patch lld NAME --type=merge -p '(.+?)'", refused.message)
    rest("PATCH", f"{path}/demo", json.loads(removal), content_type=MERGE).expect(200)
    body = rest("PATCH", f"{path}/demo", manifest, content_type=MERGE).expect(200)
    assert "replicas" not in body["spec"]


def test_scale_keeps_the_bounds(rest: Rest, path: str) -> None:
    create(rest, path, replicas=1)
    patch = {"spec": {"replicas": 1001}}
    assert rest("PATCH", f"{path}/demo/scale", patch, content_type=MERGE).status == 422


def test_the_columns(rest: Rest, path: str) -> None:
    create(rest, path)
    rest("PATCH", f"{path}/demo/status", {"status": STATUS}, content_type=MERGE).expect(200)
    table = rest("GET", path, accept=TABLE).expect(200)
    columns = {c["name"]: c for c in table["columnDefinitions"]}
    [row] = table["rows"]
    shown = dict(zip(columns, row["cells"], strict=True))
    age = shown.pop("Age")
    assert age.endswith("s")
    assert shown == {
        "Name": "demo",
        "Ready": "True",
        "Reason": "Serving",
        "Replicas": 2,
        "Desired": 3,
        "TP": 2,
        "KV": "int8",
        "Queue": 7,
        "URL": "http://demo.default.svc",
        "Model": "file:///models/demo-model",
    }
    assert [name for name in columns if columns[name]["priority"]] == ["URL", "Model"]
    assert all(columns[name]["description"] for name in shown)


def test_it_is_found_as_lld_but_no_delete_all_takes_it(rest: Rest) -> None:
    found = rest("GET", "/apis/serving.lightllm.io/v1alpha1").expect(200)["resources"]
    [resource] = [each for each in found if "/" not in each["name"]]
    assert resource["shortNames"] == ["lld"]
    assert resource["categories"] == ["lightllm"]
    assert resource["singularName"] == "lightllmdeployment"
    assert resource["namespaced"]
    names = {each["name"].partition("/")[2] for each in found}
    assert names == {"", "status", "scale"}


def test_two_appliers_conflict_over_a_field_not_over_the_object(rest: Rest, path: str) -> None:
    body = spec(replicas=2)
    rest.apply(f"{path}/demo", body, manager="team").expect(201)
    change = {**body, "spec": {**body["spec"], "replicas": 3}}
    answer = rest.apply(f"{path}/demo", change, manager="other")
    assert answer.status == 409
    assert 'conflict with "team": .spec.replicas' in answer.message
    beside = {**body, "spec": {**body["spec"], "drainTimeoutSeconds": 5}}
    rest.apply(f"{path}/demo", beside, manager="other").expect(200)
    taken = rest.apply(f"{path}/demo", change, manager="other", force="true").expect(200)
    # what `other` no longer names goes back to its default
    assert (taken["spec"]["replicas"], taken["spec"]["drainTimeoutSeconds"]) == (3, 120)


def test_the_operators_status_does_not_conflict_with_the_users_spec(rest: Rest, path: str) -> None:
    rest.apply(f"{path}/demo", spec(replicas=2), manager="team").expect(201)
    told = {**spec(), "status": STATUS}
    del told["spec"]
    rest.apply(f"{path}/demo/status", told, manager="lightllm-operator-status").expect(200)
    again = rest.apply(f"{path}/demo", spec(replicas=3), manager="team").expect(200)
    assert again["status"] == STATUS


def test_an_applied_status_keeps_one_condition_of_each_type(rest: Rest, path: str) -> None:
    create(rest, path)

    def tell(reason: str) -> dict[str, Any]:
        condition = {**STATUS["conditions"][0], "reason": reason}
        body = {**spec(), "status": {"conditions": [condition]}}
        del body["spec"]
        return rest.apply(f"{path}/demo/status", body, manager="operator").expect(200)

    tell("Serving")
    conditions = tell("Suspended")["status"]["conditions"]
    assert [c["reason"] for c in conditions] == ["Suspended"]
