"""The pool is sized with the memory that a step over a full pool takes, as measured on one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lightllm_kernels.attention_batch import (
    DecodeBatch,
    PrefillBatch,
    make_decode_batch,
    make_prefill_batch,
)
from lightllm_kernels.decode_attention import decode_attention, decode_bytes_per_token
from lightllm_kernels.prefill_attention import prefill_attention, prefill_bytes_per_position
from lightllm_kernels.workspace import Workspace
from lightllm_server.engine import profile
from lightllm_server.engine.host_memory import HostMemory, PeakMemory
from lightllm_server.engine.runner import ModelRunner
from tiny_llama import tiny_llama

HEADS, GROUPS, DIM = 32, 8, 64
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
# lengths of requests, so that some are padded
LENS = [1024 - i for i in range(16)]
NUM_SLOTS = sum(LENS)


class Attention:
    """A full pool of one layer, every slot held by one of the requests."""

    def __init__(self, kv_dtype: torch.dtype) -> None:
        self.dtype = torch.float32 if kv_dtype == torch.int8 else kv_dtype
        self.kv = torch.ones(NUM_SLOTS + 1, 2 * GROUPS, DIM, dtype=kv_dtype)
        self.scales = None
        if kv_dtype == torch.int8:
            self.scales = torch.ones(NUM_SLOTS + 1, 2 * GROUPS, dtype=torch.float16)
        self.table = torch.zeros(len(LENS), max(LENS), dtype=torch.int32)
        for row, slots in enumerate(torch.arange(NUM_SLOTS, dtype=torch.int32).split(LENS)):
            self.table[row, : len(slots)] = slots
        self.workspace = Workspace()

    def run(self, attend: Callable[..., torch.Tensor], batch: DecodeBatch | PrefillBatch) -> None:
        query = torch.ones(batch.num_tokens, HEADS, DIM, dtype=self.dtype)
        with torch.inference_mode():
            attend(
                query,
                self.kv,
                self.scales,
                self.table,
                batch,
                scale=1.0,
                workspace=self.workspace,
            )

    def decode(self, lens: list[int]) -> None:
        rows = list(range(len(lens)))
        batch = make_decode_batch(self.table, rows, lens, padding_slot=NUM_SLOTS)
        self.run(decode_attention, batch)

    def prefill(self, length: int, context: int) -> None:
        start = context - length
        batch = make_prefill_batch(self.table, [0], [start], [length], dtype=self.dtype)
        self.run(prefill_attention, batch)


@pytest.mark.parametrize("kv_dtype", DTYPES, ids=str)
def test_decoding_takes_what_a_slot_is_said_to_cost(kv_dtype: torch.dtype) -> None:
    attention = Attention(kv_dtype)
    # what the first call of all takes is no matter of tokens
    attention.decode([5, 4])
    memory = PeakMemory()
    attention.decode(LENS)
    said = NUM_SLOTS * decode_bytes_per_token(HEADS, GROUPS, DIM, kv_dtype)
    grown = memory.growth()
    assert grown <= 1.1 * said, (grown / NUM_SLOTS, said / NUM_SLOTS)
    # small blocks may come from what the process has freed before
    assert grown >= 0.5 * said, (grown / NUM_SLOTS, said / NUM_SLOTS)


@pytest.mark.parametrize("kv_dtype", DTYPES, ids=str)
def test_prefill_takes_what_a_position_is_said_to_cost(kv_dtype: torch.dtype) -> None:
    attention = Attention(kv_dtype)
    attention.prefill(8, 16)
    said = prefill_bytes_per_position(512, GROUPS, DIM, kv_dtype, attention.dtype)
    taken = attention.workspace.num_bytes
    attention.prefill(512, 1024)
    # the masks are 512 wide; all else is kept
    kept = attention.workspace.num_bytes - taken
    assert kept == pytest.approx(1024 * (said - 512 * attention.dtype.itemsize), rel=0.1)


@pytest.mark.parametrize("kv_dtype", ["model", "int8"])
def test_memory_holds_the_slots_and_what_reads_them(
    make_runner: Callable[..., ModelRunner], monkeypatch: pytest.MonkeyPatch, kv_dtype: str
) -> None:
    total = 64 * 2**20
    monkeypatch.setattr(profile, "read_host_memory", lambda: HostMemory(total, 0))
    model = tiny_llama(max_position_embeddings=8192)
    options = {"max_total_token_num": None, "mem_fraction": 0.5, "running_max_req_size": 100}
    runner = make_runner(model, kv_dtype=kv_dtype, max_req_total_len=8192, **options)
    info, layout = runner.info(), runner._shard.layout
    # 4 query heads, 2 KV heads of 16 dims
    reading = decode_bytes_per_token(4, 2, 16, layout.dtype)
    prefill = (8192 - 2048) * prefill_bytes_per_position(
        info.batch_max_tokens, 2, 16, layout.dtype, torch.float32
    )
    taken = info.max_total_token_num * (info.kv_bytes_per_token + reading)
    assert taken + prefill <= 0.5 * total
    # the rest is the measured step
    assert taken > 0.25 * total
