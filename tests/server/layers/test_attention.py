"""The attention layer: rotation, KV writes, and prefill beside decode in one step."""

from __future__ import annotations

import pytest
import torch

from lightllm_kernels.attention_batch import make_decode_batch, make_prefill_batch
from lightllm_kernels.workspace import Workspace
from lightllm_server.layers.attention import Attention, AttentionState
from lightllm_server.layers.norm import RMSNorm
from lightllm_server.layers.rotary import RopeScaling, RotaryEmbedding

HEADS, KV_HEADS, DIM, SLOTS = 6, 2, 8, 200


@pytest.fixture
def attention():
    rotary = RotaryEmbedding(
        rotary_dim=DIM,
        theta=10000.0,
        max_length=64,
        scaling=RopeScaling(),
        device=torch.device("cpu"),
    )
    return Attention(1, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, rotary=rotary)


class Cache:
    """A pool of two layers, of which the second is used, and a request table."""

    def __init__(self, *, int8=False):
        dtype = torch.int8 if int8 else torch.float32
        self.kv = [torch.zeros(SLOTS + 1, 2 * KV_HEADS, DIM, dtype=dtype) for _ in range(2)]
        self.scales = [torch.zeros(SLOTS + 1, 2 * KV_HEADS).half() for _ in range(2)]
        self.table = torch.randperm(SLOTS, dtype=torch.int32).view(4, 50)
        self.int8 = int8
        self.workspace = Workspace()

    def run(self, attention, qkv, chunks=(), decode=()):
        """chunks: (row, start, length); decode: (row, length with the new token)."""
        places = [(row, start + i) for row, start, length in chunks for i in range(length)]
        places += [(row, length - 1) for row, length in decode]
        rows, positions = (torch.tensor(column) for column in zip(*places, strict=True))
        prefill = decoding = None
        if chunks:
            columns = zip(*chunks, strict=True)
            prefill = make_prefill_batch(self.table, *columns, dtype=torch.float32)
        if decode:
            columns = zip(*decode, strict=True)
            decoding = make_decode_batch(self.table, *columns, padding_slot=SLOTS)
        state = AttentionState(
            positions=positions,
            slots=self.table[rows, positions].long(),
            kv=self.kv,
            kv_scales=self.scales if self.int8 else None,
            req_to_slots=self.table,
            prefill=prefill,
            decode=decoding,
            workspace=self.workspace,
        )
        return attention(qkv.clone(), state).clone()


@pytest.mark.parametrize("int8", [False, True])
def test_chunks_and_decode_steps_equal_one_prefill(int8, attention, assert_close):
    qkv = torch.randn(30, (HEADS + 2 * KV_HEADS) * DIM)
    whole = Cache(int8=int8).run(attention, qkv, [(0, 0, 30)])
    cache = Cache(int8=int8)
    parts = [
        cache.run(attention, qkv[:11], [(2, 0, 11)]),
        cache.run(attention, qkv[11:20], [(2, 11, 9)]),
    ]
    parts += [cache.run(attention, qkv[i : i + 1], decode=[(2, i + 1)]) for i in range(20, 30)]
    assert_close(torch.cat(parts), whole, atol=1e-5)


def test_a_mixed_step_equals_its_parts(attention, assert_close):
    qkv = torch.randn(40, (HEADS + 2 * KV_HEADS) * DIM)
    alone, mixed = Cache(), Cache()
    mixed.table = alone.table
    expected = [
        alone.run(attention, qkv[:9], [(0, 0, 9)]),
        alone.run(attention, qkv[9:20], [(1, 0, 11)]),
        alone.run(attention, qkv[20:25], [(1, 11, 5)]),
        alone.run(attention, qkv[25:32], [(3, 0, 7)]),
        alone.run(attention, qkv[32:33], decode=[(0, 10)]),
    ]
    mixed.run(attention, torch.cat([qkv[:9], qkv[9:20]]), [(0, 0, 9), (1, 0, 11)])
    step = torch.cat([qkv[20:25], qkv[25:32], qkv[32:33]])
    together = mixed.run(attention, step, [(1, 11, 5), (3, 0, 7)], [(0, 10)])
    assert_close(together, torch.cat(expected[2:]))
    assert torch.equal(mixed.kv[1], alone.kv[1])


def test_only_its_own_layer_and_slots_are_written(attention):
    cache = Cache()
    cache.run(attention, torch.randn(3, (HEADS + 2 * KV_HEADS) * DIM), [(1, 0, 3)])
    assert not cache.kv[0].any()
    written = cache.kv[1].flatten(1).any(1).nonzero().flatten()
    assert set(written.tolist()) == set(cache.table[1, :3].tolist())


def test_norm_layer_loads_and_adds(options, load, assert_close):
    norm = RMSNorm(6, 1e-6, name="norm", options=options)
    weight = torch.randn(6)
    load(norm, {"norm.weight": weight})
    hidden, residual = torch.randn(3, 6), torch.randn(3, 6)
    total = hidden + residual
    expected = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-6) * weight
    assert_close(norm.add(hidden, residual), expected)
    assert_close(residual, total)
    assert_close(norm(total), expected)
