"""What the operator knows beside the spec: the model, the nodes, the scale decision, the rollout.

Plain values, read from the cluster by `reconcile`; the pure functions of `sizing`, `manifests` and
`status` take them as arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Facts", "HardwareFacts", "ModelFacts", "NodeGpu", "Pinned", "ScaleDecision"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The report of `lightllm-server check`, for one (uri, revision, image).

    valid_tp: sizes up to 64. kv_bytes_per_token: bytes over all layers and KV heads, by "model" and "int8".
    weight_bytes: of all files. memory_per_gpu: bytes needed by tp size. errors: why it cannot be served.
    """

    family: str
    architecture: str
    dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    max_length: int
    valid_tp: tuple[int, ...]
    kv_bytes_per_token: Mapping[str, int]
    int8_supported: bool
    int8_reason: str
    weight_bytes: int
    memory_per_gpu: Mapping[int, int]
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGpu:
    """One node's GPUs by the labels of GPU feature discovery; None where a label is absent.

    compute: (major, minor), e.g. (8, 0). memory_bytes: of one GPU. count: allocatable.
    """

    node: str
    product: str | None
    compute: tuple[int, int] | None
    memory_bytes: int | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareFacts:
    """All nodes that match the pods' selector. `readable`: False without access to nodes."""

    nodes: tuple[NodeGpu, ...] = ()
    readable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleDecision:
    """The scaler's last word. `replicas`: wanted, inside the spec's bounds. Times are Unix seconds.

    held: why the count was kept though something is missing ("MetricsUnavailable", "StartupHold"), else "".
    limited: why fewer or more were wanted than given ("TooManyReplicas", "RateLimited", ...), else "".
    """

    replicas: int
    waiting: int
    running: int
    capacity: float
    reason: str
    held: str = ""
    limited: str = ""
    decided_at: float = 0.0
    last_scale_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """What the serving Deployment was made with; a newer operator keeps it until the spec changes."""

    template_version: int
    image: str
    generation: int
    tensor_parallel_size: int
    kv_dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything `manifests.desired` and `status.summarise` may depend on beside the spec.

    replicas_now: of the serving Deployment, None if there is none. surge_unschedulable: a pod of the new
    revision has been Unschedulable for 10 s or more. any_ready: some serving pod is Ready.
    """

    model: ModelFacts | None = None
    hardware: HardwareFacts = HardwareFacts(readable=False)
    scale: ScaleDecision | None = None
    pinned: Pinned | None = None
    replicas_now: int | None = None
    surge_unschedulable: bool = False
    any_ready: bool = False
