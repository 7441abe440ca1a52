"""Where pods find the model's files: directory, volumes, and the container that fetches them.

A model of a hub or of S3 lies in a claim that a Job has filled, or without a cache in a volume of
the pod, which an init container fills. Pure.
"""

from __future__ import annotations

import hashlib

from lightllm_operator.child_parts import Manifest, container_security, pull_policy
from lightllm_operator.names import METRICS_PORT
from lightllm_operator.spec import DeploymentSpec

__all__ = [
    "claim_of",
    "fetch_container",
    "fetch_failure_policy",
    "init_containers",
    "is_cached",
    "model_dir",
    "model_mounts",
    "model_volumes",
    "secret_volumes",
    "source_digest",
]

_CLAIM_MOUNT = "/models/claim"
_FETCH_MOUNT = "/models/fetched"
_TOKEN_MOUNT = "/etc/lightllm/hub-token"  # noqa: S105
_CREDENTIALS_MOUNT = "/etc/lightllm/s3-credentials"
# of the pod's user by its group alone
_SECRET_MODE = 0o440
# exit codes of `lightllm-server fetch` that another try does not help: not found, no space,
# refused, wrong options
_FINAL_CODES = (66, 73, 77, 78)


def is_cached(spec: DeploymentSpec) -> bool:
    """A Job fetches the model into a claim."""
    return spec.model.is_remote and spec.cache is not None


def claim_of(spec: DeploymentSpec) -> str | None:
    """The claim that the model lies in."""
    if spec.cache is not None and spec.model.is_remote:
        return spec.cache.claim_name or f"{spec.name}-cache"
    return spec.model.claim


def source_digest(spec: DeploymentSpec, *more: str) -> str:
    """Differs where a fetch could end otherwise. more: what else makes a difference."""
    model = spec.model
    asked = [model.uri, *more]
    if model.is_remote:
        token = model.token_secret_ref
        asked += [
            *(model.revision or "", model.endpoint or "", model.credentials_secret_ref or ""),
            f"{token.name}/{token.key}" if token else "",
            (claim_of(spec) or "") if is_cached(spec) else "",
        ]
    return hashlib.sha256("\n".join(asked).encode()).hexdigest()[:8]


def model_dir(spec: DeploymentSpec) -> str:
    model = spec.model
    if model.is_remote:
        # a claim may hold several models
        asked = "\n".join((model.uri, model.revision or "", model.endpoint or ""))
        return f"{_FETCH_MOUNT}/{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    return f"{_CLAIM_MOUNT}/{model.path}" if model.claim is not None else model.path


def model_volumes(spec: DeploymentSpec) -> list[Manifest]:
    """Of a pod that reads the model; with the Secrets where it fetches it itself."""
    if is_cached(spec):
        return [{"name": "model", "persistentVolumeClaim": {"claimName": claim_of(spec)}}]
    if spec.model.is_remote:
        return [{"name": "model", "emptyDir": {}}, *secret_volumes(spec)]
    if spec.model.claim is None:
        return []
    source = {"claimName": spec.model.claim, "readOnly": True}
    return [{"name": "model", "persistentVolumeClaim": source}]


def model_mounts(spec: DeploymentSpec) -> list[Manifest]:
    """Of a container that reads the model."""
    if spec.model.is_remote:
        return [{"name": "model", "mountPath": _FETCH_MOUNT, "readOnly": True}]
    if spec.model.claim is None:
        return []
    return [{"name": "model", "mountPath": _CLAIM_MOUNT, "readOnly": True}]


def secret_volumes(spec: DeploymentSpec) -> list[Manifest]:
    """What the fetch container proves itself with."""
    volumes: list[Manifest] = []
    if (token := spec.model.token_secret_ref) is not None:
        items = [{"key": token.key, "path": "token"}]
        volumes.append(_secret_volume("hub-token", token.name, items))
    if (name := spec.model.credentials_secret_ref) is not None:
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        items = [{"key": key, "path": key} for key in keys]
        volumes.append(_secret_volume("s3-credentials", name, items))
    return volumes


def _secret_volume(volume: str, secret: str, items: list[dict[str, str]]) -> Manifest:
    source = {"secretName": secret, "items": items, "defaultMode": _SECRET_MODE}
    return {"name": volume, "secret": source}


def init_containers(
    spec: DeploymentSpec, image: str, *, commit: str = "", headers_only: bool = False
) -> Manifest:
    """The field of a pod that has no cache to read from; empty for others."""
    if not spec.model.is_remote or is_cached(spec):
        return {}
    fetch = fetch_container(spec, image, commit=commit, headers_only=headers_only)
    return {"initContainers": [fetch]}


def fetch_failure_policy() -> Manifest:
    """The field of a Job that fetches: it fails at once where another pod would fail too."""
    final = {"containerName": "fetch", "operator": "In", "values": [*_FINAL_CODES]}
    return {"podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]}}


def fetch_container(
    spec: DeploymentSpec, image: str, *, commit: str = "", headers_only: bool = False
) -> Manifest:
    """Fills the model's volume. commit: of the hub, so that all pods get the same; headers_only:
    as much as the check reads."""
    model = spec.model
    options: dict[str, object] = {
        "uri": model.uri,
        "target": model_dir(spec),
        "progress-port": METRICS_PORT,
    }
    mounts: list[Manifest] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "model", "mountPath": _FETCH_MOUNT},
    ]
    if revision := commit or model.revision:
        options["revision"] = revision
    if model.endpoint is not None:
        options["endpoint"] = model.endpoint
    if model.token_secret_ref is not None:
        options["token-file"] = f"{_TOKEN_MOUNT}/token"
        mounts.append({"name": "hub-token", "mountPath": _TOKEN_MOUNT, "readOnly": True})
    if model.credentials_secret_ref is not None:
        options["credentials-dir"] = _CREDENTIALS_MOUNT
        mounts.append({"name": "s3-credentials", "mountPath": _CREDENTIALS_MOUNT, "readOnly": True})
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return {
        "name": "fetch",
        "image": image,
        **pull_policy(spec),
        "args": ["fetch", *arguments, *(["--headers-only"] if headers_only else [])],
        # proxies and the like
        "env": [dict(variable) for variable in spec.env],
        "ports": [{"name": "progress", "containerPort": METRICS_PORT}],
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"memory": "1Gi"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
        "securityContext": container_security(),
    }
