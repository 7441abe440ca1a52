"""KV writes, prefill and decode attention on the CPU against their references."""

from __future__ import annotations

import pytest
import torch

from lightllm_kernels.attention_batch import make_decode_batch, make_prefill_batch
from lightllm_kernels.decode_attention import decode_attention, decode_attention_reference
from lightllm_kernels.prefill_attention import prefill_attention, prefill_attention_reference
from lightllm_kernels.workspace import Workspace
from lightllm_kernels.write_kv import dequantise, quantise, write_kv, write_kv_reference

# (query heads, KV heads, head dim): GQA with an odd group, one KV head, no group, a dim that is no
# power of two
HEADS = ((12, 4, 64), (5, 1, 16), (3, 3, 24), (7, 7, 96))
SLOTS = 1500


def make_pool(kv_heads, dim, *, int8=False, dtype=torch.float32):
    """A pool of random contents; its last slot is the padding slot."""
    kv = torch.randn(SLOTS + 1, 2 * kv_heads, dim).to(dtype)
    return quantise(kv) if int8 else (kv, None)


def make_table(lens):
    """A request table whose rows own disjoint random slots; the rest points at no slot at all."""
    table = torch.full((len(lens) + 2, max(lens) + 3), -1, dtype=torch.int32)
    slots, begin = torch.randperm(SLOTS, dtype=torch.int32), 0
    for row, length in enumerate(lens):
        table[row + 1, :length] = slots[begin : begin + length]
        begin += length
    return table


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 63, 123])
def test_write_kv(tokens, int8):
    kv, scales = make_pool(3, 20, int8=int8)
    expected, expected_scales = kv.clone(), None if scales is None else scales.clone()
    product = torch.randn(tokens, 11, 20)
    product[0, 6] = 0.0
    product[-1, 7] *= 1e6
    key, value = product[:, 5:8], product[:, 8:]
    slots = torch.randperm(SLOTS)[:tokens]
    write_kv_reference(key, value, expected, expected_scales, slots)
    write_kv(key, value, kv, scales, slots)
    assert torch.equal(kv, expected)
    if int8:
        assert torch.equal(scales, expected_scales)
        restored = dequantise(kv[slots], scales[slots])
        states = torch.cat([key, value], 1)
        half_step = states.abs().amax(-1, keepdim=True) / 127 * 0.51
        finite = half_step < 200  # float16 scales end at 65504
        assert bool(((restored - states).abs() <= half_step + 1e-9)[finite.expand_as(states)].all())
        assert not restored[0, 1].any(), "an all-zero head stays zero"


def test_write_kv_of_separate_tensors():
    kv, _ = make_pool(2, 8)
    key, value = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    write_kv(key, value, kv, None, torch.tensor([4, 9, 2]))
    assert torch.equal(kv[9], torch.cat([key[1], value[1]]))


def test_quantise_rounds_to_nearest():
    states = torch.tensor([[[127.0, 1.4, -1.6, 0.5]]])
    quantised, scales = quantise(states)
    assert quantised.tolist() == [[[127, 1, -2, 0]]]
    assert scales.tolist() == [[1.0]]


def test_write_kv_refuses_wrong_arguments():
    kv, _ = make_pool(2, 8)
    key = torch.randn(3, 2, 8)
    with pytest.raises(ValueError, match="slots must have shape"):
        write_kv(key, key, kv, None, torch.tensor([1]))
    with pytest.raises(ValueError, match=r"kv is torch.float32 but key is torch.bfloat16"):
        write_kv(key.bfloat16(), key.bfloat16(), kv, None, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="kv must be int8"):
        write_kv(key, key, kv, torch.ones(SLOTS + 1, 4).half(), torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
@pytest.mark.parametrize("length", [1, 7, 63, 123, 1000])
def test_prefill(length, heads, kv_heads, dim, int8, assert_close):
    kv, scales = make_pool(kv_heads, dim, int8=int8)
    # a whole prompt, one token after a prefix, a chunk after a prefix
    starts, lens = [0, 9, 100], [length, 1, min(length, 130)]
    table = make_table([s + n for s, n in zip(starts, lens, strict=True)])
    batch = make_prefill_batch(table, [1, 2, 3], starts, lens, dtype=torch.float32)
    query = torch.randn(sum(lens), heads + 2 * kv_heads, dim)[:, :heads]
    out = torch.empty(sum(lens), heads, dim)
    arguments = (query, kv, scales, table, batch)
    result = prefill_attention(*arguments, scale=0.2, workspace=Workspace(), out=out)
    assert result is out
    expected = prefill_attention_reference(*arguments, scale=0.2)
    assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prefill_in_half_precision(dtype, assert_close):
    kv, _ = make_pool(2, 32, dtype=dtype)
    table = make_table([70])
    batch = make_prefill_batch(table, [1], [30], [40], dtype=dtype)
    query = torch.randn(40, 6, 32).to(dtype)
    result = prefill_attention(query, kv, None, table, batch, scale=0.2, workspace=Workspace())
    expected = prefill_attention_reference(query, kv, None, table, batch, scale=0.2)
    assert_close(result, expected)


@pytest.mark.parametrize("cut", [1, 50, 99])
def test_prefill_in_chunks_equals_prefill_at_once(cut, assert_close):
    kv, _ = make_pool(2, 16)
    table = make_table([100])
    query = torch.randn(100, 4, 16)

    def run(starts, lens, part):
        batch = make_prefill_batch(table, [1] * len(lens), starts, lens, dtype=torch.float32)
        workspace = Workspace()
        return prefill_attention(part, kv, None, table, batch, scale=0.25, workspace=workspace)

    whole = run([0], [100], query)
    parts = torch.cat([run([0], [cut], query[:cut]), run([cut], [100 - cut], query[cut:])])
    assert_close(parts, whole)
    assert_close(run([0, cut], [cut, 100 - cut], query), whole)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
@pytest.mark.parametrize(
    "lens", [[1], [7] * 3, [63, 1, 123], [5, 300, 2, 40, 41, 39, 1, 280]], ids=str
)
def test_decode(lens, heads, kv_heads, dim, int8, assert_close):
    kv, scales = make_pool(kv_heads, dim, int8=int8)
    table = make_table(lens)
    rows = list(range(1, len(lens) + 1))
    batch = make_decode_batch(table, rows, lens, padding_slot=SLOTS)
    query = torch.randn(len(lens), heads + 2 * kv_heads, dim)[:, :heads]
    out = torch.empty(len(lens), heads, dim)
    arguments = (query, kv, scales, table, batch)
    assert decode_attention(*arguments, scale=0.2, workspace=Workspace(), out=out) is out
    assert_close(out, decode_attention_reference(*arguments, scale=0.2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decode_in_half_precision(dtype, assert_close):
    kv, _ = make_pool(2, 32, dtype=dtype)
    lens = [90, 3, 120]
    table = make_table(lens)
    batch = make_decode_batch(table, [1, 2, 3], lens, padding_slot=SLOTS)
    query = torch.randn(3, 6, 32).to(dtype)
    result = decode_attention(query, kv, None, table, batch, scale=0.2, workspace=Workspace())
    expected = decode_attention_reference(query, kv, None, table, batch, scale=0.2)
    assert_close(result, expected)


def test_a_reused_workspace_changes_nothing(assert_close):
    kv, _ = make_pool(2, 16)
    workspace = Workspace()
    table = make_table([200, 3, 90])
    query = torch.randn(3, 4, 16)
    for rows, lens in (([1, 2, 3], [200, 3, 90]), ([2, 3], [2, 5]), ([1, 3], [150, 90])):
        batch = make_decode_batch(table, rows, lens, padding_slot=SLOTS)
        arguments = (query[: len(rows)], kv, None, table, batch)
        result = decode_attention(*arguments, scale=0.25, workspace=workspace)
        assert_close(result, decode_attention_reference(*arguments, scale=0.25))


def test_decode_equals_the_last_row_of_prefill(assert_close):
    kv, _ = make_pool(3, 8)
    table = make_table([41])
    query = torch.randn(41, 6, 8)
    prefill = make_prefill_batch(table, [1], [0], [41], dtype=torch.float32)
    decode = make_decode_batch(table, [1], [41], padding_slot=SLOTS)
    workspace = Workspace()
    rows = prefill_attention(query, kv, None, table, prefill, scale=0.3, workspace=workspace)
    last = decode_attention(query[-1:], kv, None, table, decode, scale=0.3, workspace=workspace)
    assert_close(last, rows[-1:])


def test_batches_refuse_empty_members():
    table = make_table([5])
    with pytest.raises(ValueError, match="length 0"):
        make_prefill_batch(table, [1], [3], [0], dtype=torch.float32)
    with pytest.raises(ValueError, match="no token"):
        make_decode_batch(table, [1], [0], padding_slot=SLOTS)


def test_attention_refuses_heads_that_do_not_divide():
    kv, _ = make_pool(2, 8)
    table = make_table([4])
    batch = make_decode_batch(table, [1], [4], padding_slot=SLOTS)
    with pytest.raises(ValueError, match="3 query heads are no multiple of 2 KV heads"):
        decode_attention(
            torch.randn(1, 3, 8), kv, None, table, batch, scale=1.0, workspace=Workspace()
        )
