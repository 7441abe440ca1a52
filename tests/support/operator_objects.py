"""Resources and pods as the API server shows them, for the operator's tests."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from lightllm_operator.autoscale import PodSample
from lightllm_operator.spec import DeploymentSpec, parse

__all__ = ["ago", "pod_of", "resource", "sample_of", "spec_of"]


def ago(seconds: float) -> str:
    """That time, as the API server writes it."""
    return datetime.fromtimestamp(time.time() - seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def resource(name: str = "demo", **spec: Any) -> dict[str, Any]:
    """A `LightLLMDeployment` on the demo model; fields of the spec by keyword."""
    return {
        "apiVersion": "serving.lightllm.io/v1alpha1",
        "kind": "LightLLMDeployment",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "generation": 1},
        "spec": {"model": {"uri": "file:///models/demo-model"}, **spec},
    }


def spec_of(**spec: Any) -> DeploymentSpec:
    return parse(resource(**spec))


def pod_of(name: str, *, ready: bool = False, **status: Any) -> dict[str, Any]:
    """A serving pod; further fields of its status by keyword."""
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    conditions += status.pop("conditions", [])
    return {"metadata": {"name": name}, "status": {"conditions": conditions, **status}}


def sample_of(pod: str = "p0", **values: Any) -> PodSample:
    """A scrape of an idle pod with 16 rows, but for the values given."""
    numbers: dict[str, Any] = {
        "waiting": 0,
        "running": 0,
        "max_running": 16,
        "kv_usage": 0.0,
        "accepted_total": 0.0,
        "rejected_total": 0.0,
        "service_seconds_total": 0.0,
        "service_count_total": 0.0,
        **values,
    }
    return PodSample(pod=pod, **numbers)
