"""The CPU form of decode attention: no key or value is copied, padded or repeated.

A sampled sparse product makes the scores of all requests and heads straight from the pool's slots,
softmax runs over spans of similar length, and a weighted embedding bag sums the values (measured on
two cores: less than half the time of gathering into a kept workspace and SDPA). An int8, bfloat16
or float16 pool is first gathered into a float32 workspace.
"""

from __future__ import annotations

import torch

from lightllm_kernels.attention_batch import DecodeBatch
from lightllm_kernels.cpu_decode_plan import (
    CpuDecodePlan,
    DecodePlanKey,
    make_cpu_decode_plan,
    plan_bytes_per_token,
)
from lightllm_kernels.gather_kv import gather_kv, gathered_bytes_per_token
from lightllm_kernels.workspace import Workspace

__all__ = ["attend_sparse", "decode_bytes_per_token"]


def decode_bytes_per_token(heads: int, groups: int, dim: int, kv_dtype: torch.dtype) -> int:
    """Bytes that `attend_sparse` takes for each token of the requests' contexts, in one layer; the
    layers share them.

    heads: H, groups: G, dim: D, kv_dtype: of the pool
    """
    key = _plan_key(heads, groups, kv_dtype)
    size = plan_bytes_per_token(key)
    if key.gathered:
        size += gathered_bytes_per_token(groups, dim, kv_dtype, torch.float32)
    return size


def _plan_key(heads: int, groups: int, kv_dtype: torch.dtype) -> DecodePlanKey:
    # the sampled product reads float32 only
    return DecodePlanKey(heads, groups, gathered=kv_dtype != torch.float32)


def _cpu_plan(
    heads: int, kv: torch.Tensor, req_to_slots: torch.Tensor, batch: DecodeBatch
) -> CpuDecodePlan:
    key = _plan_key(heads, kv.shape[1] // 2, kv.dtype)
    plan = batch.cpu_plans.get(key)
    if plan is None:
        plan = make_cpu_decode_plan(
            key, req_to_slots, batch.rows, batch.lens, padding_slot=batch.padding_slot
        )
        batch.cpu_plans[key] = plan
    return plan


def attend_sparse(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    req_to_slots: torch.Tensor,
    batch: DecodeBatch,
    scale: float,
    workspace: Workspace,
    out: torch.Tensor,
) -> torch.Tensor:
    """As `decode_attention` with a given `out`."""
    heads, groups, dim = query.shape[1], kv.shape[1] // 2, kv.shape[2]
    plan = _cpu_plan(heads, kv, req_to_slots, batch)
    states = kv
    if plan.slots is not None:
        states = gather_kv(kv, kv_scales, plan.slots, workspace, torch.float32)
    pool_heads = states.view(-1, dim)
    ordered = query if plan.order is None else query.index_select(0, plan.order)
    torch.sparse.sampled_addmm(
        plan.scores,
        ordered.reshape(-1, dim).float(),
        pool_heads.t(),
        beta=0.0,
        alpha=scale,
        out=plan.scores,
    )
    if plan.mask is not None:
        plan.values.add_(plan.mask)
    for scores, weights in plan.softmaxes:
        torch.softmax(scores, -1, out=weights)
    # value heads lie G rows after their key heads, so the keys' columns serve again
    summed: torch.Tensor = torch.ops.aten._embedding_bag_forward_only.default(
        pool_heads[groups:], plan.columns, plan.offsets, False, 0, False, plan.weights, True
    )[0].view(-1, heads, dim)
    if plan.order is None:
        return out.copy_(summed)
    return out.index_copy_(0, plan.order, summed.to(out.dtype))
