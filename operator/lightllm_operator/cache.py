"""The cache of a resource: its claim, and the Job that fetches the model into it once. Pure."""

from __future__ import annotations

from lightllm_operator.child_parts import (
    Manifest,
    owned_metadata,
    pod_security,
    scheduling,
    serving_image,
)
from lightllm_operator.model_files import (
    claim_of,
    fetch_container,
    fetch_failure_policy,
    model_volumes,
    secret_volumes,
    source_digest,
)
from lightllm_operator.names import FETCH, child_labels
from lightllm_operator.settings import Settings
from lightllm_operator.spec import DeploymentSpec

__all__ = ["cache_claim", "fetch_job", "fetch_name"]


def cache_claim(spec: DeploymentSpec) -> Manifest | None:
    """The claim that the operator makes; None where the user names one."""
    if spec.cache is None or spec.cache.size is None:
        return None
    fields: Manifest = {
        "accessModes": [spec.cache.access_mode],
        "resources": {"requests": {"storage": spec.cache.size}},
    }
    if spec.cache.storage_class_name is not None:
        fields["storageClassName"] = spec.cache.storage_class_name
    name = claim_of(spec)
    assert name is not None, "a cache without a claim"
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": owned_metadata(spec, name, child_labels(spec.name, FETCH)),
        "spec": fields,
    }


def fetch_name(spec: DeploymentSpec, settings: Settings) -> str:
    """One Job per model, image and claim: its name changes with each."""
    return f"{spec.name}-fetch-{source_digest(spec, serving_image(spec, settings))}"


def fetch_job(spec: DeploymentSpec, settings: Settings) -> Manifest:
    """Fills the claim, without a GPU; what it holds already is not fetched again."""
    labels = child_labels(spec.name, FETCH)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": owned_metadata(spec, fetch_name(spec, settings), labels),
        "spec": {
            "backoffLimit": 3,
            **fetch_failure_policy(),
            "ttlSecondsAfterFinished": 3600,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    **scheduling(spec),
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": pod_security(),
                    "containers": [fetch_container(spec, serving_image(spec, settings))],
                    "volumes": [
                        {"name": "tmp", "emptyDir": {}},
                        *model_volumes(spec),
                        *secret_volumes(spec),
                    ],
                },
            },
        },
    }
