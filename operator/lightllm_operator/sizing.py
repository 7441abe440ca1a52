"""Tensor-parallel size from the GPU count, and the KV cache's type from model and nodes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightllm_operator.errors import RefusedError
from lightllm_operator.facts import ModelFacts, NodeGpu
from lightllm_operator.spec import DeploymentSpec

__all__ = ["KvChoice", "kv_choice", "tensor_parallel_size"]

# int8 arithmetic begins here (T4). The server itself needs 8.0 (A100, L4, H100, …): on an older GPU
# it ends with exit code 78 and says so, which becomes the pod's problem in the status
_INT8_FROM = (7, 5)


@dataclass(frozen=True, slots=True)
class KvChoice:
    """dtype: the server's --kv-dtype, "auto", "model" or "int8", or what it made of "auto"; reason:
    for the status."""

    dtype: str
    reason: str


def tensor_parallel_size(spec: DeploymentSpec, model: ModelFacts) -> int:
    """The explicit size, or the largest that neither GPU count nor model forbids.

    Raises:
        RefusedError: InvalidTensorParallel, naming the sizes that work.
    """
    most = max(spec.gpu.count, 1)
    valid = [size for size in model.valid_tp if size <= most]
    wanted = spec.tensor_parallel_size
    if wanted is None:
        return max(valid)
    if spec.gpu.count == 0:
        valid = list(model.valid_tp)
    if wanted not in valid:
        raise RefusedError(
            "InvalidTensorParallel",
            f"spec.tensorParallelSize: got {wanted}, but {model.heads} attention heads with "
            f"{model.kv_heads} KV heads on {most} GPUs allow {', '.join(map(str, valid))}; "
            "set one of these, or remove the field",
        )
    return wanted


def kv_choice(spec: DeploymentSpec, model: ModelFacts, nodes: Sequence[NodeGpu] | None) -> KvChoice:
    """The KV cache's type over all nodes that the pods may run on; nodes: None where unreadable.

    Raises:
        RefusedError: UnsupportedKVCache for an explicit Int8 that the model or a node forbids.
    """
    if spec.kv_cache.dtype == "Model":
        return KvChoice("model", "spec.kvCache.dtype is Model")
    against = _against_int8(spec, model, nodes)
    if spec.kv_cache.dtype == "Int8":
        if against:
            raise RefusedError(
                "UnsupportedKVCache",
                f"spec.kvCache.dtype: Int8 is impossible, since {against}; "
                "set Auto or Model, or select other nodes",
            )
        return KvChoice("int8", "spec.kvCache.dtype is Int8")
    if against:
        return KvChoice("model", against)
    if spec.gpu.count == 0:
        return KvChoice("auto", "on the CPU the server chooses")
    if not nodes or any(node.compute is None for node in nodes):
        return KvChoice("auto", "the nodes' GPUs are unknown: the server chooses")
    return KvChoice("int8", f"{model.int8_reason}; all {len(nodes)} matching nodes support it")


def _against_int8(
    spec: DeploymentSpec, model: ModelFacts, nodes: Sequence[NodeGpu] | None
) -> str | None:
    if not model.int8_supported:
        return model.int8_reason
    if spec.gpu.count == 0:
        return None
    for node in nodes or ():
        if node.compute is not None and node.compute < _INT8_FROM:
            major, minor = node.compute
            product = node.product or "its GPU"
            return f"node {node.node} has {product} (compute capability {major}.{minor} < 7.5)"
    return None
