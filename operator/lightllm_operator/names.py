"""Every name, label, annotation and port that the operator puts on objects or looks for."""

from __future__ import annotations

__all__ = [
    "ANNOTATION_APPLIED",
    "ANNOTATION_PINNED",
    "ANNOTATION_REPORT",
    "ANNOTATION_UPGRADE",
    "API_VERSION",
    "CHECK",
    "FETCH",
    "FIELD_MANAGER",
    "GROUP",
    "HTTP_PORT",
    "INSTANCE",
    "KIND",
    "MANAGED_BY",
    "METRICS_PORT",
    "PLURAL",
    "POD_DELETION_COST",
    "SCALE_MANAGER",
    "SERVER",
    "STATUS_MANAGER",
    "VERSION",
    "child_labels",
    "selector",
]

GROUP = "serving.lightllm.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LightLLMDeployment"
PLURAL = "lightllmdeployments"

# one field manager per kind of decision, so that a new count leaves the pod template alone
FIELD_MANAGER = "lightllm-operator"
SCALE_MANAGER = "lightllm-operator-scale"
STATUS_MANAGER = "lightllm-operator-status"

HTTP_PORT = 8000
# probes and metrics, without a key
METRICS_PORT = 8001

# on the serving Deployment: the check's report, with the name of the Job that made it
ANNOTATION_REPORT = f"{GROUP}/check-report"
ANNOTATION_UPGRADE = f"{GROUP}/upgrade"
# on the serving Deployment: `facts.Pinned` as JSON
ANNOTATION_PINNED = f"{GROUP}/pinned"
# on children that are compared: a digest of the manifest that was applied
ANNOTATION_APPLIED = f"{GROUP}/applied"
POD_DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"

INSTANCE = "app.kubernetes.io/instance"
MANAGED_BY = "app.kubernetes.io/managed-by"
_COMPONENT = "app.kubernetes.io/component"

# components
SERVER = "server"
CHECK = "check"
FETCH = "fetch"


def child_labels(name: str, component: str) -> dict[str, str]:
    """Labels of a child of the resource `name`."""
    return {
        "app.kubernetes.io/name": "lightllm",
        INSTANCE: name,
        _COMPONENT: component,
        MANAGED_BY: FIELD_MANAGER,
    }


def selector(name: str) -> dict[str, str]:
    """Labels that the serving pods of the resource `name` have, and no other pods."""
    return {INSTANCE: name, _COMPONENT: SERVER, MANAGED_BY: FIELD_MANAGER}
