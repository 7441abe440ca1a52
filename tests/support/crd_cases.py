"""What the CRD's rules and patterns accept and refuse, and what its bounds need to be tried.

Bounds, enums and types are tried from the schema itself; a rule or pattern without a case here
fails `tests/control_plane/test_crd_schema.py`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

__all__ = ["CONTAINERS", "HUB", "PATTERNS", "RULES", "STRETCHED", "Rule", "beside", "named", "spec"]

Body = dict[str, Any]

MODEL = {"uri": "file:///models/demo-model"}
HUB, S3 = "hf://org/name", "s3://bucket/a/b"


def spec(**fields: Any) -> Body:
    """A resource on the demo model, fields of its spec by keyword."""
    return {
        "apiVersion": "serving.lightllm.io/v1alpha1",
        "kind": "LightLLMDeployment",
        "metadata": {"name": "demo"},
        "spec": {"model": MODEL, **fields},
    }


def named(name: str) -> Body:
    return {**spec(), "metadata": {"name": name}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """before: the object that exists, for a rule on changes (`oldSelf`)."""

    accepted: tuple[Body, ...]
    refused: tuple[Body, ...]
    before: Body | None = None


def _model(uri: str, **fields: Any) -> Body:
    return spec(model={"uri": uri, **fields})


def _cached(**fields: Any) -> Body:
    return spec(model={"uri": HUB}, cache=fields)


def _rollout(**fields: Any) -> Body:
    return spec(rollout=fields)


def _toleration(**fields: Any) -> Body:
    return spec(podTemplate={"tolerations": [fields]})


# by the node's path, then by message
RULES: dict[str, dict[str, Rule]] = {
    "": {
        "metadata.name may have at most 48 characters, since Jobs add 15 to it": Rule(
            accepted=(named("a" * 48),), refused=(named("a" * 49),)
        ),
        "metadata.name must be lower-case letters, digits and dashes, a letter first, as the "
        "Service's name": Rule(
            accepted=(named("a"), named("llama-3-8b")), refused=(named("3b"), named("llama.v3"))
        ),
    },
    "spec": {
        "cache is for hf:// and s3://, other models are not fetched": Rule(
            accepted=(_cached(size="1Gi"),), refused=(spec(cache={"size": "1Gi"}),)
        ),
        "cache.size cannot become cache.claimName; remove cache first": Rule(
            before=_cached(size="1Gi"),
            accepted=(_cached(size="1Gi"), _model(HUB)),
            refused=(_cached(claimName="a"),),
        ),
        "of a cache only size may change, and only grow": Rule(
            before=_cached(size="2Gi", storageClassName="a"),
            accepted=(_cached(size="3Gi", storageClassName="a"),),
            refused=(
                _cached(size="1Gi", storageClassName="a"),
                _cached(size="2Gi", storageClassName="b"),
                _cached(size="2Gi"),
                _cached(size="2Gi", storageClassName="a", accessMode="ReadWriteOnce"),
            ),
        ),
        "set replicas or autoscaling, not both; spec.replicas may come from `kubectl scale`: "
        "remove it with `kubectl patch lld NAME --type=merge -p "
        '\'{"spec":{"replicas":null}}\'`': Rule(
            accepted=(spec(replicas=2), spec(autoscaling={"maxReplicas": 2}), spec()),
            refused=(spec(replicas=2, autoscaling={"maxReplicas": 2}),),
        ),
        "tensorParallelSize may be at most gpu.count": Rule(
            accepted=(
                spec(tensorParallelSize=2, gpu={"count": 2}),
                spec(tensorParallelSize=2, gpu={"count": 3}),
                spec(tensorParallelSize=2, gpu={"count": 0}),
                spec(tensorParallelSize=1),
            ),
            refused=(spec(tensorParallelSize=3, gpu={"count": 2}), spec(tensorParallelSize=2)),
        ),
        "resources may not name gpu.resourceName, which gpu.count sets": Rule(
            accepted=(
                spec(resources={"limits": {"cpu": 1}}),
                spec(resources={"limits": {"nvidia.com/gpu": 1}}, gpu={"count": 0}),
                spec(resources={"limits": {"example.com/nic": 1}}),
            ),
            refused=(
                spec(resources={"limits": {"nvidia.com/gpu": 1}}),
                spec(
                    resources={"requests": {"amd.com/gpu": 1}}, gpu={"resourceName": "amd.com/gpu"}
                ),
            ),
        ),
    },
    "spec.model": {
        "uri must be hf://org/name, s3://bucket/prefix, pvc://claim/path or file:///path": Rule(
            accepted=tuple(map(_model, (HUB, S3, "pvc://claim/a/b", "file:///a"))),
            refused=tuple(map(_model, ("http://host/a", "/models/a", "file:///a b", "pvc://"))),
        ),
        "a uri of the hub must be hf://org/name, or hf://name for a model without an "
        "organisation": Rule(
            accepted=(_model("hf://org/name-1.0_a"), _model("hf://name")),
            refused=(_model("hf://org/name/more"), _model("hf://org/na+me"), _model("hf:///name")),
        ),
        "revision is for hf:// only": Rule(
            accepted=(_model(HUB, revision="v1"),), refused=(_model(S3, revision="v1"),)
        ),
        "tokenSecretRef is for hf:// only": Rule(
            accepted=(_model(HUB, tokenSecretRef={"name": "a"}),),
            refused=(_model(S3, tokenSecretRef={"name": "a"}),),
        ),
        "credentialsSecretRef is for s3:// only": Rule(
            accepted=(_model(S3, credentialsSecretRef={"name": "a"}),),
            refused=(_model(HUB, credentialsSecretRef={"name": "a"}),),
        ),
        "endpoint is for hf:// and s3:// only": Rule(
            accepted=(_model(HUB, endpoint="http://a"), _model(S3, endpoint="https://a:1/b")),
            refused=(_model("pvc://a/b", endpoint="http://a"),),
        ),
    },
    "spec.cache": {
        "set cache.claimName or cache.size, and not both": Rule(
            accepted=(_cached(size="1Gi"), _cached(claimName="a")),
            refused=(_cached(), _cached(size="1Gi", claimName="a")),
        ),
        "cache.storageClassName is for a claim that cache.size makes": Rule(
            accepted=(_cached(size="1Gi", storageClassName="a"),),
            refused=(_cached(claimName="a", storageClassName="a"),),
        ),
    },
    "spec.autoscaling": {
        "minReplicas may be at most maxReplicas": Rule(
            before=spec(autoscaling={"maxReplicas": 3}),
            accepted=(
                spec(autoscaling={"minReplicas": 2, "maxReplicas": 2}),
                spec(autoscaling={"maxReplicas": 1}),
            ),
            refused=(spec(autoscaling={"minReplicas": 3, "maxReplicas": 2}),),
        ),
    },
    "spec.rollout": {
        "maxSurge and maxUnavailable may not both be 0": Rule(
            accepted=(
                _rollout(maxSurge=0, maxUnavailable=1),
                _rollout(maxSurge="1%", maxUnavailable="0%"),
                _rollout(maxSurge=0),
                _rollout(maxUnavailable=0),
            ),
            refused=(
                _rollout(maxSurge=0, maxUnavailable=0),
                _rollout(maxSurge="0%", maxUnavailable=0),
                _rollout(maxSurge=0, maxUnavailable="0%"),
            ),
        ),
        "Recreate takes neither maxSurge nor maxUnavailable": Rule(
            accepted=(_rollout(type="Recreate"), _rollout(type="RollingUpdate", maxSurge=1)),
            refused=(
                _rollout(type="Recreate", maxSurge=1),
                _rollout(type="Recreate", maxUnavailable=1),
            ),
        ),
    },
    "spec.env[]": {
        "set value or valueFrom, not both": Rule(
            accepted=(
                spec(env=[{"name": "A"}, {"name": "B", "value": ""}]),
                spec(env=[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]),
            ),
            refused=(
                spec(
                    env=[
                        {
                            "name": "A",
                            "value": "b",
                            "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}},
                        }
                    ]
                ),
            ),
        ),
    },
    "spec.podTemplate.tolerations[]": {
        "a toleration without a key needs the operator Exists": Rule(
            accepted=(_toleration(operator="Exists"), _toleration(key="a")),
            refused=(_toleration(), _toleration(operator="Equal", value="a")),
        ),
        "a toleration with the operator Exists takes no value": Rule(
            accepted=(
                _toleration(key="a", operator="Exists", value=""),
                _toleration(key="a", operator="Equal", value="b"),
                _toleration(key="a", value="b"),
            ),
            refused=(_toleration(key="a", operator="Exists", value="b"),),
        ),
        "tolerationSeconds needs the effect NoExecute": Rule(
            accepted=(_toleration(key="a", effect="NoExecute", tolerationSeconds=5),),
            refused=(
                _toleration(key="a", tolerationSeconds=5),
                _toleration(key="a", effect="NoSchedule", tolerationSeconds=5),
            ),
        ),
    },
}

_PERCENTAGES = (("0%", "25%", "100%"), ("25", "101%", "-1%", "01%", "%"))
_QUANTITIES = (
    ("1", "0.5", "500m", "16Gi", "1e3", "+2", ".5"),
    ("-1", "1Gb", "16 Gi", "a", "", "1.2.3"),
)
_LABEL_VALUES = (("a", "A-b_c.9", ""), ("-a", "a-", "a b", "a/b"))
_SUBDOMAINS = (("a", "my-secret.v1", "9"), ("A", "-a", "a-", "a_b", "a/b"))
# by the node's path: values that match, values that do not
PATTERNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "spec.model.revision": (("main", "refs/pr/1"), ("a b", " ")),
    "spec.model.endpoint": (("http://a", "https://a:1/b"), ("a", "ftp://a", "http://a b")),
    "spec.model.tokenSecretRef.name": _SUBDOMAINS,
    "spec.model.tokenSecretRef.key": (("token", "a_B.1-c"), ("a/b", "a b")),
    "spec.model.credentialsSecretRef.name": _SUBDOMAINS,
    "spec.cache.claimName": _SUBDOMAINS,
    "spec.cache.storageClassName": _SUBDOMAINS,
    "spec.cache.size": (("1Gi", "100G", "2Ti"), ("0Gi", "1", "1.5Gi", "1Ki", "Gi")),
    "spec.gpu.resourceName": (
        ("nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "a/B_c"),
        ("cpu", "gpu", "/gpu", "nvidia.com/", "Nvidia.com/gpu", "a/b/c"),
    ),
    "spec.gpu.product": (
        ("NVIDIA-A100-SXM4-40GB", "T4"),
        ("NVIDIA A100", "-a", "a-"),
    ),
    "spec.rollout.maxSurge": _PERCENTAGES,
    "spec.rollout.maxUnavailable": _PERCENTAGES,
    "spec.apiKeySecretRef.name": _SUBDOMAINS,
    "spec.apiKeySecretRef.key": (("keys", "api_key.txt", "A-1"), ("a/b", "a b")),
    "spec.image": (("a", "host:5000/a/b:v1", "a@sha256:0"), ("a b", " a", "a\n")),
    "spec.env[].name": (("A", "a.b-c", "HF_HOME"), ("A=B", "A B")),
    "spec.resources.requests{}": _QUANTITIES,
    "spec.resources.limits{}": _QUANTITIES,
    "spec.podTemplate.labels{}": _LABEL_VALUES,
    "spec.podTemplate.nodeSelector{}": _LABEL_VALUES,
    "spec.podTemplate.tolerations[].value": _LABEL_VALUES,
    "spec.podTemplate.runtimeClassName": _SUBDOMAINS,
    "spec.podTemplate.priorityClassName": _SUBDOMAINS,
    "spec.podTemplate.imagePullSecrets[].name": _SUBDOMAINS,
}

# the object that a field is put into, where {} would be refused
CONTAINERS: dict[str, Any] = {
    "spec": {"model": MODEL},
    "spec.model": MODEL,
    "spec.model.tokenSecretRef": {"name": "a"},
    "spec.model.credentialsSecretRef": {"name": "a"},
    "spec.cache": {"size": "1Gi"},
    "spec.autoscaling": {"maxReplicas": 1000},
    "spec.apiKeySecretRef": {"name": "a", "key": "a"},
    "spec.env[]": {"name": "A"},
    "spec.podTemplate.tolerations[]": {"key": "a", "effect": "NoExecute"},
    "spec.podTemplate.topologySpreadConstraints[]": {
        "maxSkew": 1,
        "topologyKey": "a",
        "whenUnsatisfiable": "DoNotSchedule",
    },
    "spec.podTemplate.imagePullSecrets[]": {"name": "a"},
    "status.conditions[]": {
        "type": "Ready",
        "status": "True",
        "reason": "Serving",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    },
}

# further fields of the spec that a node's bounds, and those of what is below it, need
BESIDE: dict[str, Body] = {
    "spec.tensorParallelSize": {"gpu": {"count": 16}},
    "spec.model.revision": {"model": {"uri": HUB}},
    "spec.model.endpoint": {"model": {"uri": HUB}},
    "spec.model.tokenSecretRef": {"model": {"uri": HUB}},
    "spec.model.credentialsSecretRef": {"model": {"uri": S3}},
    "spec.cache": {"model": {"uri": HUB}},
    "spec.cache.claimName": {"model": {"uri": HUB}, "cache": {}},
}


def beside(path: str) -> Body:
    """What the node at this path needs beside it."""
    found: Body = {}
    for known, fields in BESIDE.items():
        if f"{path}.".startswith(f"{known}."):
            found |= deepcopy(fields)
    return found


# how a long valid string begins, what fills it, and how it ends; else it is all "a"
STRETCHED: dict[str, tuple[str, ...]] = {
    "spec.model.uri": ("file:///", "a"),
    "spec.model.endpoint": ("http://", "a"),
    "spec.cache.size": ("", "1", "Gi"),
    "spec.gpu.resourceName": ("a/", "a"),
    "spec.rollout.maxSurge": ("100%", "a"),
    "spec.rollout.maxUnavailable": ("100%", "a"),
    "spec.resources.requests{}": ("", "1"),
    "spec.resources.limits{}": ("", "1"),
}
