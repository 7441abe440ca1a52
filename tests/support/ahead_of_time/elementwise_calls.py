"""Calls of the norms, rotary embedding, gated activations and the KV write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ahead_of_time.call import Call
from ahead_of_time.model_shapes import MODELS, NAMES, ModelShape, empty
from lightllm_kernels.gated_activation import gelu_and_mul, silu_and_mul
from lightllm_kernels.layer_norm import layer_norm
from lightllm_kernels.rms_norm import add_rms_norm, rms_norm
from lightllm_kernels.rotary_embedding import rotary_embedding
from lightllm_kernels.write_kv import write_kv

__all__ = ["calls"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# of a prefill step, and of a decode step
_TOKENS = (8192, 1)
# from a head's own norm to the longest row that the norms take
_WIDTHS = (128, 1000, 16384)
_SLOTS = 1 << 21
_POSITIONS = 131072
_EPS = 1e-5


def calls(sm: int) -> list[Call]:
    """The same for each `sm`."""
    found = []
    for dtype in _DTYPES:
        for model in MODELS:
            for tokens in _TOKENS:
                found += _model_calls(model, tokens, dtype)
        for width in _WIDTHS:
            found += _norm_calls(f"width {width} {NAMES[dtype]}", 64, width, dtype)
        found += _variants(dtype)
    return found


def _call(launcher: Callable[..., Any], case: str, *arguments: Any, **options: Any) -> Call:
    return Call(launcher, case, lambda: (arguments, options))


def _norm_calls(case: str, tokens: int, width: int, dtype: torch.dtype) -> list[Call]:
    hidden, weight = empty(tokens, width, dtype=dtype), empty(width, dtype=dtype)
    return [
        _call(rms_norm, case, hidden, weight, _EPS),
        _call(add_rms_norm, case, hidden, hidden, weight, _EPS),
        _call(layer_norm, case, hidden, weight, weight, _EPS),
        _call(layer_norm, f"{case}, no bias", hidden, weight, None, _EPS),
    ]


def _model_calls(model: ModelShape, tokens: int, dtype: torch.dtype) -> list[Call]:
    case = f"{model.name} {NAMES[dtype]}, {tokens} tokens"
    gate_up = empty(tokens, 2 * model.inner, dtype=dtype)
    query, key, value = _query_key_value(model, tokens, dtype)
    tables = [empty(_POSITIONS, model.head_dim // 2, dtype=torch.float32)] * 2
    positions = empty(tokens, dtype=torch.int64)
    slots = empty(tokens, dtype=torch.int64)
    pool_shape = (_SLOTS + 1, 2 * model.kv_heads, model.head_dim)
    scales = empty(*pool_shape[:2], dtype=torch.float16)
    return [
        *_norm_calls(case, tokens, model.hidden, dtype),
        _call(silu_and_mul, case, gate_up),
        _call(gelu_and_mul, case, gate_up),
        _call(gelu_and_mul, f"{case}, tanh", gate_up, approximate="tanh"),
        _call(rotary_embedding, case, query, key, *tables, positions),
        _call(write_kv, case, key, value, empty(*pool_shape, dtype=dtype), None, slots),
        _call(
            write_kv,
            f"{case}, int8 KV",
            key,
            value,
            empty(*pool_shape, dtype=torch.int8),
            scales,
            slots,
        ),
    ]


def _query_key_value(
    model: ModelShape, tokens: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of one row per token, as the QKV product leaves them."""
    heads, kv_heads = model.heads, model.kv_heads
    row = empty(tokens, heads + 2 * kv_heads, model.head_dim, dtype=dtype)
    query, key, value = row.split([heads, kv_heads, kv_heads], dim=1)
    return query, key, value


def _variants(dtype: torch.dtype) -> list[Call]:
    """What no model above does, but the launchers offer."""
    query = empty(64, 32, 80, dtype=dtype)
    positions = empty(64, dtype=torch.int32)
    found = []
    for width in (80, 32):
        tables = [empty(2048, width // 2, dtype=torch.float32)] * 2
        case = f"D 80, {width} rotated, {NAMES[dtype]}"
        found += [
            _call(rotary_embedding, f"{case}, one tensor", query, None, *tables, positions),
            _call(
                rotary_embedding,
                f"{case}, interleaved",
                query,
                query[:, :8],
                *tables,
                positions,
                interleaved=True,
            ),
        ]
    for head_dim in (64, 80, 96, 256):
        key = empty(64, 8, head_dim, dtype=dtype)
        pool_shape, slots = (_SLOTS + 1, 16, head_dim), empty(64, dtype=torch.int64)
        quantised = empty(*pool_shape, dtype=torch.int8)
        scales = empty(*pool_shape[:2], dtype=torch.float16)
        case = f"D {head_dim} {NAMES[dtype]}"
        found += [
            _call(write_kv, case, key, key, empty(*pool_shape, dtype=dtype), None, slots),
            _call(write_kv, f"{case}, int8 KV", key, key, quantised, scales, slots),
        ]
    return found
