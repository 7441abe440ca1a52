"""The Triton kernels of prefill and decode attention against their references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightllm_kernels import decode_attention as decode_module
from lightllm_kernels.attention_batch import DecodeBatch, make_decode_batch, make_prefill_batch
from lightllm_kernels.attention_configs import AttentionConfig, every_lookup_gives
from lightllm_kernels.attention_options import AttentionOptions
from lightllm_kernels.decode_attention import decode_attention, decode_attention_reference
from lightllm_kernels.decode_splits import choose_num_splits
from lightllm_kernels.prefill_attention import prefill_attention, prefill_attention_reference
from lightllm_kernels.triton_launch import triton_everywhere
from lightllm_kernels.workspace import Workspace
from lightllm_kernels.write_kv import quantise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS = 700
# (query heads, KV heads, head dim): each GQA group and head dim once
HEADS = ((2, 2, 64), (6, 2, 24), (5, 1, 96), (8, 1, 16), (2, 1, 256))
DTYPES = (
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
)
OPTIONS = {
    "alibi": {"alibi": True},
    "window": {"window": 20},
    "window of one": {"window": 1},
    "soft cap": {"soft_cap": 1.5},
    "all": {"alibi": True, "window": 37, "soft_cap": 2.0},
}


@pytest.fixture
def small_blocks():
    """Blocks smaller than the contexts of these tests, so that loops go round."""
    with every_lookup_gives(AttentionConfig(block_m=16, block_n=16, num_warps=4, num_stages=2)):
        yield


def make_options(heads, *, alibi=False, **others):
    slopes = torch.linspace(0.01, 0.3, heads, device=DEVICE) if alibi else None
    return AttentionOptions(alibi_slopes=slopes, **others)


def make_pool(kv_heads, dim, dtype, *, int8=False):
    """A pool of random contents whose slot 0, which no row of a table uses, is not finite."""
    kv = torch.randn(SLOTS + 1, 2 * kv_heads, dim, device=DEVICE).to(dtype)
    if int8:
        kv, scales = quantise(kv)
        scales[0] = float("nan")
        return kv, scales
    kv[0] = float("nan")
    return kv, None


def make_table(lens):
    """A request table whose rows own disjoint random slots; the rest points far outside."""
    table = torch.full((len(lens) + 2, max(lens) + 3), 2**30, dtype=torch.int32)
    slots, begin = torch.randperm(SLOTS, dtype=torch.int32) + 1, 0
    for row, length in enumerate(lens):
        table[row + 1, :length] = slots[begin : begin + length]
        begin += length
    return table.to(DEVICE)


def make_query(tokens, heads, kv_heads, dim, dtype):
    """The query heads of a QKV product: not contiguous."""
    return torch.randn(tokens, heads + 2 * kv_heads, dim, device=DEVICE).to(dtype)[:, :heads]


def check_decode(lens, heads, dtype, assert_close, *, int8=False, splits=None, options=None):
    query_heads, kv_heads, dim = heads
    kv, scales = make_pool(kv_heads, dim, dtype, int8=int8)
    table = make_table(lens)
    batch = make_decode_batch(table, range(1, len(lens) + 1), lens, padding_slot=SLOTS)
    query = make_query(len(lens), *heads, dtype)
    out = torch.empty(len(lens), query_heads, dim, dtype=dtype, device=DEVICE)
    given = (query, kv, scales, table, replace(batch, num_splits=splits))
    options = make_options(query_heads, **(options or {}))
    with triton_everywhere():
        result = decode_attention(
            *given, scale=dim**-0.5, workspace=Workspace(DEVICE), out=out, options=options
        )
    assert result is out
    assert_close(out, decode_attention_reference(*given, scale=dim**-0.5, options=options))


def check_prefill(starts, lens, heads, dtype, assert_close, *, int8=False, options=None):
    query_heads, kv_heads, dim = heads
    kv, scales = make_pool(kv_heads, dim, dtype, int8=int8)
    table = make_table([s + n for s, n in zip(starts, lens, strict=True)])
    batch = make_prefill_batch(table, range(1, len(lens) + 1), starts, lens, dtype=dtype)
    query = make_query(sum(lens), *heads, dtype)
    out = torch.empty(sum(lens), query_heads, dim, dtype=dtype, device=DEVICE)
    given = (query, kv, scales, table, batch)
    options = make_options(query_heads, **(options or {}))
    with triton_everywhere():
        result = prefill_attention(
            *given, scale=dim**-0.5, workspace=Workspace(DEVICE), out=out, options=options
        )
    assert result is out
    assert_close(out, prefill_attention_reference(*given, scale=dim**-0.5, options=options))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decode(heads, dtype, int8, assert_close):
    check_decode([1, 63, 7, 123], heads, dtype, assert_close, int8=int8, splits=2)


@pytest.mark.parametrize("splits", range(1, 9))
@pytest.mark.parametrize("int8", [False, True])
def test_decode_in_splits(splits, int8, small_blocks, assert_close):
    # from one block for all splits to several for each; the last one not whole
    lens = [1, 33, 123]
    check_decode(lens, (3, 1, 16), torch.float32, assert_close, int8=int8, splits=splits)


@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize("name", OPTIONS)
def test_decode_with_options(name, splits, small_blocks, assert_close):
    lens = [1, 20, 21, 150]
    heads, options = (3, 1, 16), OPTIONS[name]
    check_decode(lens, heads, torch.float32, assert_close, splits=splits, options=options)


@pytest.mark.parametrize("heads", [(71, 1, 16), (40, 1, 256)], ids=str)
def test_decode_of_more_query_heads_than_a_program_takes(heads, assert_close):
    check_decode([40, 9], heads, torch.float32, assert_close, splits=1)


def test_decode_chooses_the_splits_itself(monkeypatch, small_blocks, assert_close):
    monkeypatch.setattr(decode_module, "num_multiprocessors", lambda device: 6)
    check_decode([300, 1, 77], (4, 2, 16), torch.float32, assert_close)


def test_a_short_row_is_not_cut_into_splits_of_one_block(small_blocks, assert_close):
    kv, _ = make_pool(2, 16, torch.float32)
    lens = [128, 33, 16, 1, 300]
    table = make_table(lens)
    batch = make_decode_batch(table, [1, 2, 3, 4, 5], lens, padding_slot=SLOTS)
    batch, workspace = replace(batch, num_splits=8), Workspace(DEVICE)
    given = (make_query(5, 4, 2, 16, torch.float32), kv, None, table, batch)
    # a split that a row does not take is left as it was
    workspace.take("decode_split_lse", (5, 4, 8), torch.float32).fill_(float("nan"))
    with triton_everywhere():
        result = decode_attention(*given, scale=0.2, workspace=workspace)
    written = ~workspace.take("decode_split_lse", (5, 4, 8), torch.float32).isnan()
    # blocks of 16: two or more to a split
    assert written[:, 0].sum(-1).tolist() == [4, 2, 1, 1, 7]
    assert_close(result, decode_attention_reference(*given, scale=0.2))


@pytest.mark.parametrize("splits", [1, 4])
def test_rows_without_tokens_get_zeros_and_change_nothing(splits, small_blocks, assert_close):
    kv, _ = make_pool(2, 16, torch.float32)
    table = make_table([50, 90])
    rows = torch.tensor([1, 0, 2, 3], dtype=torch.int32, device=DEVICE)
    seq_lens = torch.tensor([50, 0, 90, 0], dtype=torch.int32, device=DEVICE)
    query = make_query(4, 4, 2, 16, torch.float32)
    batch = DecodeBatch(rows, seq_lens, (700,) * 4, SLOTS, splits)
    with triton_everywhere():
        result = decode_attention(
            query, kv, None, table, batch, scale=0.2, workspace=Workspace(DEVICE)
        )
    assert not result[1].any()
    assert not result[3].any()
    assert_close(result, decode_attention_reference(query, kv, None, table, batch, scale=0.2))


def test_a_batch_on_the_device_may_change_between_launches(small_blocks, assert_close):
    kv, _ = make_pool(2, 16, torch.float32)
    table = make_table([50, 90, 300])
    batch = DecodeBatch(
        torch.zeros(2, dtype=torch.int32, device=DEVICE),
        torch.zeros(2, dtype=torch.int32, device=DEVICE),
        (700, 700),
        SLOTS,
        5,
    )
    workspace, query = Workspace(DEVICE), make_query(2, 4, 2, 16, torch.float32)
    for rows, lens in (([1, 2], [50, 90]), ([3, 1], [299, 3]), ([2, 0], [17, 0])):
        batch.rows.copy_(torch.tensor(rows))
        batch.seq_lens.copy_(torch.tensor(lens))
        given = (query, kv, None, table, batch)
        with triton_everywhere():
            result = decode_attention(*given, scale=0.2, workspace=workspace)
        assert_close(result, decode_attention_reference(*given, scale=0.2))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_prefill(heads, dtype, int8, assert_close):
    # a whole prompt, one token after a prefix, a chunk after a prefix
    check_prefill([0, 9, 100], [123, 1, 63], heads, dtype, assert_close, int8=int8)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("start", [0, 1, 16, 50])
def test_prefill_block_by_block(start, int8, small_blocks, assert_close):
    lens = [1, 15, 16, 17, 35]
    starts = [start, 0, start, 3, start]
    check_prefill(starts, lens, (2, 1, 16), torch.float32, assert_close, int8=int8)


@pytest.mark.parametrize("lens", [[1] * 9, [40, 1, 1, 16, 32, 5, 17], [16, 16, 15]], ids=str)
def test_prefill_of_many_chunks(lens, small_blocks, assert_close):
    starts = [index * 7 % 20 for index in range(len(lens))]
    check_prefill(starts, lens, (1, 1, 16), torch.float32, assert_close)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_prefill_with_options(name, int8, small_blocks, assert_close):
    starts, lens = [0, 45, 21], [40, 20, 1]
    heads, options = (2, 1, 16), OPTIONS[name]
    check_prefill(starts, lens, heads, torch.float32, assert_close, int8=int8, options=options)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_cpu_forms_take_options_too(name, assert_close):
    kv, _ = make_pool(2, 16, torch.float32)
    table = make_table([60, 33])
    options, query = make_options(4, **OPTIONS[name]), make_query(60, 4, 2, 16, torch.float32)

    def attend(device):
        own = options.alibi_slopes
        moved = replace(options, alibi_slopes=None if own is None else own.to(device))
        tensors, slots = (kv.to(device), None), table.to(device)
        decode = make_decode_batch(slots, [1, 2], [60, 33], padding_slot=SLOTS)
        prefill = make_prefill_batch(slots, [1], [0], [60], dtype=torch.float32)
        given = {"scale": 0.2, "workspace": Workspace(device), "options": moved}
        states = query.to(device)
        return (
            decode_attention(states[-2:], *tensors, slots, decode, **given).cpu(),
            prefill_attention(states, *tensors, slots, prefill, **given).cpu(),
        )

    on_cpu = attend("cpu")
    with triton_everywhere():
        for ours, theirs in zip(on_cpu, attend(DEVICE), strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize("size", [1.0, 3e-4, 6e4])
def test_int8_values_of_any_size_keep_float16_accuracy(size, assert_close):
    lens, heads = [600], (4, 1, 16)
    kv, _ = make_pool(1, 16, torch.float32)
    kv, scales = quantise(kv / kv[1:].abs().amax() * torch.tensor([[1.0], [size]], device=DEVICE))
    table = make_table(lens)
    batch = make_decode_batch(table, [1], lens, padding_slot=SLOTS)
    given = (make_query(1, *heads, torch.float16), kv, scales, table, batch)
    with triton_everywhere():
        result = decode_attention(*given, scale=0.2, workspace=Workspace(DEVICE))
    expected = decode_attention_reference(*given, scale=0.2)
    assert_close(result.float() / size, expected.float() / size, rtol=2e-3, atol=1e-3)


def test_batches_off_the_cpu_read_nothing_on_the_host():
    table = torch.empty(4, 50, dtype=torch.int32, device="meta")
    prefill = make_prefill_batch(table, [1, 2], [0, 9], [5, 1], dtype=torch.float16)
    assert prefill.chunks == ()
    assert prefill.num_tokens == 6
    shapes = [t.shape[0] for t in (prefill.rows, prefill.starts, prefill.lens, prefill.start_locs)]
    assert shapes == [2, 2, 2, 3]
    decode = make_decode_batch(table, [1, 2], [4, 9], padding_slot=SLOTS)
    assert decode.rows.device == decode.seq_lens.device == table.device
    assert (decode.num_tokens, decode.max_len) == (2, 9)


@pytest.mark.parametrize(
    ("rows", "kv_heads", "max_len", "splits"),
    [
        (1, 8, 100, 1),
        (1, 8, 1000, 8),
        (1, 8, 32768, 66),
        (1, 1, 1 << 20, 128),
        (32, 8, 2048, 3),
        (256, 8, 2048, 1),
        (256, 8, 8192, 4),
        (256, 8, 1 << 20, 16),
        (0, 8, 0, 1),
    ],
)
def test_the_number_of_splits(rows, kv_heads, max_len, splits):
    assert choose_num_splits(rows, kv_heads, max_len, multiprocessors=132) == splits
