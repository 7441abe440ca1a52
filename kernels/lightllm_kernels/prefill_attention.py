"""Causal attention of prefill chunks over their cached prefix and themselves, read through the KV
pool.

softmax(scale · q kᵀ + causal mask) v per query head; query head h reads KV head h // (H/G). A
chunk that begins at position s lets query i see positions 0 … s+i. An int8 pool is read back
quantised also for the chunk's own tokens, so that chunking and prefix hits change nothing but
rounding.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from lightllm_kernels.attention_batch import PrefillBatch, PrefillChunk
from lightllm_kernels.checks import require, require_rows, require_shape
from lightllm_kernels.gather_kv import gather_kv, gathered_bytes_per_token
from lightllm_kernels.workspace import Workspace
from lightllm_kernels.write_kv import dequantise

__all__ = ["prefill_attention", "prefill_attention_reference", "prefill_bytes_per_position"]


def prefill_attention_reference(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    req_to_slots: torch.Tensor,
    batch: PrefillBatch,
    *,
    scale: float,
) -> torch.Tensor:
    """As `prefill_attention`, from `req_to_slots` and the batch's tensors alone; float32, one
    chunk and head at a time.
    """
    out = torch.empty_like(query)
    group = query.shape[1] // (kv.shape[1] // 2)
    begin = 0
    for row, start, length in zip(
        batch.rows.tolist(), batch.starts.tolist(), batch.lens.tolist(), strict=True
    ):
        slots = req_to_slots[row, : start + length].long()
        states = kv[slots].float() if kv_scales is None else dequantise(kv[slots], kv_scales[slots])
        visible = torch.ones(length, start + length, dtype=torch.bool, device=kv.device).tril(start)
        for head in range(query.shape[1]):
            key, value = states[:, head // group], states[:, kv.shape[1] // 2 + head // group]
            scores = query[begin : begin + length, head].float() @ key.T * scale
            weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
            out[begin : begin + length, head] = (weights @ value).to(out.dtype)
        begin += length
    return out


def _attend(
    query: torch.Tensor, states: torch.Tensor, chunk: PrefillChunk, scale: float
) -> torch.Tensor:
    """query: [length, H, D], states: [context, 2G, D] -> [length, H, D]."""
    length, heads, dim = query.shape
    groups = states.shape[1] // 2
    # KV heads play the batch and a group's query heads the heads: a stride of 0 stands for
    # repeat_kv
    grouped = (groups, heads // groups, -1, dim)
    key, value = states.unsqueeze(1).transpose(0, 2).chunk(2)
    result = functional.scaled_dot_product_attention(
        query.view(length, groups, -1, dim).permute(1, 2, 0, 3),
        key.expand(grouped),
        value.expand(grouped),
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None and chunk.length > 1,
        scale=scale,
    )
    return result.permute(2, 0, 1, 3).reshape(length, heads, dim)


def prefill_bytes_per_position(
    num_tokens: int, groups: int, dim: int, kv_dtype: torch.dtype, dtype: torch.dtype
) -> int:
    """Bytes that `num_tokens` prefill tokens take for each position of their context.

    groups: G, dim: D, kv_dtype: of the pool, dtype: of the queries
    """
    masks = num_tokens * dtype.itemsize
    return masks + 8 + gathered_bytes_per_token(groups, dim, kv_dtype, dtype)


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
) -> torch.Tensor:
    """Attend the step's prefill tokens.

    query: [P, H, D] model dtype, the chunks one after the other
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
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for chunk in batch.chunks:
        span = slice(chunk.start_loc, chunk.start_loc + chunk.length)
        states = gather_kv(kv, kv_scales, chunk.slots, workspace, query.dtype)
        out[span] = _attend(query[span], states, chunk, scale)
    return out
