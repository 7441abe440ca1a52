"""`DeploymentSpec`: a `LightLLMDeployment` as the user wrote it, parsed and with defaults; no cluster facts here.

The field names, bounds and defaults are those of `crds/lightllmdeployments.serving.lightllm.io.yaml`,
which is the single source: a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "AutoscalingSpec",
    "CacheSpec",
    "DeploymentSpec",
    "GpuSpec",
    "KvCacheSpec",
    "ModelSpec",
    "PodTemplateSpec",
    "RolloutSpec",
    "ScaleRule",
    "SecretKey",
    "ServiceSpec",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKey:
    """One key of a Secret in the resource's namespace; the operator never reads it."""

    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Which weights, and how they are served. `max_length`: tokens, prompt and output."""

    uri: str
    revision: str | None = None
    served_name: str | None = None
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    max_length: int | None = None
    token_secret_ref: SecretKey | None = None
    credentials_secret: str | None = None

    @property
    def scheme(self) -> str:
        """hf, s3, pvc or file."""
        return self.uri.partition("://")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """`count` GPUs of `resource_name` per pod; 0 serves on the CPU."""

    count: int = 1
    resource_name: str = "nvidia.com/gpu"
    product: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCacheSpec:
    dtype: Literal["Auto", "Model", "Int8"] = "Auto"
    memory_percent: int = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRule:
    """At most `max_pods` per `period_seconds`, after a window in which nothing spoke against it."""

    stabilization_window_seconds: int
    max_pods: int
    period_seconds: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingSpec:
    """`target_queue_depth`: waiting requests per replica that are tolerated."""

    max_replicas: int
    min_replicas: int = 1
    target_queue_depth: int = 4
    tolerance_percent: int = 10
    scale_up: ScaleRule = ScaleRule(stabilization_window_seconds=0, max_pods=4)
    scale_down: ScaleRule = ScaleRule(stabilization_window_seconds=300, max_pods=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSpec:
    type: Literal["Auto", "RollingUpdate", "Recreate"] = "Auto"
    max_surge: int | str | None = None
    max_unavailable: int | str | None = None
    progress_deadline_seconds: int = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """A claim for downloaded models: `claim_name` exists already, `size` makes one. Exactly one is set."""

    claim_name: str | None = None
    size: str | None = None
    storage_class_name: str | None = None
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    port: int = 80
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTemplateSpec:
    """What a namespace user may add to the pods; nothing that gives rights through the operator."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    affinity: Mapping[str, Any] | None = None
    topology_spread_constraints: tuple[Mapping[str, Any], ...] = ()
    runtime_class_name: str | None = None
    priority_class_name: str | None = None
    image_pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """One `LightLLMDeployment`: identity, then the fields of `spec` in the schema's order."""

    name: str
    namespace: str
    uid: str
    generation: int
    model: ModelSpec
    gpu: GpuSpec = GpuSpec()
    tensor_parallel_size: int | None = None
    kv_cache: KvCacheSpec = KvCacheSpec()
    replicas: int | None = None
    autoscaling: AutoscalingSpec | None = None
    rollout: RolloutSpec = RolloutSpec()
    drain_timeout_seconds: int = 120
    startup_timeout_seconds: int = 1800
    suspend: bool = False
    cache: CacheSpec | None = None
    service: ServiceSpec = field(default_factory=ServiceSpec)
    api_key_secret_ref: SecretKey | None = None
    image: str | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    extra_args: tuple[str, ...] = ()
    env: tuple[Mapping[str, Any], ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    pod_template: PodTemplateSpec = field(default_factory=PodTemplateSpec)
    # of the resource's metadata: the value of serving.lightllm.io/upgrade, if any
    upgrade_request: str | None = None
