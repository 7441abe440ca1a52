"""Prefill attention on the CPU: the states of a chunk's context gathered, then torch's SDPA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from lightllm_kernels.attention_batch import PrefillChunk
from lightllm_kernels.gather_kv import gather_kv, gathered_bytes_per_token
from lightllm_kernels.workspace import Workspace

__all__ = ["attend_chunks", "prefill_bytes_per_position"]


def attend_chunks(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    chunks: Sequence[PrefillChunk],
    scale: float,
    workspace: Workspace,
    out: torch.Tensor,
) -> torch.Tensor:
    """As `prefill_attention`, chunk by chunk; writes into `out` [P, H, D] and returns it."""
    for chunk in chunks:
        span = slice(chunk.start_loc, chunk.start_loc + chunk.length)
        states = gather_kv(kv, kv_scales, chunk.slots, workspace, query.dtype)
        out[span] = _attend(query[span], states, chunk, scale)
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
