"""`DeploymentSpec`: a `LightLLMDeployment` as the user wrote it, parsed; no facts of the cluster.

Field names, bounds and defaults are those of `crds/lightllmdeployments.serving.lightllm.io.yaml`,
which is the single source: the API server has checked and completed what is parsed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from lightllm_operator.errors import SpecError
from lightllm_operator.names import ANNOTATION_UPGRADE

__all__ = [
    "OWNED_OPTIONS",
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
    "check",
    "parse",
    "read",
]

Object = Mapping[str, Any]

# options that the operator sets itself, and what to do instead
OWNED_OPTIONS = {
    "model-dir": "set spec.model.uri",
    "host": "pods listen on all addresses; leave it out",
    "port": "pods listen on 8000; set spec.service.port for the Service's",
    "metrics-port": "pods listen on 8001; leave it out",
    "tp": "set spec.tensorParallelSize",
    "device": "set spec.gpu.count, 0 for the CPU",
    "dtype": "set spec.model.dtype",
    "kv-dtype": "set spec.kvCache.dtype",
    "mem-fraction": "set spec.kvCache.memoryPercent",
    "served-model-name": "set spec.model.servedName",
    "drain-delay": "it fits the Service's endpoints; leave it out",
    "drain-time": "set spec.drainTimeoutSeconds",
    "api-key-file": "set spec.apiKeySecretRef",
    "max-req-total-len": "set spec.model.maxLength",
    "log-format": "pods log JSON; leave it out",
    "config": "give each option in spec.extraArgs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKey:
    """One key of a Secret in the resource's namespace; the operator never reads it."""

    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Which weights, and how they are served.

    endpoint: of the hub or of S3. credentials_secret_ref: the name of a Secret. max_length: tokens,
    prompt and output.
    """

    uri: str
    revision: str | None = None
    endpoint: str | None = None
    token_secret_ref: SecretKey | None = None
    credentials_secret_ref: str | None = None
    served_name: str | None = None
    dtype: str = "auto"
    max_length: int | None = None

    @property
    def is_remote(self) -> bool:
        """It must be fetched."""
        return self.uri.startswith(("hf://", "s3://"))

    @property
    def claim(self) -> str | None:
        """The claim of a pvc:// uri."""
        scheme, _, rest = self.uri.partition("://")
        return rest.partition("/")[0] if scheme == "pvc" else None

    @property
    def path(self) -> str:
        """Inside the claim, or in the image."""
        rest = self.uri.partition("://")[2]
        return rest.partition("/")[2] if self.claim is not None else rest


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """A claim for a fetched model: the user's, or one of `size` that the operator makes."""

    claim_name: str | None = None
    size: str | None = None
    storage_class_name: str | None = None
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"


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
    """At most `max_pods` per `period_seconds`, once nothing spoke against it for a window."""

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
class ServiceSpec:
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    port: int = 80
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTemplateSpec:
    """What a namespace user may add to the pods; nothing that gives rights."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()
    affinity: Object | None = None
    topology_spread_constraints: tuple[Object, ...] = ()
    runtime_class_name: str | None = None
    priority_class_name: str | None = None
    image_pull_secrets: tuple[Object, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSpec:
    """One `LightLLMDeployment`: identity, then the fields of `spec` in the schema's order."""

    name: str
    namespace: str
    uid: str
    generation: int
    model: ModelSpec
    cache: CacheSpec | None = None
    gpu: GpuSpec = GpuSpec()
    tensor_parallel_size: int | None = None
    kv_cache: KvCacheSpec = KvCacheSpec()
    replicas: int | None = None
    autoscaling: AutoscalingSpec | None = None
    rollout: RolloutSpec = RolloutSpec()
    drain_timeout_seconds: int = 120
    startup_timeout_seconds: int = 1800
    suspend: bool = False
    service: ServiceSpec = field(default_factory=ServiceSpec)
    api_key_secret_ref: SecretKey | None = None
    image: str | None = None
    image_pull_policy: str | None = None
    extra_args: tuple[str, ...] = ()
    env: tuple[Object, ...] = ()
    resources: Mapping[str, Object] = field(default_factory=dict)
    pod_template: PodTemplateSpec = field(default_factory=PodTemplateSpec)
    # of the metadata: the value of serving.lightllm.io/upgrade, if any
    upgrade_request: str | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of those that its pods or Jobs mount."""
        keys = (self.model.token_secret_ref, self.api_key_secret_ref)
        names = (*(key and key.name for key in keys), self.model.credentials_secret_ref)
        return tuple(name for name in names if name)


def parse(body: Object) -> DeploymentSpec:
    """`read` and `check`."""
    spec = read(body)
    check(spec)
    return spec


def read(body: Object) -> DeploymentSpec:
    """What the schema has let through: scaling goes by it even where `check` refuses the rest."""
    metadata, spec = body["metadata"], body["spec"]
    key = spec.get("apiKeySecretRef")
    autoscaling, cache = spec.get("autoscaling"), spec.get("cache")
    return DeploymentSpec(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        model=_model(spec["model"]),
        cache=None if cache is None else _cache(cache),
        gpu=_gpu(spec.get("gpu", {})),
        tensor_parallel_size=spec.get("tensorParallelSize"),
        kv_cache=_kv_cache(spec.get("kvCache", {})),
        replicas=spec.get("replicas"),
        autoscaling=None if autoscaling is None else _autoscaling(autoscaling),
        rollout=_rollout(spec.get("rollout", {})),
        drain_timeout_seconds=spec.get("drainTimeoutSeconds", 120),
        startup_timeout_seconds=spec.get("startupTimeoutSeconds", 1800),
        suspend=spec.get("suspend", False),
        service=_service(spec.get("service", {})),
        api_key_secret_ref=None if key is None else SecretKey(name=key["name"], key=key["key"]),
        image=spec.get("image"),
        image_pull_policy=spec.get("imagePullPolicy"),
        extra_args=tuple(spec.get("extraArgs", ())),
        env=tuple(spec.get("env", ())),
        resources=spec.get("resources", {}),
        pod_template=_pod_template(spec.get("podTemplate", {})),
        upgrade_request=metadata.get("annotations", {}).get(ANNOTATION_UPGRADE),
    )


def check(spec: DeploymentSpec) -> None:
    """Raises SpecError for what the schema cannot refuse."""
    if ".." in PurePosixPath(spec.model.path).parts:
        raise SpecError("spec.model.uri", f"got {spec.model.uri!r}, `..` is not allowed")
    for index, argument in enumerate(spec.extra_args):
        option = argument.removeprefix("--").partition("=")[0].replace("_", "-")
        if argument.startswith("--") and option in OWNED_OPTIONS:
            raise SpecError(
                f"spec.extraArgs[{index}]",
                f"got --{option}, which the operator sets itself: {OWNED_OPTIONS[option]}",
            )


def _model(value: Object) -> ModelSpec:
    token, credentials = value.get("tokenSecretRef"), value.get("credentialsSecretRef")
    return ModelSpec(
        uri=value["uri"],
        revision=value.get("revision"),
        endpoint=value.get("endpoint"),
        token_secret_ref=(
            None if token is None else SecretKey(name=token["name"], key=token.get("key", "token"))
        ),
        credentials_secret_ref=None if credentials is None else credentials["name"],
        served_name=value.get("servedName"),
        dtype=value.get("dtype", "auto"),
        max_length=value.get("maxLength"),
    )


def _cache(value: Object) -> CacheSpec:
    return CacheSpec(
        claim_name=value.get("claimName"),
        size=value.get("size"),
        storage_class_name=value.get("storageClassName"),
        access_mode=value.get("accessMode", "ReadWriteMany"),
    )


def _gpu(value: Object) -> GpuSpec:
    return GpuSpec(
        count=value.get("count", 1),
        resource_name=value.get("resourceName", "nvidia.com/gpu"),
        product=value.get("product"),
    )


def _kv_cache(value: Object) -> KvCacheSpec:
    return KvCacheSpec(
        dtype=value.get("dtype", "Auto"), memory_percent=value.get("memoryPercent", 90)
    )


def _autoscaling(value: Object) -> AutoscalingSpec:
    return AutoscalingSpec(
        max_replicas=value["maxReplicas"],
        min_replicas=value.get("minReplicas", 1),
        target_queue_depth=value.get("targetQueueDepth", 4),
        tolerance_percent=value.get("tolerancePercent", 10),
        scale_up=_scale_rule(value.get("scaleUp", {}), window=0, max_pods=4),
        scale_down=_scale_rule(value.get("scaleDown", {}), window=300, max_pods=1),
    )


def _scale_rule(value: Object, *, window: int, max_pods: int) -> ScaleRule:
    return ScaleRule(
        stabilization_window_seconds=value.get("stabilizationWindowSeconds", window),
        max_pods=value.get("maxPods", max_pods),
        period_seconds=value.get("periodSeconds", 60),
    )


def _rollout(value: Object) -> RolloutSpec:
    return RolloutSpec(
        type=value.get("type", "Auto"),
        max_surge=value.get("maxSurge"),
        max_unavailable=value.get("maxUnavailable"),
        progress_deadline_seconds=value.get("progressDeadlineSeconds", 1800),
    )


def _service(value: Object) -> ServiceSpec:
    return ServiceSpec(
        type=value.get("type", "ClusterIP"),
        port=value.get("port", 80),
        annotations=value.get("annotations", {}),
    )


def _pod_template(value: Object) -> PodTemplateSpec:
    return PodTemplateSpec(
        labels=value.get("labels", {}),
        annotations=value.get("annotations", {}),
        node_selector=value.get("nodeSelector", {}),
        tolerations=tuple(value.get("tolerations", ())),
        affinity=value.get("affinity"),
        topology_spread_constraints=tuple(value.get("topologySpreadConstraints", ())),
        runtime_class_name=value.get("runtimeClassName"),
        priority_class_name=value.get("priorityClassName"),
        image_pull_secrets=tuple(value.get("imagePullSecrets", ())),
    )
