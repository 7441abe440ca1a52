"""Rotary position embedding (RoFormer, 2021), neox style, where the head's first half is rotated
against its second, or interleaved (GPT-J), where each even dim is rotated against the next.

With rotary width W (W/2 = columns of the tables), dims 0..W-1 of each head are rotated, the rest
pass through: x1' = x1 cos - x2 sin, x2' = x2 cos + x1 sin, where x1 = x[: W/2], x2 = x[W/2 : W]
(interleaved: x1 = x[0 : W : 2], x2 = x[1 : W : 2]). Done in float32. On a GPU one launch rotates
query and key.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm_kernels.checks import require, require_int, require_rows, require_shape
from lightllm_kernels.triton_launch import launch, runs_triton

__all__ = ["rotary_embedding", "rotary_embedding_reference"]

# pairs that one program rotates: 8 a thread
_PAIRS, _NUM_WARPS = 1024, 4


def _pairs(states: torch.Tensor, half: int, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if interleaved:
        return states[..., 0 : 2 * half : 2], states[..., 1 : 2 * half : 2]
    return states[..., :half], states[..., half : 2 * half]


def rotary_embedding_reference(
    states: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    *,
    interleaved: bool = False,
) -> torch.Tensor:
    """states: [T, N, D], cos/sin: [P, W/2] float32, positions: [T] -> rotated copy [T, N, D]."""
    row_cos, row_sin = cos[positions.long()].unsqueeze(1), sin[positions.long()].unsqueeze(1)
    first, second = (s.float() for s in _pairs(states, cos.shape[-1], interleaved))
    rotated = states.clone()
    out_first, out_second = _pairs(rotated, cos.shape[-1], interleaved)
    out_first.copy_(first * row_cos - second * row_sin)
    out_second.copy_(second * row_cos + first * row_sin)
    return rotated


@triton.jit
def _rotate_heads(
    row_ptr,
    cos,
    sin,
    first_head,
    heads,
    stride_head,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """Rotate heads first_head … of one token in place; cos, sin: [BLOCK_HALF]."""
    offs_head = first_head + tl.arange(0, BLOCK_HEADS)[:, None]
    mask_head = offs_head < heads
    head_ptrs = row_ptr + offs_head.to(tl.int64) * stride_head
    dtype = row_ptr.dtype.element_ty
    if INTERLEAVED:
        # whole rows, so that no pair is read or written by halves
        offs = tl.arange(0, 2 * BLOCK_HALF)[None, :]
        mask = mask_head & (offs < 2 * HALF)
        states = tl.load(head_ptrs + offs, mask=mask, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(states, (BLOCK_HEADS, BLOCK_HALF, 2)))
        rotated = tl.join(first * cos - second * sin, second * cos + first * sin)
        states = tl.reshape(rotated, (BLOCK_HEADS, 2 * BLOCK_HALF))
        tl.store(head_ptrs + offs, states.to(dtype), mask=mask)
    else:
        offs = tl.arange(0, BLOCK_HALF)[None, :]
        mask = mask_head & (offs < HALF)
        first = tl.load(head_ptrs + offs, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(head_ptrs + HALF + offs, mask=mask, other=0.0).to(tl.float32)
        tl.store(head_ptrs + offs, (first * cos - second * sin).to(dtype), mask=mask)
        tl.store(head_ptrs + HALF + offs, (second * cos + first * sin).to(dtype), mask=mask)


@triton.jit(do_not_specialize_on_alignment=["positions_ptr"])
def _rotary_kernel(
    query_ptr,
    key_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    query_heads,
    key_heads,
    stride_query_token,
    stride_query_head,
    stride_key_token,
    stride_key_head,
    stride_cos_row,
    stride_sin_row,
    stride_positions,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """One block of the query's or of the key's heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    position = tl.load(positions_ptr + token * stride_positions).to(tl.int64)
    offs = tl.arange(0, BLOCK_HALF)[None, :]
    cos = tl.load(cos_ptr + position * stride_cos_row + offs, mask=offs < HALF, other=0.0)
    sin = tl.load(sin_ptr + position * stride_sin_row + offs, mask=offs < HALF, other=0.0)
    query_blocks = tl.cdiv(query_heads, BLOCK_HEADS)
    if block < query_blocks:
        _rotate_heads(
            query_ptr + token * stride_query_token,
            cos,
            sin,
            block * BLOCK_HEADS,
            query_heads,
            stride_query_head,
            HALF,
            INTERLEAVED,
            BLOCK_HEADS,
            BLOCK_HALF,
        )
    else:
        _rotate_heads(
            key_ptr + token * stride_key_token,
            cos,
            sin,
            (block - query_blocks) * BLOCK_HEADS,
            key_heads,
            stride_key_head,
            HALF,
            INTERLEAVED,
            BLOCK_HEADS,
            BLOCK_HALF,
        )


def _launch(
    query: torch.Tensor,
    key: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    interleaved: bool,
) -> None:
    require_rows("cos", cos)
    require_rows("sin", sin)
    half = cos.shape[-1]
    block_half = triton.next_power_of_2(half)
    heads, key_heads = query.shape[1], 0 if key is None else key.shape[1]
    block_heads = max(1, min(triton.next_power_of_2(heads), _PAIRS // block_half))
    num_blocks = triton.cdiv(heads, block_heads) + triton.cdiv(key_heads, block_heads)
    key = query if key is None else key
    if query.shape[0] == 0:
        return
    launch(
        _rotary_kernel,
        (query.shape[0], num_blocks),
        query,
        key,
        cos,
        sin,
        positions,
        heads,
        key_heads,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        cos.stride(0),
        sin.stride(0),
        positions.stride(0),
        HALF=half,
        INTERLEAVED=interleaved,
        BLOCK_HEADS=block_heads,
        BLOCK_HALF=block_half,
        num_warps=_NUM_WARPS,
    )


def _rotate_(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> None:
    first, second = _pairs(states, cos.shape[-1], interleaved)
    if states.dtype == torch.float32:
        rotated = first * cos
        rotated.addcmul_(second, sin, value=-1.0)
        second.mul_(cos).addcmul_(first, sin)
        first.copy_(rotated)
        return
    wide_first, wide_second = first.float(), second.float()
    first.copy_(wide_first * cos - wide_second * sin)
    second.copy_(wide_second.mul_(cos).addcmul_(wide_first, sin))


def rotary_embedding(
    query: torch.Tensor,
    key: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    *,
    interleaved: bool = False,
) -> None:
    """Rotate query and key heads in place.

    query: [T, H, D]; key: [T, G, D] or None (then `query` holds both side by side, one pass)
    cos, sin: [P, W/2] float32, W <= D
    positions: [T] int32 or int64, each < P
    interleaved: pairs are neighbours (GPT-J), not halves (neox)
    """
    require_rows("query", query)
    require(
        2 * cos.shape[-1] <= query.shape[-1],
        f"rotary width {2 * cos.shape[-1]} exceeds head_dim {query.shape[-1]}",
    )
    require_shape("sin", sin, *cos.shape)
    require_shape("positions", positions, query.shape[0])
    if key is not None:
        require_rows("key", key)
        require_shape("key", key, query.shape[0], -1, query.shape[-1])
    if runs_triton(query):
        require_int("positions", positions, torch.int32, torch.int64)
        return _launch(query, key, cos, sin, positions, interleaved)
    row_cos = cos.index_select(0, positions).unsqueeze(1)
    row_sin = sin.index_select(0, positions).unsqueeze(1)
    _rotate_(query, row_cos, row_sin, interleaved)
    if key is not None:
        _rotate_(key, row_cos, row_sin, interleaved)
    return None
