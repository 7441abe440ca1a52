"""Attention of one new token per request over its whole cached context, read through the KV pool.

softmax(scale · q kᵀ) v per query head; query head h reads KV head h // (H/G).

CPU form: requests are bucketed by length, each bucket's slots are gathered into a kept workspace,
and one SDPA call runs with the KV heads as heads and the GQA group as query rows, so nothing is
repeated.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from lightllm_kernels.attention_batch import DecodeBatch
from lightllm_kernels.checks import require, require_rows, require_shape
from lightllm_kernels.gather_kv import gather_kv
from lightllm_kernels.workspace import Workspace
from lightllm_kernels.write_kv import dequantise

__all__ = ["decode_attention", "decode_attention_reference"]


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
    heads, groups, dim = query.shape[1], kv.shape[1] // 2, kv.shape[2]
    require(heads % groups == 0, f"{heads} query heads are no multiple of {groups} KV heads")
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    order = batch.order
    ordered = query if order is None else query.index_select(0, order)
    for bucket in batch.buckets:
        size = bucket.end - bucket.begin
        states = gather_kv(kv, kv_scales, bucket.slots, workspace, query.dtype)
        key, value = states.view(size, bucket.max_len, 2 * groups, dim).transpose(1, 2).chunk(2, 1)
        result = functional.scaled_dot_product_attention(
            ordered[bucket.begin : bucket.end].view(size, groups, -1, dim),
            key,
            value,
            attn_mask=bucket.mask,
            scale=scale,
        ).reshape(size, heads, dim)
        if order is None:
            out[bucket.begin : bucket.end] = result
        else:
            out.index_copy_(0, order[bucket.begin : bucket.end], result)
    return out
