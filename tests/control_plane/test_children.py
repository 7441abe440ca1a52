"""What the schema accepts the API server accepts in the children too: no error comes later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from crd_cases import CONTAINERS, PATTERNS, RULES, beside, spec
from crd_schema import resources
from lightllm_operator import cache, manifests
from lightllm_operator.facts import Pinned
from lightllm_operator.model_files import is_cached
from lightllm_operator.settings import Settings
from lightllm_operator.spec import DeploymentSpec, parse
from rest import Rest
from spec_fields import FIELDS

pytestmark = pytest.mark.slow

SETTINGS = Settings(serving_image="server:1")
PINNED = Pinned(
    template_version=manifests.TEMPLATE_VERSION,
    image="server:1",
    spec_hash="0",
    tensor_parallel_size=1,
    kv_dtype="auto",
    kv_reason="",
)
PATHS = {
    "Deployment": "/apis/apps/v1/namespaces/default/deployments",
    "Job": "/apis/batch/v1/namespaces/default/jobs",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
    "PersistentVolumeClaim": "/api/v1/namespaces/default/persistentvolumeclaims",
    "Service": "/api/v1/namespaces/default/services",
}


def accepted() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((f"field {name}", spec(**{name: value})) for name, value in FIELDS.items())
    for path, rules in RULES.items():
        for message, rule in rules.items():
            for number, body in enumerate(rule.accepted):
                yield f"{path} {message} {number}", body
    for path, (values, _) in PATTERNS.items():
        yield from ((f"{path} {value!r}", with_value(path, value)) for value in values)


def with_value(path: str, value: str) -> dict[str, Any]:
    """A resource with that value, e.g. at `spec.env[].name`."""
    body = spec(**beside(path))
    parent, *keys = path.split(".")
    node: Any = body[parent]
    for key in keys:
        name = key.rstrip("[]{}")
        parent += f".{name}"
        if key == keys[-1] and key == name:
            node[name] = value
        elif key.endswith("{}"):
            # the only maps with patterns are of quantities and of labels
            node[name] = {"cpu" if "resources" in path else "k": value}
        elif key.endswith("[]"):
            node[name] = [deepcopy(CONTAINERS[f"{parent}[]"])]
            node = node[name][0]
            parent += "[]"
        else:
            node = node.setdefault(name, deepcopy(CONTAINERS.get(parent, {})))
    return body


def children(parsed: DeploymentSpec) -> Iterator[dict[str, Any]]:
    yield manifests.check_job(parsed, SETTINGS)
    if is_cached(parsed):
        yield cache.fetch_job(parsed, SETTINGS)
    if (claim := cache.cache_claim(parsed)) is not None:
        yield claim
    yield manifests.service(parsed)
    yield manifests.disruption_budget(parsed)
    for any_ready, surge_blocked in ((True, False), (True, True), (False, False)):
        rollout = manifests.strategy(parsed, any_ready=any_ready, surge_blocked=surge_blocked)
        yield manifests.deployment(parsed, SETTINGS, PINNED, "{}", rollout)


@pytest.mark.parametrize("body", [b for _, b in accepted()], ids=[name for name, _ in accepted()])
def test_an_accepted_resource_has_acceptable_children(rest: Rest, body: dict[str, Any]) -> None:
    options = {"dryRun": "All", "fieldValidation": "Strict"}
    stored = rest("POST", resources("default"), body, **options).expect(201)
    for child in children(parse(stored)):
        answer = rest("POST", PATHS[child["kind"]], child, **options)
        assert answer.status == 201, f"{child['kind']}: {answer.message}\n{json.dumps(child)}"
