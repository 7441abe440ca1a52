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
from lightllm_kernels.cpu_prefill_attention import prefill_bytes_per_position
from lightllm_server.engine import profile
from lightllm_server.engine.host_memory import HostMemory
from lightllm_server.engine.probe_plans import largest_plan
from lightllm_server.engine.runner import ModelRunner
from lightllm_server.engine.sampler import Sampled, Sampler
from lightllm_server.router.step_plan import StepPlan
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


@pytest.mark.parametrize(
    ("tokens", "num_rows", "chunks", "decodes"),
    [
        (256, 16, 1, 15),
        # chunks take all rows
        (5000, 3, 3, 0),
        # fewer tokens than rows
        (16, 100, 1, 15),
        (2500, 100, 3, 97),
        (256, 1, 1, 0),
    ],
)
def test_the_largest_step_has_every_row_and_samples_it(
    make_runner: Callable[..., ModelRunner], tokens: int, num_rows: int, chunks: int, decodes: int
) -> None:
    shard = make_runner(tiny_llama(), running_max_req_size=num_rows)._shard
    plan = largest_plan(shard, tokens)
    assert plan.num_tokens == min(tokens, num_rows * 1024)
    assert (len(plan.chunk_rows), len(plan.decode_rows)) == (chunks, decodes)
    assert plan.decode_positions[:2].tolist() == [4095, 0][:decodes]
    assert plan.sample_rows.tolist() == list(range(chunks + decodes))
    ends = [*(plan.chunk_lens.cumsum() - 1), *range(plan.num_tokens - decodes, plan.num_tokens)]
    assert plan.sample_token_index.tolist() == ends
    assert all(start.sampling.has_penalties for start in plan.starts)


def test_a_gpus_largest_step_is_measured_with_its_sampling(
    make_runner: Callable[..., ModelRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, with the allocator's figures made up: 900 at most, of which 300 stay."""
    runner = make_runner(tiny_llama())
    order: list[str] = []
    for name, value in (
        ("reset_peak_memory_stats", None),
        ("synchronize", None),
        ("memory_allocated", 300),
        ("max_memory_allocated", 900),
    ):
        monkeypatch.setattr(
            torch.cuda, name, lambda _, name=name, value=value: order.append(name) or value
        )
    sample = Sampler.sample

    def sampled(sampler: Sampler, logits: torch.Tensor, plan: StepPlan) -> Sampled:
        order.append(f"sample {len(logits)}")
        return sample(sampler, logits, plan)

    monkeypatch.setattr(Sampler, "sample", sampled)
    with torch.inference_mode():
        measured = profile._measure_cuda(runner._config, runner._shard)
    assert (measured.batch_tokens, measured.step_bytes) == (256, 600)
    assert order == [
        "reset_peak_memory_stats",
        "sample 16",
        "synchronize",
        "memory_allocated",
        "max_memory_allocated",
    ]


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
