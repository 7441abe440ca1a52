"""Scatter a step's keys and values into the token-granular KV pool, quantising if the pool is int8.

int8: symmetric per token per head, scale = absmax / 127 stored as float16, values rounded to
nearest (ties to even). They are divided by the stored (rounded) scale, so that reading back
multiplies by the very same number. A head whose scale underflows float16 (an all-zero head, for
one) is stored as zeros with scale 0.
"""

from __future__ import annotations

import torch

from lightllm_kernels.checks import require, require_int, require_shape

__all__ = ["dequantise", "quantise", "write_kv", "write_kv_reference"]


def quantise(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """states: [T, N, D] -> (int8 [T, N, D], scales float16 [T, N])."""
    wide = states.float()
    scales = (wide.abs().amax(-1) / 127).half()
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
    states = _side_by_side(key, value)
    if kv_scales is None:
        require(kv.dtype == key.dtype, f"kv is {kv.dtype} but key is {key.dtype}")
        kv.index_copy_(0, slots, states)
        return
    require(kv.dtype == torch.int8, f"kv must be int8 where scales are given, got {kv.dtype}")
    require_shape("kv_scales", kv_scales, kv.shape[0], kv.shape[1])
    quantised, scales = quantise(states)
    kv.index_copy_(0, slots, quantised)
    kv_scales.index_copy_(0, slots, scales)
