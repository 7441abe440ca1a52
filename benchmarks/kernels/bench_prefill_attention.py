"""Prefill attention over scattered slots, beside torch's own attention over contiguous tensors.

    .venv/bin/python benchmarks/kernels/bench_prefill_attention.py

TFLOP/s counts two products of the pairs of query and key that see each other.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accuracy import require_close
from device_time import median_ms
from measure import row_of, test_and_print
from sdpa_peers import sdpa_ms
from torch.nn.attention.bias import causal_lower_right

from lightllm_kernels.attention_batch import make_prefill_batch
from lightllm_kernels.prefill_attention import prefill_attention, prefill_attention_reference
from lightllm_kernels.triton_launch import triton_everywhere
from lightllm_kernels.workspace import Workspace
from lightllm_kernels.write_kv import quantise


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Equal chunks of `length` tokens after `start` cached ones."""

    name: str
    chunks: int
    start: int
    length: int
    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        pairs = self.length * self.start + self.length * (self.length + 1) // 2
        return 4 * self.dim * self.heads * self.chunks * pairs


_LLAMA_3 = {"heads": 32, "kv_heads": 8, "dim": 128, "dtype": torch.bfloat16}
_LLAMA = {"heads": 32, "kv_heads": 32, "dim": 128, "dtype": torch.float16}
_SMALL = {"heads": 12, "kv_heads": 4, "dim": 64, "dtype": torch.float32}
GPU_CASES = (
    Case(name="8B, 16 prompts of 512", chunks=16, start=0, length=512, **_LLAMA_3),
    Case(name="8B, 4 prompts of 2k", chunks=4, start=0, length=2048, **_LLAMA_3),
    Case(name="8B, a prompt of 8k", chunks=1, start=0, length=8192, **_LLAMA_3),
    Case(name="8B, a prompt of 32k", chunks=1, start=0, length=32768, **_LLAMA_3),
    Case(name="8B, 8k after 24k", chunks=1, start=24576, length=8192, **_LLAMA_3),
    Case(name="7B, 4 prompts of 2k", chunks=4, start=0, length=2048, **_LLAMA),
    Case(name="7B, 2k after 2k", chunks=1, start=2048, length=2048, **_LLAMA),
    Case(name="D 64, 4 prompts of 2k", chunks=4, start=0, length=2048, **{**_LLAMA, "dim": 64}),
)
CPU_CASES = (
    Case(name="125M, 2 prompts of 256", chunks=2, start=0, length=256, **_SMALL),
    Case(name="125M, 256 after 200", chunks=1, start=200, length=256, **_SMALL),
)
_TINY = {"heads": 2, "kv_heads": 1, "dim": 16, "dtype": torch.float32}
TINY_CASES = (
    Case(name="tiny, 2 prompts of 9", chunks=2, start=0, length=9, **_TINY),
    Case(name="tiny, 5 after 70", chunks=1, start=70, length=5, **_TINY),
)


class Setup:
    """A pool, a request table in no order, and a query."""

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.device, context = case, device, case.start + case.length
        slots = case.chunks * context
        self.table = torch.randperm(slots, dtype=torch.int32).view(case.chunks, -1).to(device)
        shape = (slots + 1, 2 * case.kv_heads, case.dim)
        self.kv = torch.randn(shape, device=device).to(case.dtype)
        self.int8_kv = quantise(self.kv)
        shape = (case.chunks * case.length, case.heads, case.dim)
        self.query = torch.randn(shape, device=device).to(case.dtype)
        self.out = torch.empty_like(self.query)
        self.workspace = Workspace(device)
        self.batch = self.make_batch(list(range(case.chunks)))

    def make_batch(self, rows: list[int]) -> Any:
        starts, lens = [self.case.start] * len(rows), [self.case.length] * len(rows)
        return make_prefill_batch(self.table, rows, starts, lens, dtype=self.case.dtype)

    def ours(self, int8: bool) -> None:
        kv, scales = self.int8_kv if int8 else (self.kv, None)
        prefill_attention(
            self.query,
            kv,
            scales,
            self.table,
            self.batch,
            scale=self.case.dim**-0.5,
            workspace=self.workspace,
            out=self.out,
        )

    def check(self, int8: bool) -> None:
        """Refuse to time what is wrong: the last chunk, up to 4 heads (the reference is slow)."""
        self.ours(int8)
        case, (kv, scales) = self.case, self.int8_kv if int8 else (self.kv, None)
        groups = min(case.kv_heads, 2)
        heads = groups * case.heads // case.kv_heads
        # key and value heads of the first groups
        chosen = torch.arange(2 * case.kv_heads, device=self.device).view(2, -1)[:, :groups]
        chosen = chosen.reshape(-1)
        expected = prefill_attention_reference(
            self.query[-case.length :, :heads],
            kv[:, chosen],
            None if scales is None else scales[:, chosen],
            self.table,
            self.make_batch([case.chunks - 1]),
            scale=case.dim**-0.5,
        )
        require_close(self.out[-case.length :, :heads], expected, case.dtype)

    def peers_ms(self, repeats: int) -> dict[str, float]:
        case = self.case
        states = self.kv[:-1].view(case.chunks, -1, 2, case.kv_heads, case.dim)
        key, value = (states[:, :, i].transpose(1, 2).contiguous() for i in range(2))
        query = self.query.view(case.chunks, case.length, -1, case.dim).transpose(1, 2)
        masks: dict[str, Any] = {"causal": True}
        if case.start:
            masks = {"mask": causal_lower_right(case.length, case.start + case.length)}
        return sdpa_ms(query.contiguous(), [(key, value)], **masks, repeats=repeats)


def run(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """One row per case: ms for us and each peer, ratio = the best peer's ms / ours, our TFLOP/s.
    `tiny`: only to see that it runs, also interpreted.
    """
    cases = TINY_CASES if tiny else GPU_CASES if device.type == "cuda" else CPU_CASES
    repeats = 1 if tiny else 20
    with torch.inference_mode(), triton_everywhere() if tiny else nullcontext():
        return [row_of(case.name, partial(_measure, case, device, repeats)) for case in cases]


def _measure(case: Case, device: torch.device, repeats: int) -> dict[str, Any]:
    setup = Setup(case, device)
    setup.check(int8=False)
    setup.check(int8=True)
    ours = median_ms(lambda: setup.ours(False), device, repeats=repeats)
    int8 = median_ms(lambda: setup.ours(True), device, repeats=repeats)
    peers = setup.peers_ms(repeats)
    return {
        "ours_ms": ours,
        "int8_ms": int8,
        "peers_ms": peers,
        "ratio": min(peers.values()) / ours if peers else None,
        "tflop_per_s": case.flops / ours / 1e9,
    }


def line(row: dict[str, Any]) -> str:
    peers = "  ".join(f"{name} {ms:.3f}" for name, ms in row["peers_ms"].items())
    return (
        f"{row['name']:24s} ours {row['ours_ms']:8.3f} ms  {row['tflop_per_s']:6.1f} TFLOP/s  "
        f"int8 KV {row['int8_ms']:8.3f} ms  {peers}"
    )


if __name__ == "__main__":
    test_and_print(run, line)
