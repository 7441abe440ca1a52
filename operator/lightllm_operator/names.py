"""Every name, label, annotation and port that the operator puts on objects or looks for."""

from __future__ import annotations

__all__ = [
    "API_VERSION",
    "ANNOTATION_PINNED",
    "ANNOTATION_UPGRADE",
    "FIELD_MANAGER",
    "GROUP",
    "HTTP_PORT",
    "KIND",
    "METRICS_PORT",
    "PLURAL",
    "POD_DELETION_COST",
    "VERSION",
    "child_labels",
]

GROUP = "serving.lightllm.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LightLLMDeployment"
PLURAL = "lightllmdeployments"
FIELD_MANAGER = "lightllm-operator"

HTTP_PORT = 8000
# probes and metrics, without a key
METRICS_PORT = 8001

ANNOTATION_UPGRADE = f"{GROUP}/upgrade"
# on the serving Deployment: `facts.Pinned` as JSON
ANNOTATION_PINNED = f"{GROUP}/pinned"
POD_DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


def child_labels(name: str, component: str) -> dict[str, str]:
    """Labels of a child of the resource `name`; component: server, check or fetch."""
    return {
        "app.kubernetes.io/name": "lightllm",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
    }
