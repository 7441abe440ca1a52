"""The pool is sized with the memory that a step over a full pool takes, as measured on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import attention_memory
from attention_memory import DIM, DTYPES, GROUPS, HEADS, NUM_SLOTS, Attention
from lightllm_kernels.cpu_decode_attention import decode_bytes_per_token
from lightllm_kernels.prefill_attention import prefill_bytes_per_position
from lightllm_server.engine import profile
from lightllm_server.engine.host_memory import HostMemory
from lightllm_server.engine.runner import ModelRunner
from tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def grown() -> dict[str, int]:
    """Bytes per dtype. In a process of its own, whose allocator keeps nothing that was freed."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, attention_memory.__file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("kv_dtype", DTYPES, ids=str)
def test_decoding_takes_what_a_slot_is_said_to_cost(
    kv_dtype: torch.dtype, grown: dict[str, int]
) -> None:
    said = decode_bytes_per_token(HEADS, GROUPS, DIM, kv_dtype)
    assert 0.5 * said <= grown[str(kv_dtype)] / NUM_SLOTS <= 1.1 * said


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
