"""Scatter a step's keys and values into the token-granular KV pool, quantising if the pool is int8.

int8: symmetric per token per head, scale = absmax / 127 stored as float16, values rounded to
nearest (ties to even). They are divided by the stored (rounded) scale, so that reading back
multiplies by the very same number. A head whose scale underflows float16 (an all-zero head, for
one) is stored as zeros with scale 0. On a GPU one launch reads key and value where they lie and
stores the same bits as `quantise`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm_kernels.checks import require, require_int, require_rows, require_shape
from lightllm_kernels.triton_launch import launch, runs_triton

__all__ = ["dequantise", "quantise", "write_kv", "write_kv_reference"]

# elements that one program moves: 8 a thread
_ELEMENTS, _NUM_WARPS = 1024, 4


def quantise(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """states: [T, N, D] -> (int8 [T, N, D], scales float16 [T, N])."""
    wide = states.float()
    largest = wide.abs().amax(-1)
    # not a number: CUDA multiplies by its rounded inverse, and another scale may come out
    scales = (largest / torch.full_like(largest, 127.0)).half()
    steps = scales.float().unsqueeze(-1)
    # the rounded scale may be a little smaller than absmax / 127, hence the clamp
    inverse = torch.where(steps > 0, steps.reciprocal(), 0.0)
    return wide.mul(inverse).round_().clamp_(-127, 127).to(torch.int8), scales


def dequantise(quantised: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """quantised: [..., D] int8, scales: [...] float16 -> [..., D] float32."""
    return quantised.float() * scales.float().unsqueeze(-1)


def write_kv_reference(
    key: torch.Tensor,
    value: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    slots: torch.Tensor,
) -> None:
    """As `write_kv`, one token at a time."""
    for token, slot in enumerate(slots.tolist()):
        states = torch.cat([key[token], value[token]]).unsqueeze(0)
        if kv_scales is None:
            kv[slot] = states[0].to(kv.dtype)
        else:
            quantised, scales = quantise(states)
            kv[slot], kv_scales[slot] = quantised[0], scales[0]


@triton.jit
def _write_heads(
    states_ptr,
    kv_ptr,
    scales_ptr,
    first_head,
    heads,
    stride_states_head,
    stride_kv_head,
    DIM: tl.constexpr,
    QUANTISES: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Heads first_head … of one token's key or value into its slot's."""
    offs_head = first_head + tl.arange(0, BLOCK_HEADS)
    offs_dim = tl.arange(0, BLOCK_DIM)[None, :]
    mask_head = offs_head < heads
    mask = mask_head[:, None] & (offs_dim < DIM)
    wide_head = offs_head.to(tl.int64)
    state_ptrs = states_ptr + wide_head[:, None] * stride_states_head + offs_dim
    states = tl.load(state_ptrs, mask=mask, other=0.0)
    if QUANTISES:
        states = states.to(tl.float32)
        largest = tl.max(tl.abs(states), axis=1)
        scales = tl.div_rn(largest, tl.full((BLOCK_HEADS,), 127.0, tl.float32)).to(tl.float16)
        tl.store(scales_ptr + offs_head, scales, mask=mask_head)
        steps = scales.to(tl.float32)
        one = tl.full((BLOCK_HEADS,), 1.0, tl.float32)
        inverse = tl.where(steps > 0, tl.div_rn(one, tl.where(steps > 0, steps, 1.0)), 0.0)
        # adding 1.5 · 2²³ rounds to the nearest integer, ties to even
        rounded = (states * inverse[:, None] + 12582912.0) - 12582912.0
        states = tl.minimum(tl.maximum(rounded, -127.0), 127.0)
    kv_ptrs = kv_ptr + wide_head[:, None] * stride_kv_head + offs_dim
    tl.store(kv_ptrs, states.to(kv_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def _write_kv_kernel(
    key_ptr,
    value_ptr,
    kv_ptr,
    scales_ptr,
    slots_ptr,
    heads,
    stride_key_token,
    stride_key_head,
    stride_value_token,
    stride_value_head,
    stride_kv_slot,
    stride_kv_head,
    stride_scales_slot,
    stride_slots,
    DIM: tl.constexpr,
    QUANTISES: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """A block of one token's heads: program 2i its key's, 2i + 1 its value's."""
    token = tl.program_id(0).to(tl.int64)
    first_head = tl.program_id(1) // 2 * BLOCK_HEADS
    slot = tl.load(slots_ptr + token * stride_slots).to(tl.int64)
    slot_ptr = kv_ptr + slot * stride_kv_slot
    slot_scales_ptr = scales_ptr + slot * stride_scales_slot
    if tl.program_id(1) % 2 == 0:
        _write_heads(
            key_ptr + token * stride_key_token,
            slot_ptr,
            slot_scales_ptr,
            first_head,
            heads,
            stride_key_head,
            stride_kv_head,
            DIM,
            QUANTISES,
            BLOCK_HEADS,
            BLOCK_DIM,
        )
    else:
        _write_heads(
            value_ptr + token * stride_value_token,
            slot_ptr + tl.cast(heads, tl.int64) * stride_kv_head,
            slot_scales_ptr + heads,
            first_head,
            heads,
            stride_value_head,
            stride_kv_head,
            DIM,
            QUANTISES,
            BLOCK_HEADS,
            BLOCK_DIM,
        )


def _launch(
    key: torch.Tensor,
    value: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    slots: torch.Tensor,
) -> None:
    for name, tensor in (("key", key), ("value", value), ("kv", kv)):
        require_rows(name, tensor)
    scales = kv if kv_scales is None else kv_scales
    if kv_scales is not None:
        require_rows("kv_scales", kv_scales)
        require(kv_scales.dtype == torch.float16, f"kv_scales are {kv_scales.dtype}, not float16")
    tokens, heads, dim = key.shape
    if tokens == 0:
        return
    block_dim = triton.next_power_of_2(dim)
    block_heads = max(1, min(triton.next_power_of_2(heads), _ELEMENTS // block_dim))
    launch(
        _write_kv_kernel,
        (tokens, 2 * triton.cdiv(heads, block_heads)),
        key,
        value,
        kv,
        scales,
        slots,
        heads,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        kv.stride(0),
        kv.stride(1),
        scales.stride(0),
        slots.stride(0),
        DIM=dim,
        QUANTISES=kv_scales is not None,
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        num_warps=_NUM_WARPS,
        # the product of states and inverse is rounded before it is rounded to an integer
        enable_fp_fusion=False,
    )


def _side_by_side(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """[T, 2G, D]: a view where key and value lie next to each other (as a QKV product leaves
    them), else a copy.
    """
    tokens, heads, dim = key.shape
    if (
        key.stride() == value.stride()
        and value.storage_offset() == key.storage_offset() + heads * key.stride(1)
        and key.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
    ):
        return key.as_strided((tokens, 2 * heads, dim), key.stride())
    return torch.cat([key, value], dim=1)


def write_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    slots: torch.Tensor,
) -> None:
    """Write token t's key and value heads to pool slot `slots[t]`.

    key, value: [T, G, D] model dtype
    kv: [S+1, 2G, D] model dtype or int8, written in place (key heads first)
    kv_scales: [S+1, 2G] float16, written in place; None unless kv is int8
    slots: [T] int64, distinct except for the padding slot S
    """
    require_shape("value", value, *key.shape)
    require_shape("kv", kv, -1, 2 * key.shape[1], key.shape[2])
    require_shape("slots", slots, key.shape[0])
    require_int("slots", slots, torch.int64)
    if kv_scales is None:
        require(kv.dtype == key.dtype, f"kv is {kv.dtype} but key is {key.dtype}")
    else:
        require(kv.dtype == torch.int8, f"kv must be int8 where scales are given, got {kv.dtype}")
        require_shape("kv_scales", kv_scales, kv.shape[0], kv.shape[1])
    if runs_triton(key):
        return _launch(key, value, kv, kv_scales, slots)
    states = _side_by_side(key, value)
    if kv_scales is None:
        kv.index_copy_(0, slots, states)
        return None
    quantised, scales = quantise(states)
    kv.index_copy_(0, slots, quantised)
    kv_scales.index_copy_(0, slots, scales)
    return None
