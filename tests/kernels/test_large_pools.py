"""Slots beyond 2³¹ elements into the KV pool, where 32-bit offsets wrap.

The pools are address space: only the pages of the few slots in use ever become memory.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightllm_kernels.attention_batch import make_decode_batch, make_prefill_batch
from lightllm_kernels.decode_attention import decode_attention
from lightllm_kernels.prefill_attention import prefill_attention
from lightllm_kernels.triton_launch import triton_everywhere
from lightllm_kernels.workspace import Workspace
from lightllm_kernels.write_kv import quantise, write_kv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# fits into 32 bits, as a real stride does; three times it does not
SLOT_STRIDE = 1 << 30
KV_HEADS, DIM = 1, 16
SLOTS = [3, 1, 2, 0]


def spread(pool):
    """The same int8 contents, each slot 2³⁰ elements after the one before."""
    size = (len(SLOTS) - 1) * SLOT_STRIDE + pool[0].numel()
    if DEVICE == "cuda":
        flat = torch.zeros(size, dtype=torch.int8, device=DEVICE)
    else:
        # numpy's zeros, unlike torch's, touch no page
        flat = torch.from_numpy(np.zeros(size, dtype=np.int8))
    strides = (SLOT_STRIDE, *pool.stride()[1:])
    return flat.as_strided(pool.shape, strides).copy_(pool)


@pytest.fixture
def pool():
    """Quantised states [slots, 2G, D] and their scales."""
    return quantise(torch.randn(len(SLOTS), 2 * KV_HEADS, DIM, device=DEVICE))


@pytest.mark.parametrize("op", ["decode", "prefill"])
def test_attention_reads_slots_beyond_32_bit_offsets(op, pool, assert_close):
    kv, scales = pool
    table = torch.tensor([SLOTS], dtype=torch.int32, device=DEVICE)
    if op == "decode":
        attend, tokens = decode_attention, 1
        batch = make_decode_batch(table, [0], [len(SLOTS)], padding_slot=0)
    else:
        attend, tokens = prefill_attention, 3
        batch = make_prefill_batch(table, [0], [1], [tokens], dtype=torch.float16)
    query = torch.randn(tokens, 2, DIM, device=DEVICE).half()
    with triton_everywhere():
        near, far = (
            attend(query, states, scales, table, batch, scale=0.3, workspace=Workspace(DEVICE))
            for states in (kv, spread(kv))
        )
    assert_close(far, near, rtol=0, atol=0)
    assert bool((near != 0).all())


def test_keys_and_values_are_written_beyond_32_bit_offsets(pool, assert_close):
    kv, scales = pool
    far, near = spread(kv), kv
    far_scales, near_scales = scales.clone(), scales
    key, value = torch.randn(2, 3, KV_HEADS, DIM, device=DEVICE).half()
    slots = torch.tensor(SLOTS[:3], device=DEVICE)
    before = near.clone()
    with triton_everywhere():
        write_kv(key, value, near, near_scales, slots)
        write_kv(key, value, far, far_scales, slots)
    assert_close(far, near)
    assert_close(far_scales, near_scales)
    assert bool((near[slots] != before[slots]).any(-1).all())
