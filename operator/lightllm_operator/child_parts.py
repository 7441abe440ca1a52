"""What the operator's children have in common: owner, scheduling, security. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from lightllm_operator.names import API_VERSION, KIND
from lightllm_operator.settings import Settings
from lightllm_operator.spec import DeploymentSpec

__all__ = [
    "Manifest",
    "container_security",
    "owned_metadata",
    "pod_security",
    "pull_policy",
    "scheduling",
    "serving_image",
]

Manifest: TypeAlias = dict[str, Any]

_USER = 65532


def serving_image(spec: DeploymentSpec, settings: Settings) -> str:
    return spec.image or settings.serving_image


def owned_metadata(spec: DeploymentSpec, name: str, labels: Mapping[str, str]) -> Manifest:
    """Of a child that goes when the resource goes."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": spec.name,
        "uid": spec.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "name": name,
        "namespace": spec.namespace,
        "labels": dict(labels),
        "ownerReferences": [owner],
    }


def scheduling(spec: DeploymentSpec, *, gpus: bool = False) -> Manifest:
    """Where the pods may run. gpus: they ask for GPUs, so they tolerate the nodes' taint."""
    template = spec.pod_template
    node_selector = dict(template.node_selector)
    if spec.gpu.product is not None:
        node_selector["nvidia.com/gpu.product"] = spec.gpu.product
    tolerations = [dict(toleration) for toleration in template.tolerations]
    if spec.gpu.count:
        # the check runs on the same nodes: there the image is needed anyway
        tolerations.append({"key": spec.gpu.resource_name, "operator": "Exists"})
    fields: Manifest = {"nodeSelector": node_selector, "tolerations": tolerations}
    if template.affinity is not None:
        fields["affinity"] = dict(template.affinity)
    if gpus and template.topology_spread_constraints:
        fields["topologySpreadConstraints"] = [*template.topology_spread_constraints]
    if template.runtime_class_name is not None:
        fields["runtimeClassName"] = template.runtime_class_name
    if template.priority_class_name is not None:
        fields["priorityClassName"] = template.priority_class_name
    if template.image_pull_secrets:
        fields["imagePullSecrets"] = [*template.image_pull_secrets]
    return fields


def pull_policy(spec: DeploymentSpec) -> Manifest:
    return {} if spec.image_pull_policy is None else {"imagePullPolicy": spec.image_pull_policy}


def pod_security() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
