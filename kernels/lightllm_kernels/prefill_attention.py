"""Causal attention of prefill chunks over their cached prefix and themselves, read through the KV
pool.

softmax(scale · q kᵀ + causal mask) v per query head; query head h reads KV head h // (H/G). A
chunk that begins at position s lets query i see positions 0 … s+i. An int8 pool is read back
quantised also for the chunk's own tokens, so that chunking and prefix hits change nothing but
rounding.

Triton: Nopad flash attention (Dao, 2023; "Nopad" as in LightLLM: chunks lie one after the other,
none is padded). A program takes BLOCK_M queries of one head, walks the keys by their slots without
masks up to the diagonal and with masks on it.
CPU form: `cpu_prefill_attention`; with options other than the default it is the reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm_kernels.attention_batch import PrefillBatch
from lightllm_kernels.attention_configs import find_config
from lightllm_kernels.attention_options import (
    INT8_P_SCALE,
    LOG2_E,
    PLAIN,
    AttentionOptions,
    adjust_in_base_2,
)
from lightllm_kernels.attention_references import prefill_attention_reference
from lightllm_kernels.checks import require, require_pool, require_rows, require_shape
from lightllm_kernels.cpu_prefill_attention import attend_chunks
from lightllm_kernels.triton_launch import launch, runs_triton
from lightllm_kernels.workspace import Workspace

__all__ = ["prefill_attention", "prefill_attention_reference"]


@triton.jit
def _attend_blocks(
    query,
    query_positions,
    key_ptr,
    value_ptr,
    key_scales_ptr,
    value_scales_ptr,
    slots_ptr,
    slopes,
    scale,
    top,
    total,
    acc,
    begin,
    end,
    context,
    stride_kv_slot,
    stride_scales_slot,
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Online softmax over the keys at positions begin … end; not MASKED where all queries see all
    of these.
    """
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HEAD_DIM
    for start in tl.range(begin, end, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < context
        if MASKED:
            slots = tl.load(slots_ptr + offs_n, mask=mask_n, other=0).to(tl.int64)
        else:
            slots = tl.load(slots_ptr + offs_n).to(tl.int64)
        kv_offs = slots[:, None] * stride_kv_slot + offs_d[None, :]
        if MASKED:
            mask_kv = mask_n[:, None] & mask_d[None, :]
            key = tl.load(key_ptr + kv_offs, mask=mask_kv, other=0)
            value = tl.load(value_ptr + kv_offs, mask=mask_kv, other=0)
        elif BLOCK_D != HEAD_DIM:
            key = tl.load(key_ptr + kv_offs, mask=mask_d[None, :], other=0)
            value = tl.load(value_ptr + kv_offs, mask=mask_d[None, :], other=0)
        else:
            key = tl.load(key_ptr + kv_offs)
            value = tl.load(value_ptr + kv_offs)
        scores = tl.dot(query, tl.trans(key.to(query.dtype)), input_precision="ieee")
        if key_scales_ptr is not None:
            scale_offs = slots * stride_scales_slot
            if MASKED:
                key_scales = tl.load(key_scales_ptr + scale_offs, mask=mask_n, other=0.0)
                value_scales = tl.load(value_scales_ptr + scale_offs, mask=mask_n, other=0.0)
            else:
                key_scales = tl.load(key_scales_ptr + scale_offs)
                value_scales = tl.load(value_scales_ptr + scale_offs)
            scores *= key_scales.to(tl.float32)[None, :]
        # from here on base 2: scores times `factor` are logits
        factor = scale * LOG2_E
        distance = query_positions[:, None] - offs_n[None, :]
        if SOFT_CAP > 0 or slopes is not None:
            scores = adjust_in_base_2(scores * scale, distance, slopes, SOFT_CAP)
            factor = 1.0
        if MASKED:
            visible = (distance >= 0) & mask_n[None, :]
            if WINDOW > 0:
                visible = visible & (distance < WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * factor)
        p = tl.exp2(scores * factor - new_top[:, None])
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(p, 1)
        if key_scales_ptr is not None:
            p *= (value_scales.to(tl.float32) * INT8_P_SCALE)[None, :]
        acc = acc * decay[:, None]
        acc = tl.dot(p.to(query.dtype), value.to(query.dtype), acc, input_precision="ieee")
        top = new_top
    return top, total, acc


@triton.jit
def _find_chunk(block, start_locs_ptr, num_chunks, BLOCK_M: tl.constexpr):
    """The chunk that `block` belongs to, and the first block of that chunk.

    Chunk c owns the blocks from start_locs[c] // BLOCK_M + c on: at least as many as it needs.
    """
    low, high = 0, num_chunks
    while high - low > 1:
        middle = (low + high) // 2
        first = tl.load(start_locs_ptr + middle) // BLOCK_M + middle
        low = tl.where(first <= block, middle, low)
        high = tl.where(first <= block, high, middle)
    return low, tl.load(start_locs_ptr + low) // BLOCK_M + low


# what changes between steps must not compile anew
@triton.jit(
    do_not_specialize=["num_chunks", "kv_heads", "group"],
    do_not_specialize_on_alignment=["rows_ptr", "starts_ptr", "lens_ptr", "start_locs_ptr"],
)
def _prefill_attention_kernel(
    query_ptr,
    kv_ptr,
    kv_scales_ptr,
    req_to_slots_ptr,
    rows_ptr,
    starts_ptr,
    lens_ptr,
    start_locs_ptr,
    slopes_ptr,
    out_ptr,
    scale,
    num_chunks,
    kv_heads,
    group,
    stride_query_token,
    stride_query_head,
    stride_kv_slot,
    stride_kv_head,
    stride_scales_slot,
    stride_req_to_slots_row,
    stride_out_token,
    stride_out_head,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_M queries of one chunk and one head."""
    chunk, first_block = _find_chunk(tl.program_id(0), start_locs_ptr, num_chunks, BLOCK_M)
    head = tl.program_id(1).to(tl.int64)
    length = tl.load(lens_ptr + chunk)
    # last queries first: they see the most keys, and the shortest programs end together
    begin_m = (tl.cdiv(length, BLOCK_M) - 1 - (tl.program_id(0) - first_block)) * BLOCK_M
    if begin_m < 0:
        return

    row = tl.load(rows_ptr + chunk).to(tl.int64)
    start_loc = tl.load(start_locs_ptr + chunk).to(tl.int64)
    position = tl.load(starts_ptr + chunk) + begin_m
    context = tl.load(starts_ptr + chunk) + length
    offs_m = begin_m + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    mask_q = (offs_m < length)[:, None] & (offs_d < HEAD_DIM)[None, :]
    tokens = start_loc + offs_m
    query_ptrs = query_ptr + tokens[:, None] * stride_query_token + head * stride_query_head
    query = tl.load(query_ptrs + offs_d[None, :], mask=mask_q, other=0.0)
    slopes = None
    if slopes_ptr is not None:
        slopes = tl.load(slopes_ptr + head + tl.zeros([BLOCK_M], tl.int32))
    kv_head = head // group
    key_ptr = kv_ptr + kv_head * stride_kv_head
    value_ptr = key_ptr + kv_heads.to(tl.int64) * stride_kv_head
    key_scales_ptr = None
    value_scales_ptr = None
    if kv_scales_ptr is not None:
        key_scales_ptr = kv_scales_ptr + kv_head
        value_scales_ptr = key_scales_ptr + kv_heads
    slots_ptr = req_to_slots_ptr + row * stride_req_to_slots_row

    # keys that some query sees: begin … end; that all see: whole_begin … whole_end
    end = tl.minimum(position + BLOCK_M, context)
    whole_end = (position + 1) // BLOCK_N * BLOCK_N
    begin = 0
    whole_begin = 0
    if WINDOW > 0:
        begin = tl.maximum(position - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        last_first = tl.maximum(position + BLOCK_M - WINDOW, 0)
        whole_begin = tl.minimum(tl.cdiv(last_first, BLOCK_N) * BLOCK_N, whole_end)
    top = tl.full([BLOCK_M], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if WINDOW > 0:
        top, total, acc = _attend_blocks(
            query, position + tl.arange(0, BLOCK_M), key_ptr, value_ptr, key_scales_ptr,
            value_scales_ptr, slots_ptr, slopes, scale, top, total, acc, begin, whole_begin,
            context, stride_kv_slot, stride_scales_slot, True, WINDOW, SOFT_CAP, HEAD_DIM,
            BLOCK_D, BLOCK_N,
        )  # fmt: skip
    top, total, acc = _attend_blocks(
        query, position + tl.arange(0, BLOCK_M), key_ptr, value_ptr, key_scales_ptr,
        value_scales_ptr, slots_ptr, slopes, scale, top, total, acc, whole_begin, whole_end,
        context, stride_kv_slot, stride_scales_slot, False, WINDOW, SOFT_CAP, HEAD_DIM, BLOCK_D,
        BLOCK_N,
    )  # fmt: skip
    top, total, acc = _attend_blocks(
        query, position + tl.arange(0, BLOCK_M), key_ptr, value_ptr, key_scales_ptr,
        value_scales_ptr, slots_ptr, slopes, scale, top, total, acc, whole_end, end, context,
        stride_kv_slot, stride_scales_slot, True, WINDOW, SOFT_CAP, HEAD_DIM, BLOCK_D, BLOCK_N,
    )  # fmt: skip

    divisor = tl.where(total > 0, total, 1.0)
    if kv_scales_ptr is not None:
        divisor *= INT8_P_SCALE
    out_ptrs = out_ptr + tokens[:, None] * stride_out_token + head * stride_out_head
    result = (acc / divisor[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptrs + offs_d[None, :], result, mask=mask_q)


def prefill_attention(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    req_to_slots: torch.Tensor,
    batch: PrefillBatch,
    *,
    scale: float,
    workspace: Workspace,
    out: torch.Tensor | None = None,
    options: AttentionOptions = PLAIN,
) -> torch.Tensor:
    """Attend the step's prefill tokens.

    query: [P, H, D] model dtype, D <= 256, the chunks one after the other
    kv: [S+1, 2G, D] model dtype or int8, already holding the chunks' own keys and values
    kv_scales: [S+1, 2G] float16, None unless kv is int8
    req_to_slots: [R, M] int32, as it was when `batch` was made
    Writes into `out` [P, H, D] if given and returns it; uses `workspace` for scratch.
    """
    require_rows("query", query)
    require_shape("query", query, batch.num_tokens, -1, kv.shape[2])
    require(
        query.shape[1] % (kv.shape[1] // 2) == 0,
        f"{query.shape[1]} query heads are no multiple of {kv.shape[1] // 2} KV heads",
    )
    options.check(query.shape[1])
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    arguments = (query, kv, kv_scales, req_to_slots, batch)
    if runs_triton(query):
        return _attend_triton(*arguments, scale, out, options)
    if not options.is_plain:
        return out.copy_(prefill_attention_reference(*arguments, scale=scale, options=options))
    return attend_chunks(query, kv, kv_scales, batch.chunks, scale, workspace, out)


def _attend_triton(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    req_to_slots: torch.Tensor,
    batch: PrefillBatch,
    scale: float,
    out: torch.Tensor,
    options: AttentionOptions,
) -> torch.Tensor:
    """Waits for nothing on the device and allocates nothing."""
    tokens, heads, dim = query.shape
    require_pool(query, kv, kv_scales)
    # the largest score is scaled, not the scores
    require(scale > 0, f"scale must be > 0, got {scale}")
    if not tokens:
        return out
    kv_heads, num_chunks = kv.shape[1] // 2, batch.rows.shape[0]
    group = heads // kv_heads
    config = find_config(
        "prefill", query.dtype, kv, head_dim=dim, group=group, plain=options.is_plain
    )
    launch(
        _prefill_attention_kernel,
        (tokens // config.block_m + num_chunks, heads),
        query,
        kv,
        kv_scales,
        req_to_slots,
        batch.rows,
        batch.starts,
        batch.lens,
        batch.start_locs,
        options.alibi_slopes,
        out,
        scale,
        num_chunks,
        kv_heads,
        group,
        *query.stride()[:2],
        *kv.stride()[:2],
        0 if kv_scales is None else kv_scales.stride(0),
        req_to_slots.stride(0),
        *out.stride()[:2],
        WINDOW=options.window or 0,
        SOFT_CAP=options.soft_cap or 0.0,
        HEAD_DIM=dim,
        BLOCK_D=max(16, triton.next_power_of_2(dim)),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out
