"""Slots beyond 2³¹ elements into the KV pool: 32-bit offsets would wrap there.

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

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# fits into 32 bits, as a real stride does; three times it does not
SLOT_STRIDE = 1 << 30
KV_HEADS, DIM = 1, 16
SLOTS = [3, 1, 2, 0]


def spread(pool):
    """The same contents, each slot 2³⁰ elements after the one before."""
    num_slots, *rest = pool.shape
    last = (num_slots - 1) * SLOT_STRIDE + pool[0].numel()
    if DEVICE == "cuda":
        flat = torch.zeros(last, dtype=pool.dtype, device=DEVICE)
    else:
        # numpy's zeros, unlike torch's, touch no page
        flat = torch.from_numpy(np.zeros(last, dtype=str(pool.dtype).removeprefix("torch.")))
    wide = flat.as_strided(pool.shape, (SLOT_STRIDE, *torch.empty(rest).stride()))
    return wide.copy_(pool)


@pytest.mark.parametrize("op", ["decode", "prefill"])
def test_attention_reads_slots_beyond_32_bit_offsets(op, assert_close):
    compact = torch.randn(len(SLOTS), 2 * KV_HEADS, DIM, device=DEVICE).half()
    table = torch.tensor([SLOTS], dtype=torch.int32, device=DEVICE)
    if op == "decode":
        attend, query = decode_attention, torch.randn(1, 2, DIM, device=DEVICE).half()
        batch = make_decode_batch(table, [0], [len(SLOTS)], padding_slot=0)
    else:
        attend, query = prefill_attention, torch.randn(3, 2, DIM, device=DEVICE).half()
        batch = make_prefill_batch(table, [0], [1], [3], dtype=query.dtype)
    with triton_everywhere():
        near, far = (
            attend(query, pool, None, table, batch, scale=0.3, workspace=Workspace(DEVICE))
            for pool in (compact, spread(compact))
        )
    assert_close(far, near, rtol=0, atol=0)
    assert bool(near.abs().sum() > 0)
