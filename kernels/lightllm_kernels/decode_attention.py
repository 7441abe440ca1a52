"""Attention of one new token per request over its whole cached context, read through the KV pool.

softmax(scale · q kᵀ) v per query head; query head h reads KV head h // (H/G).

Triton: split-KV flash decoding (Dao et al., 2023). A program takes one row, one KV head and one
part of the context, with the GQA group as the query rows of its products, so that a key is read
once; a second kernel combines the parts. The number of parts is chosen on the host and a part's
length on the device, so the launch can be recorded in a CUDA graph and replayed as contexts grow.
int8 pools are read as such; scales are applied to scores and probabilities.

CPU form: `cpu_decode_attention`; with options other than the default it is the reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm_kernels.attention_batch import DecodeBatch
from lightllm_kernels.attention_configs import find_config
from lightllm_kernels.attention_options import (
    INT8_P_SCALE,
    LOG2_E,
    PLAIN,
    AttentionOptions,
    adjust_in_base_2,
)
from lightllm_kernels.attention_references import decode_attention_reference
from lightllm_kernels.checks import require, require_pool, require_rows, require_shape
from lightllm_kernels.cpu_decode_attention import attend_sparse
from lightllm_kernels.decode_splits import choose_num_splits, num_multiprocessors
from lightllm_kernels.triton_launch import launch, runs_triton
from lightllm_kernels.workspace import Workspace

__all__ = ["decode_attention", "decode_attention_reference"]

# query heads of one program, half of it for head dims above 64: more would spill registers
_MAX_BLOCK_H = 64
# splits combined at once
_BLOCK_S = 16
# a split's least blocks: with one, no key is loaded while another is computed with
_MIN_BLOCKS = tl.constexpr(2)


@triton.jit
def _split_bounds(seq_len, num_splits, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where the splits of a row begin, and the tokens of each but the last.

    A replayed launch has the splits of the longest context: a short row takes fewer of them.
    """
    first = 0
    if WINDOW > 0:
        first = tl.maximum(seq_len - WINDOW, 0) // BLOCK_N * BLOCK_N
    blocks = tl.cdiv(tl.cdiv(seq_len - first, num_splits), BLOCK_N)
    return first, tl.maximum(blocks, _MIN_BLOCKS) * BLOCK_N


# what changes between steps must not compile anew
@triton.jit(
    do_not_specialize=["num_splits", "kv_heads", "group", "stride_lse_token", "stride_lse_head"],
    do_not_specialize_on_alignment=["rows_ptr", "seq_lens_ptr"],
)
def _decode_split_kernel(
    query_ptr,
    kv_ptr,
    kv_scales_ptr,
    req_to_slots_ptr,
    rows_ptr,
    seq_lens_ptr,
    slopes_ptr,
    out_ptr,
    lse_ptr,
    scale,
    num_splits,
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
    stride_out_split,
    stride_lse_token,
    stride_lse_head,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One split of one row for up to BLOCK_H query heads of one KV head; with `lse_ptr` None the
    only split, whose result is final.
    """
    head_blocks = tl.cdiv(group, BLOCK_H)
    kv_head = (tl.program_id(0) // head_blocks).to(tl.int64)
    token = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    seq_len = tl.load(seq_lens_ptr + token)
    first, length = _split_bounds(seq_len, num_splits, WINDOW, BLOCK_N)
    begin = first + split * length
    end = tl.minimum(begin + length, seq_len)
    # nested: a constant and a device value cannot be joined by `and`
    if lse_ptr is not None:  # noqa: SIM102
        if begin >= end:
            return

    offs_h = (tl.program_id(0) % head_blocks) * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_d = tl.arange(0, BLOCK_D)
    mask_h, mask_d = offs_h < group, offs_d < HEAD_DIM
    mask_q = mask_h[:, None] & mask_d[None, :]
    heads = kv_head * group + offs_h
    offs_q = heads[:, None] * stride_query_head + offs_d[None, :]
    query = tl.load(query_ptr + token * stride_query_token + offs_q, mask=mask_q, other=0.0)
    slopes = None
    if slopes_ptr is not None:
        slopes = tl.load(slopes_ptr + heads, mask=mask_h, other=0.0)
    row = tl.load(rows_ptr + token).to(tl.int64)
    slots_ptr = req_to_slots_ptr + row * stride_req_to_slots_row
    key_ptr = kv_ptr + kv_head * stride_kv_head
    value_ptr = key_ptr + kv_heads.to(tl.int64) * stride_kv_head
    plain: tl.constexpr = SOFT_CAP == 0 and slopes_ptr is None

    top = tl.full([BLOCK_H], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    acc = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
    for start in tl.range(begin, end, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < end
        if WINDOW > 0:
            mask_n = mask_n & (offs_n >= seq_len - WINDOW)
        mask_kv = mask_n[:, None]
        if BLOCK_D != HEAD_DIM:
            mask_kv = mask_kv & mask_d[None, :]
        slots = tl.load(slots_ptr + offs_n, mask=mask_n, other=0).to(tl.int64)
        offs_kv = slots[:, None] * stride_kv_slot + offs_d[None, :]
        key = tl.load(key_ptr + offs_kv, mask=mask_kv, other=0)
        value = tl.load(value_ptr + offs_kv, mask=mask_kv, other=0)
        scores = tl.dot(query, tl.trans(key.to(query.dtype)), input_precision="ieee") * scale
        if kv_scales_ptr is not None:
            scales_ptr = kv_scales_ptr + slots * stride_scales_slot + kv_head
            scores *= tl.load(scales_ptr, mask=mask_n, other=0.0).to(tl.float32)[None, :]
        if plain:
            scores *= LOG2_E
        else:
            distance = (seq_len - 1 - offs_n)[None, :]
            scores = adjust_in_base_2(scores, distance, slopes, SOFT_CAP)
        scores = tl.where(mask_n[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        decay = tl.exp2(top - new_top)
        p = tl.exp2(scores - new_top[:, None])
        total = total * decay + tl.sum(p, 1)
        if kv_scales_ptr is not None:
            value_scales = tl.load(scales_ptr + kv_heads, mask=mask_n, other=0.0).to(tl.float32)
            p *= (value_scales * INT8_P_SCALE)[None, :]
        acc = acc * decay[:, None]
        acc = tl.dot(p.to(query.dtype), value.to(query.dtype), acc, input_precision="ieee")
        top = new_top

    divisor = tl.where(total > 0, total, 1.0)
    if lse_ptr is not None:
        lse_ptrs = lse_ptr + token * stride_lse_token + heads * stride_lse_head + split
        tl.store(lse_ptrs, top + tl.log2(divisor), mask=mask_h)
    if kv_scales_ptr is not None:
        divisor *= INT8_P_SCALE
    offs_out = heads[:, None] * stride_out_head + offs_d[None, :]
    out_ptrs = out_ptr + token * stride_out_token + split.to(tl.int64) * stride_out_split + offs_out
    tl.store(out_ptrs, (acc / divisor[:, None]).to(out_ptr.dtype.element_ty), mask=mask_q)


@triton.jit(
    do_not_specialize=["num_splits", "stride_lse_token", "stride_lse_head"],
    do_not_specialize_on_alignment=["seq_lens_ptr"],
)
def _combine_splits_kernel(
    partial_ptr,
    lse_ptr,
    seq_lens_ptr,
    out_ptr,
    num_splits,
    stride_partial_token,
    stride_partial_head,
    stride_lse_token,
    stride_lse_head,
    stride_out_token,
    stride_out_head,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One query head of one row: the splits' results weighted by 2^lse. BLOCK_N: as the splits."""
    head, token = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    seq_len = tl.load(seq_lens_ptr + token)
    first, length = _split_bounds(seq_len, num_splits, WINDOW, BLOCK_N)
    used = tl.cdiv(seq_len - first, length)
    partial_ptr += token * stride_partial_token + head * stride_partial_head
    lse_ptr += token * stride_lse_token + head * stride_lse_head
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HEAD_DIM
    top, total = tl.full([1], -1.0e30, tl.float32), tl.zeros([1], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for start in tl.range(0, used, BLOCK_S):
        offs_s = start + tl.arange(0, BLOCK_S)
        mask_s = offs_s < used
        lse = tl.load(lse_ptr + offs_s, mask=mask_s, other=float("-inf"))
        partial = tl.load(
            partial_ptr + offs_s[:, None] * HEAD_DIM + offs_d[None, :],
            mask=mask_s[:, None] & mask_d[None, :],
            other=0.0,
        )
        new_top = tl.maximum(top, tl.max(lse, 0))
        weights = tl.exp2(lse - new_top)
        decay = tl.exp2(top - new_top)
        acc = acc * decay + tl.sum(partial * weights[:, None], 0)
        total = total * decay + tl.sum(weights, 0)
        top = new_top
    out_ptrs = out_ptr + token * stride_out_token + head * stride_out_head + offs_d
    result = acc / tl.where(total > 0, total, 1.0)
    tl.store(out_ptrs, result.to(out_ptr.dtype.element_ty), mask=mask_d)


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
    options: AttentionOptions = PLAIN,
) -> torch.Tensor:
    """Attend the step's decode tokens.

    query: [B, H, D] model dtype, D <= 256
    kv: [S+1, 2G, D] model dtype or int8, already holding each row's current key and value
    kv_scales: [S+1, 2G] float16, None unless kv is int8
    req_to_slots: [R, M] int32, as it was when `batch` was made
    Writes into `out` [B, H, D] if given and returns it; uses `workspace` for scratch.
    """
    require_rows("query", query)
    require_shape("query", query, batch.num_tokens, -1, kv.shape[2])
    heads, groups = query.shape[1], kv.shape[1] // 2
    require(heads % groups == 0, f"{heads} query heads are no multiple of {groups} KV heads")
    options.check(heads)
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    arguments = (query, kv, kv_scales, req_to_slots, batch)
    if runs_triton(query):
        return _attend_triton(*arguments, scale, workspace, out, options)
    if options.is_plain:
        return attend_sparse(*arguments, scale, workspace, out)
    return out.copy_(decode_attention_reference(*arguments, scale=scale, options=options))


def _attend_triton(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    req_to_slots: torch.Tensor,
    batch: DecodeBatch,
    scale: float,
    workspace: Workspace,
    out: torch.Tensor,
    options: AttentionOptions,
) -> torch.Tensor:
    """Waits for nothing on the device, and allocates nothing once the workspace has grown."""
    tokens, heads, dim = query.shape
    require_pool(query, kv, kv_scales)
    if not tokens:
        return out
    kv_heads = kv.shape[1] // 2
    group = heads // kv_heads
    num_splits = batch.num_splits or choose_num_splits(
        tokens, kv_heads, batch.max_len, multiprocessors=num_multiprocessors(query.device)
    )
    config = find_config(
        "decode", query.dtype, kv, head_dim=dim, group=group, plain=options.is_plain
    )
    block_d = max(16, triton.next_power_of_2(dim))
    most = _MAX_BLOCK_H if block_d <= 64 else _MAX_BLOCK_H // 2
    block_h = min(max(16, triton.next_power_of_2(group)), most)
    window = options.window or 0
    # [B, H, splits, D]; the only split writes the result itself
    partial = out.unsqueeze(2)
    lse: torch.Tensor | None = None
    lse_strides: tuple[int, ...] = (0, 0)
    if num_splits > 1:
        partial = workspace.take("decode_splits", (tokens, heads, num_splits, dim), torch.float32)
        lse = workspace.take("decode_split_lse", (tokens, heads, num_splits), torch.float32)
        lse_strides = lse.stride()[:2]
    launch(
        _decode_split_kernel,
        (kv_heads * triton.cdiv(group, block_h), tokens, num_splits),
        query,
        kv,
        kv_scales,
        req_to_slots,
        batch.rows,
        batch.seq_lens,
        options.alibi_slopes,
        partial,
        lse,
        scale,
        num_splits,
        kv_heads,
        group,
        *query.stride()[:2],
        *kv.stride()[:2],
        0 if kv_scales is None else kv_scales.stride(0),
        req_to_slots.stride(0),
        *partial.stride()[:3],
        *lse_strides,
        WINDOW=window,
        SOFT_CAP=options.soft_cap or 0.0,
        HEAD_DIM=dim,
        BLOCK_D=block_d,
        BLOCK_H=block_h,
        BLOCK_N=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if lse is not None:
        launch(
            _combine_splits_kernel,
            (heads, tokens),
            partial,
            lse,
            batch.seq_lens,
            out,
            num_splits,
            *partial.stride()[:2],
            *lse_strides,
            *out.stride()[:2],
            WINDOW=window,
            HEAD_DIM=dim,
            BLOCK_D=block_d,
            BLOCK_N=config.block_n,
            BLOCK_S=_BLOCK_S,
            num_warps=2 if block_d <= 128 else 4,
            num_stages=1,
        )
    return out
