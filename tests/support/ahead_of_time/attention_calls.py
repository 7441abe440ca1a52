"""Calls of the two attention launchers: every row of the shipped tables, and whole models."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ahead_of_time.call import Call
from ahead_of_time.model_shapes import MODELS, NAMES, empty
from lightllm_kernels import attention_configs
from lightllm_kernels.attention_batch import make_decode_batch, make_prefill_batch
from lightllm_kernels.attention_options import AttentionOptions
from lightllm_kernels.decode_attention import decode_attention
from lightllm_kernels.prefill_attention import prefill_attention
from lightllm_kernels.workspace import Workspace

__all__ = ["calls"]

# more elements than 2³¹ in the pool of any of the models
_SLOTS = 1 << 21
_REQUESTS, _LONGEST = 256, 32768
_LAUNCHERS = {"decode": decode_attention, "prefill": prefill_attention}
# the layouts of one request and of many differ in nothing that is compiled; splits do
_SPLITS = {"decode": (1, 8), "prefill": (None,)}
_OPTIONS = {
    "alibi": {"alibi_slopes": True},
    "window": {"window": 4096},
    "soft cap": {"soft_cap": 50.0},
    "alibi, window, soft cap": {"alibi_slopes": True, "window": 4096, "soft_cap": 50.0},
}


def calls(sm: int) -> list[Call]:
    return [
        *_row_calls(sm),
        *_model_calls(),
        *_width_calls(),
        *_many_head_calls(),
        *_float32_calls(),
        *_option_calls(),
    ]


def _row_calls(sm: int) -> list[Call]:
    return [
        _call(
            key.op,
            heads=8 * key.group,
            kv_heads=8,
            head_dim=key.head_dim,
            dtype=torch.float16,
            pool=torch.int8 if key.kv_kind == "int8" else torch.float16,
            splits=splits,
            row=(key, config),
        )
        for key, config in attention_configs.rows()
        if key.sm == sm
        for splits in _SPLITS[key.op]
    ]


def _model_calls() -> list[Call]:
    """In bfloat16; the rows are compiled in float16."""
    return [
        _call(
            op,
            model.name,
            heads=model.heads,
            kv_heads=model.kv_heads,
            head_dim=model.head_dim,
            dtype=torch.bfloat16,
            pool=pool,
            splits=splits,
        )
        for model in MODELS
        for op in ("decode", "prefill")
        for pool in (torch.bfloat16, torch.int8)
        for splits in _SPLITS[op]
    ]


def _width_calls() -> list[Call]:
    """The head dims of no model above, in bfloat16 too."""
    return [
        _call(
            op,
            heads=32,
            kv_heads=8,
            head_dim=head_dim,
            dtype=torch.bfloat16,
            pool=pool,
            splits=_SPLITS[op][-1],
        )
        for op in ("decode", "prefill")
        for head_dim in (64, 80, 96, 256)
        for pool in (torch.bfloat16, torch.int8)
    ]


def _many_head_calls() -> list[Call]:
    """Groups of which a decode program takes 32 heads, or of more (MQA) as many as fit."""
    return [
        _call(
            "decode",
            heads=heads,
            kv_heads=1,
            head_dim=head_dim,
            dtype=torch.bfloat16,
            pool=pool,
            splits=splits,
            options=options,
        )
        for heads in (32, 48, 71)
        for head_dim in (64, 128, 256)
        for pool in (torch.bfloat16, torch.int8)
        for splits, options in ((1, None), (8, None), (8, _OPTIONS["alibi, window, soft cap"]))
    ]


def _float32_calls() -> list[Call]:
    """Their blocks are the same for all head dims, so the widest ones decide."""
    return [
        _call(
            op,
            heads=32,
            kv_heads=8,
            head_dim=head_dim,
            dtype=torch.float32,
            pool=pool,
            splits=_SPLITS[op][-1],
        )
        for op in ("decode", "prefill")
        for head_dim, pool in ((128, torch.float32), (256, torch.float32), (256, torch.int8))
    ]


def _option_calls() -> list[Call]:
    return [
        _call(
            op,
            name,
            heads=32,
            kv_heads=8,
            head_dim=head_dim,
            dtype=torch.bfloat16,
            pool=pool,
            splits=_SPLITS[op][-1],
            options=options,
        )
        for op in ("decode", "prefill")
        for name, options in _OPTIONS.items()
        for head_dim in (128, 256)
        for pool in (torch.bfloat16, torch.int8)
    ]


def _call(
    op: str,
    name: str = "",
    *,
    dtype: torch.dtype,
    pool: torch.dtype,
    splits: int | None,
    row: tuple[Any, Any] | None = None,
    options: dict[str, Any] | None = None,
    **shape: int,
) -> Call:
    make = partial(_arguments, op, dtype, pool, splits, options or {}, **shape)
    case = [
        f"{name} {NAMES[dtype]} D {shape['head_dim']}, {shape['heads']}/{shape['kv_heads']} heads",
        "int8 KV" if pool == torch.int8 else "",
        f"{splits} splits" if splits else "",
    ]
    return Call(_LAUNCHERS[op], ", ".join(filter(None, case)).strip(), make, row)


def _arguments(
    op: str,
    dtype: torch.dtype,
    pool: torch.dtype,
    splits: int | None,
    options: dict[str, Any],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    table = empty(_REQUESTS, _LONGEST, dtype=torch.int32)
    if op == "decode":
        batch = make_decode_batch(table, [5, 9], [700, 30000], padding_slot=_SLOTS)
        batch = replace(batch, num_splits=splits)
        tokens = 2
    else:
        batch = make_prefill_batch(table, [5, 9], [0, 500], [700, 300], dtype=dtype)
        tokens = 1000
    if options.get("alibi_slopes"):
        options = options | {"alibi_slopes": empty(heads, dtype=torch.float32)}
    # as the QKV product leaves it
    row = empty(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
    query = row[:, :heads]
    kv = empty(_SLOTS + 1, 2 * kv_heads, head_dim, dtype=pool)
    scales = empty(_SLOTS + 1, 2 * kv_heads, dtype=torch.float16) if pool == torch.int8 else None
    return (query, kv, scales, table, batch), {
        "scale": head_dim**-0.5,
        "workspace": Workspace("meta"),
        "options": AttentionOptions(**options),
    }
