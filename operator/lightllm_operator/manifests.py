"""The children of a resource as Kubernetes objects, one function per kind. Pure.

A change of the serving pods' template that is not the user's must raise TEMPLATE_VERSION: resources
keep the template they were made with until they are edited. tests/operator/golden/ has what is made
under the present number; `make golden` writes it.
"""

from __future__ import annotations

from typing import Any

from lightllm_operator.child_parts import (
    Manifest,
    container_security,
    owned_metadata,
    pod_security,
    pull_policy,
    scheduling,
    serving_image,
)
from lightllm_operator.facts import Pinned
from lightllm_operator.model_files import (
    fetch_failure_policy,
    init_containers,
    model_dir,
    model_mounts,
    model_volumes,
    source_digest,
)
from lightllm_operator.names import (
    ANNOTATION_PINNED,
    ANNOTATION_REPORT,
    CHECK,
    HTTP_PORT,
    METRICS_PORT,
    SERVER,
    child_labels,
    selector,
)
from lightllm_operator.settings import Settings
from lightllm_operator.spec import DeploymentSpec

__all__ = [
    "TEMPLATE_VERSION",
    "check_job",
    "check_name",
    "deployment",
    "disruption_budget",
    "scale",
    "service",
    "strategy",
]

TEMPLATE_VERSION = 1

# the server accepts requests for so long after SIGTERM, while endpoints are updated
_DRAIN_DELAY_S = 10
_EXIT_S = 15
_API_KEY_MOUNT = "/etc/lightllm/api-key"


def check_name(spec: DeploymentSpec, settings: Settings) -> str:
    """One Job per model and image: its name changes with either."""
    return f"{spec.name}-check-{source_digest(spec, serving_image(spec, settings))}"


def check_job(spec: DeploymentSpec, settings: Settings) -> Manifest:
    """Reads the model's config and weight headers, without a GPU; its report is its last word."""
    labels = child_labels(spec.name, CHECK)
    fetching = init_containers(spec, serving_image(spec, settings), headers_only=True)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": owned_metadata(spec, check_name(spec, settings), labels),
        "spec": {
            "backoffLimit": 1,
            **(fetch_failure_policy() if fetching else {}),
            "activeDeadlineSeconds": 900,
            "ttlSecondsAfterFinished": 3600,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    **scheduling(spec),
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": pod_security(),
                    **fetching,
                    "containers": [_check_container(spec, settings)],
                    "volumes": [{"name": "tmp", "emptyDir": {}}, *model_volumes(spec)],
                },
            },
        },
    }


def _check_container(spec: DeploymentSpec, settings: Settings) -> Manifest:
    # the report goes where the kubelet reads a container's last word
    script = 'lightllm-server check --model-dir "$0" --gpus 16 > /dev/termination-log || true'
    return {
        "name": "check",
        "image": serving_image(spec, settings),
        **pull_policy(spec),
        "command": ["sh", "-c", script, model_dir(spec)],
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "512Mi"},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *model_mounts(spec)],  # noqa: S108
        "securityContext": container_security(),
    }


def deployment(
    spec: DeploymentSpec, settings: Settings, pinned: Pinned, report: str, rollout: Manifest
) -> Manifest:
    """The serving Deployment, without its replicas, which `scale` sets. rollout: of `strategy`."""
    grace = _DRAIN_DELAY_S + spec.drain_timeout_seconds + _EXIT_S
    metadata = owned_metadata(spec, spec.name, child_labels(spec.name, SERVER))
    metadata["annotations"] = {ANNOTATION_PINNED: pinned.to_json(), ANNOTATION_REPORT: report}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": spec.rollout.progress_deadline_seconds,
            "selector": {"matchLabels": selector(spec.name)},
            "strategy": rollout,
            "template": {
                "metadata": {
                    "labels": {**spec.pod_template.labels, **child_labels(spec.name, SERVER)},
                    "annotations": dict(spec.pod_template.annotations),
                },
                "spec": {
                    **scheduling(spec, gpus=True),
                    "terminationGracePeriodSeconds": grace,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": pod_security(),
                    **init_containers(spec, pinned.image, commit=pinned.commit),
                    "containers": [_server_container(spec, settings, pinned)],
                    "volumes": _volumes(spec),
                },
            },
        },
    }


def strategy(spec: DeploymentSpec, *, any_ready: bool, surge_blocked: bool) -> Manifest:
    """How pods are replaced. surge_blocked: no GPU is free for one more pod."""
    rollout = spec.rollout
    if rollout.type == "Recreate":
        return {"type": "Recreate"}
    surge, unavailable = rollout.max_surge, rollout.max_unavailable
    if rollout.type == "Auto" and surge is None and unavailable is None:
        if not any_ready:
            # nothing serves that could be lost
            surge, unavailable = 0, "100%"
        else:
            surge, unavailable = (0, 1) if surge_blocked else (1, 0)
    surge = (1 if unavailable in (0, "0%", None) else 0) if surge is None else surge
    unavailable = (1 if surge in (0, "0%") else 0) if unavailable is None else unavailable
    return {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
    }


def _server_container(spec: DeploymentSpec, settings: Settings, pinned: Pinned) -> Manifest:
    resources: dict[str, dict[str, Any]] = {
        name: dict(spec.resources.get(name, {})) for name in ("requests", "limits")
    }
    if spec.gpu.count:
        for values in resources.values():
            values[spec.gpu.resource_name] = str(spec.gpu.count)
    return {
        "name": "server",
        "image": pinned.image,
        **pull_policy(spec),
        "args": _arguments(spec, settings, pinned),
        "env": [dict(variable) for variable in spec.env],
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT},
            {"name": "metrics", "containerPort": METRICS_PORT},
        ],
        # /livez answers while the model loads: how long that may take is asked of /readyz
        "startupProbe": {
            **_probe("/readyz"),
            "periodSeconds": 2,
            "failureThreshold": -(-spec.startup_timeout_seconds // 2),
        },
        "readinessProbe": {**_probe("/readyz"), "periodSeconds": 2, "failureThreshold": 2},
        "livenessProbe": {**_probe("/livez"), "periodSeconds": 10, "failureThreshold": 6},
        "resources": {name: values for name, values in resources.items() if values},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(spec),
        "securityContext": container_security(),
    }


def _arguments(spec: DeploymentSpec, settings: Settings, pinned: Pinned) -> list[str]:
    options: dict[str, object] = {
        "model-dir": model_dir(spec),
        "served-model-name": spec.model.served_name or spec.name,
        "host": "0.0.0.0",  # noqa: S104  a pod's Service reaches it there
        "port": HTTP_PORT,
        "metrics-port": METRICS_PORT,
        "device": "cuda" if spec.gpu.count and not settings.cpu_for_gpu else "cpu",
        "dtype": spec.model.dtype,
        "tp": pinned.tensor_parallel_size,
        "kv-dtype": pinned.kv_dtype,
        "mem-fraction": spec.kv_cache.memory_percent / 100,
        "drain-delay": _DRAIN_DELAY_S,
        "drain-time": _DRAIN_DELAY_S + spec.drain_timeout_seconds,
        "log-format": "json",
    }
    if spec.model.max_length is not None:
        options["max-req-total-len"] = spec.model.max_length
    if spec.api_key_secret_ref is not None:
        options["api-key-file"] = f"{_API_KEY_MOUNT}/keys"
    return [*(f"--{name}={value}" for name, value in options.items()), *spec.extra_args]


def _probe(path: str) -> Manifest:
    return {"httpGet": {"path": path, "port": "metrics"}, "timeoutSeconds": 2}


def scale(spec: DeploymentSpec, replicas: int) -> Manifest:
    """Only the count of the serving Deployment, applied by a manager of its own."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": spec.name, "namespace": spec.namespace},
        "spec": {"replicas": replicas},
    }


def service(spec: DeploymentSpec) -> Manifest:
    """Ready pods behind one name."""
    metadata = owned_metadata(spec, spec.name, child_labels(spec.name, SERVER))
    metadata["annotations"] = dict(spec.service.annotations)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": spec.service.type,
            "selector": selector(spec.name),
            "ports": [{"name": "http", "port": spec.service.port, "targetPort": "http"}],
        },
    }


def disruption_budget(spec: DeploymentSpec) -> Manifest:
    """A node is drained one serving pod at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": owned_metadata(spec, spec.name, child_labels(spec.name, SERVER)),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(spec.name)}},
    }


def _volumes(spec: DeploymentSpec) -> list[Manifest]:
    volumes: list[Manifest] = [
        {"name": "tmp", "emptyDir": {}},
        # ranks exchange data through shared memory: 64 MiB, the default, is too little
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        *model_volumes(spec),
    ]
    if spec.api_key_secret_ref is not None:
        secret = spec.api_key_secret_ref
        items = [{"key": secret.key, "path": "keys"}]
        volumes.append({"name": "api-key", "secret": {"secretName": secret.name, "items": items}})
    return volumes


def _mounts(spec: DeploymentSpec) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        *model_mounts(spec),
    ]
    if spec.api_key_secret_ref is not None:
        mounts.append({"name": "api-key", "mountPath": _API_KEY_MOUNT, "readOnly": True})
    return mounts
