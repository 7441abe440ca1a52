"""Attention of one new token per request over its whole cached context, read through the KV pool.

softmax(scale · q kᵀ) v per query head; query head h reads KV head h // (H/G).

CPU form: no key or value is copied, padded or repeated. A sampled sparse product makes the scores
of all requests and heads straight from the pool's slots, softmax runs over spans of similar length,
and a weighted embedding bag sums the values (measured on two cores: less than half the time of
gathering into a kept workspace and SDPA). An int8, bfloat16 or float16 pool is first gathered into
a float32 workspace. Other devices: padded gather and SDPA.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from lightllm_kernels.attention_batch import DecodeBatch
from lightllm_kernels.checks import require, require_rows, require_shape
from lightllm_kernels.cpu_decode_plan import (
    CpuDecodePlan,
    DecodePlanKey,
    make_cpu_decode_plan,
    plan_bytes_per_token,
)
from lightllm_kernels.gather_kv import gather_kv, gathered_bytes_per_token
from lightllm_kernels.workspace import Workspace
from lightllm_kernels.write_kv import dequantise

__all__ = ["decode_attention", "decode_attention_reference", "decode_bytes_per_token"]


def decode_attention_reference(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    req_to_slots: torch.Tensor,
    batch: DecodeBatch,
    *,
    scale: float,
) -> torch.Tensor:
    """As `decode_attention`, from `req_to_slots` and the batch's tensors alone; float32, one
    request at a time.
    """
    out = torch.empty_like(query)
    group = query.shape[1] // (kv.shape[1] // 2)
    for index, (row, length) in enumerate(
        zip(batch.rows.tolist(), batch.seq_lens.tolist(), strict=True)
    ):
        slots = req_to_slots[row, :length].long()
        states = kv[slots].float() if kv_scales is None else dequantise(kv[slots], kv_scales[slots])
        key, value = states.repeat_interleave(group, dim=1).chunk(2, dim=1)
        scores = torch.einsum("hd,lhd->hl", query[index].float(), key) * scale
        out[index] = torch.einsum("hl,lhd->hd", scores.softmax(-1), value).to(out.dtype)
    return out


def decode_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    req_to_slots: torch.Tensor,
    batch: DecodeBatch,
    *,
    scale: float,
    workspace: Workspace,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend the step's decode tokens.

    query: [B, H, D] model dtype
    kv: [S+1, 2G, D] model dtype or int8, already holding each row's current key and value
    kv_scales: [S+1, 2G] float16, None unless kv is int8
    req_to_slots: [R, M] int32, as it was when `batch` was made
    Writes into `out` [B, H, D] if given and returns it; uses `workspace` for scratch.
    """
    require_rows("query", query)
    require_shape("query", query, batch.num_tokens, -1, kv.shape[2])
    heads, groups = query.shape[1], kv.shape[1] // 2
    require(heads % groups == 0, f"{heads} query heads are no multiple of {groups} KV heads")
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    attend = _attend_sparse if query.device.type == "cpu" else _attend_padded
    return attend(query, kv, kv_scales, req_to_slots, batch, scale, workspace, out)


def decode_bytes_per_token(heads: int, groups: int, dim: int, kv_dtype: torch.dtype) -> int:
    """Bytes that the CPU form takes for each token of the requests' contexts, in one layer; the
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


def _attend_sparse(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    req_to_slots: torch.Tensor,
    batch: DecodeBatch,
    scale: float,
    workspace: Workspace,
    out: torch.Tensor,
) -> torch.Tensor:
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


def _attend_padded(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    req_to_slots: torch.Tensor,
    batch: DecodeBatch,
    scale: float,
    workspace: Workspace,
    out: torch.Tensor,
) -> torch.Tensor:
    """Waits for nothing on the device."""
    size, heads, dim = query.shape
    groups = kv.shape[1] // 2
    slots = req_to_slots[:, : batch.max_len].index_select(0, batch.rows).long()
    visible = torch.arange(batch.max_len, device=kv.device) < batch.seq_lens.unsqueeze(1)
    slots = torch.where(visible, slots, batch.padding_slot)
    states = gather_kv(kv, kv_scales, slots.view(-1), workspace, query.dtype)
    key, value = states.view(size, batch.max_len, 2 * groups, dim).transpose(1, 2).chunk(2, 1)
    result = functional.scaled_dot_product_attention(
        query.reshape(size, groups, -1, dim),
        key,
        value,
        attn_mask=visible.view(size, 1, 1, -1),
        scale=scale,
    )
    return out.copy_(result.reshape(size, heads, dim))
