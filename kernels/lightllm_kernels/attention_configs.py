"""The block sizes that ship with the attention kernels: nothing is tuned at run time.

One row per op, kind of KV pool, head dim, GQA ratio (query heads per KV head) and compute
capability. `benchmarks/kernels/tune_attention.py` prints rows: by time on a GPU, else by what the
compiler says they need. Every sm_80 row fits the 99 KiB of shared memory of sm_86, sm_89 and
sm_120, since these use it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

__all__ = [
    "AttentionConfig",
    "ConfigKey",
    "KVKind",
    "Op",
    "compute_capability",
    "every_lookup_gives",
    "find_config",
    "rows",
]

Op = Literal["decode", "prefill"]
KVKind = Literal["16bit", "int8"]


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """group: query heads per KV head; sm: compute capability, 90 for 9.0."""

    op: Op
    kv_kind: KVKind
    head_dim: int
    group: int
    sm: int


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """block_m: query rows of a program (prefill; decode takes the GQA group, padded to 16);
    block_n: keys of one iteration.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


_HEAD_DIMS = (64, 80, 96, 128, 256)
_GROUPS = (1, 4, 8, 16)
_SMS = (80, 90)

# (op, KV kind, sm) -> per head dim of _HEAD_DIMS: block_m, block_n, num_warps, num_stages; the GQA
# ratio does not change what is compiled, so its rows are equal until a GPU says otherwise.
# A slot is loaded a stage before its key and value, so 3 stages keep one block of these in flight
# and 5 stages two.
_TABLE: dict[tuple[Op, KVKind, int], tuple[tuple[int, int, int, int], ...]] = {
    ("decode", "16bit", 80): ((16, 64, 4, 3),) * 4 + ((16, 32, 4, 3),),
    ("decode", "int8", 80): ((16, 64, 4, 5),) * 4 + ((16, 32, 4, 5),),
    ("decode", "16bit", 90): ((16, 64, 4, 3),) * 4 + ((16, 32, 4, 3),),
    ("decode", "int8", 90): (
        (16, 64, 4, 5),
        (16, 64, 8, 3),
        (16, 64, 8, 3),
        (16, 64, 4, 5),
        (16, 32, 4, 5),
    ),
    ("prefill", "16bit", 80): ((128, 64, 8, 3),) * 4 + ((64, 32, 8, 3),),
    ("prefill", "int8", 80): ((128, 64, 8, 3),) + ((128, 32, 8, 3),) * 3 + ((64, 32, 8, 3),),
    ("prefill", "16bit", 90): ((128, 128, 8, 3),) * 4 + ((128, 32, 8, 3),),
    ("prefill", "int8", 90): ((128, 64, 8, 3),) * 4 + ((128, 32, 8, 3),),
}


# float32 products have no tensor cores: operands and sums lie in registers, whatever the pool holds
_FLOAT32: dict[Op, AttentionConfig] = {
    "decode": AttentionConfig(16, 16, 4, 1),
    "prefill": AttentionConfig(16, 16, 8, 1),
}


def rows() -> Iterator[tuple[ConfigKey, AttentionConfig]]:
    """Every row of the table."""
    for (op, kv_kind, sm), configs in _TABLE.items():
        for head_dim, config in zip(_HEAD_DIMS, configs, strict=True):
            for group in _GROUPS:
                yield ConfigKey(op, kv_kind, head_dim, group, sm), AttentionConfig(*config)


@cache
def _rows_by_key() -> dict[ConfigKey, AttentionConfig]:
    return dict(rows())


def _at_least(value: int, choices: tuple[int, ...]) -> int:
    return next((choice for choice in choices if choice >= value), choices[-1])


@cache
def _nearest(
    op: Op, dtype: torch.dtype, head_dim: int, group: int, sm: int, plain: bool
) -> AttentionConfig:
    key = ConfigKey(
        op,
        "int8" if dtype == torch.int8 else "16bit",
        _at_least(head_dim, _HEAD_DIMS),
        _at_least(group, _GROUPS),
        # 99 KiB of shared memory on sm_86, sm_89 and sm_120; 227 on sm_90, sm_100 and sm_103
        90 if 90 <= sm < 120 else 80,
    )
    config = _rows_by_key()[key]
    # options take registers that a row has not left
    return config if plain else replace(config, block_n=max(16, config.block_n // 2))


# what `every_lookup_gives`
_override: AttentionConfig | None = None


@contextmanager
def every_lookup_gives(config: AttentionConfig) -> Iterator[None]:
    """Within it the table is not used: for the tuner and for tests with small blocks."""
    global _override
    before, _override = _override, config
    try:
        yield
    finally:
        _override = before


def find_config(
    op: Op,
    dtype: torch.dtype,
    kv: torch.Tensor,
    *,
    head_dim: int,
    group: int,
    plain: bool = True,
) -> AttentionConfig:
    """The row for queries of `dtype` and a KV pool `kv`, or the nearest one; `plain`: without
    attention options.
    """
    if _override is not None:
        return _override
    if dtype == torch.float32:
        return _FLOAT32[op]
    return _nearest(op, kv.dtype, head_dim, group, compute_capability(kv.device), plain)


@cache
def compute_capability(device: torch.device) -> int:
    """90 for 9.0; off a GPU 80, the oldest that the kernels are compiled for."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor
