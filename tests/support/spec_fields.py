"""Fields of a resource's spec that reach its pods, each with a value that is not its default."""

from __future__ import annotations

from typing import Any

__all__ = ["FIELDS"]

FIELDS: dict[str, Any] = {
    "model": {
        "uri": "hf://org/name",
        "revision": "v2",
        "endpoint": "http://hub",
        "tokenSecretRef": {"name": "hub", "key": "t"},
        "servedName": "x",
        "dtype": "bfloat16",
        "maxLength": 99,
    },
    "gpu": {"count": 2, "resourceName": "example.com/gpu", "product": "T4"},
    "kvCache": {"dtype": "Auto", "memoryPercent": 50},
    "rollout": {"type": "RollingUpdate", "maxSurge": 2, "progressDeadlineSeconds": 60},
    "drainTimeoutSeconds": 5,
    "startupTimeoutSeconds": 60,
    "apiKeySecretRef": {"name": "keys", "key": "k"},
    "imagePullPolicy": "Always",
    "extraArgs": ["--max-n=2"],
    "env": [{"name": "A", "value": "B"}],
    "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
    "podTemplate": {
        "labels": {"a": "b"},
        "annotations": {"a": "b"},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "s"}],
    },
}
