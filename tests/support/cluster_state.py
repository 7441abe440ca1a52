"""A namespace's objects without what differs from run to run: identities, times, random names."""

from __future__ import annotations

import json
import re
from typing import Any

from rest import Rest

__all__ = ["KINDS", "state_of"]

# what the operator makes, and what controllers make of it; Events are notes and left out
KINDS = {
    "lightllmdeployments": "/apis/serving.lightllm.io/v1alpha1",
    "jobs": "/apis/batch/v1",
    "deployments": "/apis/apps/v1",
    "replicasets": "/apis/apps/v1",
    "pods": "/api/v1",
    "services": "/api/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VARYING = {
    *("uid", "resourceVersion", "creationTimestamp", "time", "namespace"),
    *("lastTransitionTime", "lastUpdateTime", "lastProbeTime", "lastScaleTime", "f:lastScaleTime"),
    *("startTime", "completionTime", "startedAt", "finishedAt"),
    *("clusterIP", "clusterIPs", "podIP", "podIPs", "f:podIPs"),
    # of the count and strategy when a ReplicaSet was last written
    *("deployment.kubernetes.io/desired-replicas", "deployment.kubernetes.io/max-replicas"),
}
# these count writes; that of the resource counts the user's edits, and stays
_COUNTERS = {"generation", "observedGeneration"}


def state_of(rest: Rest, namespace: str) -> dict[str, list[Any]]:
    """Kind → its objects, normalised and in order."""
    state = {}
    for kind, prefix in KINDS.items():
        found = rest("GET", f"{prefix}/namespaces/{namespace}/{kind}").expect(200)["items"]
        dropped = _VARYING if kind == "lightllmdeployments" else _VARYING | _COUNTERS
        objects = [_normalised(_without_suffix(each, kind), dropped, namespace) for each in found]
        state[kind] = sorted(objects, key=lambda each: json.dumps(each, sort_keys=True))
    return state


def _without_suffix(body: dict[str, Any], kind: str) -> dict[str, Any]:
    if kind != "pods":
        return body
    metadata = {**body["metadata"], "name": body["metadata"]["generateName"]}
    return {**body, "metadata": metadata}


def _normalised(value: Any, dropped: set[str], namespace: str) -> Any:
    if isinstance(value, dict):
        return {
            _UUID.sub("UID", key): _normalised(each, dropped, namespace)
            for key, each in value.items()
            if key not in dropped
        }
    if isinstance(value, list):
        items = [_normalised(each, dropped, namespace) for each in value]
        # lists of named things have no order of their own
        named = all(isinstance(each, dict) and {"type", "manager"} & each.keys() for each in items)
        return sorted(items, key=lambda each: json.dumps(each, sort_keys=True)) if named else items
    if isinstance(value, str):
        return _UUID.sub("UID", value.replace(namespace, "NAMESPACE"))
    return value
