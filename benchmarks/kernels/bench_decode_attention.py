"""Decode attention over scattered slots, several layers, beside torch's own attention.

    .venv/bin/python benchmarks/kernels/bench_decode_attention.py

On a GPU the peers are SDPA's backends over contiguous keys and values, on the CPU a padded gather
and SDPA, and the reference. GB/s counts keys and values read; a copy's GB/s what it reads and
writes. "Ours" is the launch of steps that only decode: recorded before the lengths are known, it
splits contexts for the longest request. That of other steps, which know them, is beside it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accuracy import require_close
from device_time import copy_gb_per_s, median_ms
from measure import row_of, test_and_print
from sdpa_peers import sdpa_ms
from torch.nn import functional

from lightllm_kernels.attention_batch import DecodeBatch, make_decode_batch
from lightllm_kernels.decode_attention import decode_attention, decode_attention_reference
from lightllm_kernels.triton_launch import runs_triton, triton_everywhere
from lightllm_kernels.workspace import Workspace
from lightllm_kernels.write_kv import quantise


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Rows of `shortest` to `longest` tokens; all layers together exceed the caches.

    max_request_len: of the server, the model's own if nothing else is said.
    """

    name: str
    rows: int
    shortest: int
    longest: int
    max_request_len: int
    heads: int
    kv_heads: int
    dim: int
    layers: int
    dtype: torch.dtype

    def num_bytes(self, lens: list[int]) -> int:
        return sum(lens) * 2 * self.kv_heads * self.dim * self.dtype.itemsize * self.layers


_LLAMA_3 = {
    "heads": 32,
    "kv_heads": 8,
    "dim": 128,
    "dtype": torch.bfloat16,
    "max_request_len": 8192,
}
_LONG = {**_LLAMA_3, "max_request_len": 36864}
_LLAMA = {
    "heads": 32,
    "kv_heads": 32,
    "dim": 128,
    "dtype": torch.float16,
    "max_request_len": 2048,
}
_SMALL = {
    "heads": 12,
    "kv_heads": 4,
    "dim": 64,
    "dtype": torch.float32,
    "layers": 12,
    "max_request_len": 2048,
}
GPU_CASES = (
    Case(name="8B, 1 row of 2k", rows=1, shortest=2048, longest=2048, layers=32, **_LLAMA_3),
    Case(name="8B, 1 row of 32k", rows=1, shortest=32768, longest=32768, layers=8, **_LONG),
    Case(name="8B, 32 rows of 2k", rows=32, shortest=2048, longest=2048, layers=4, **_LLAMA_3),
    Case(name="8B, 256 rows of 1k", rows=256, shortest=1024, longest=1024, layers=2, **_LLAMA_3),
    Case(name="8B, 256 rows of 16-2k", rows=256, shortest=16, longest=2048, layers=2, **_LLAMA_3),
    Case(name="7B, 32 rows of 2k", rows=32, shortest=2048, longest=2048, layers=2, **_LLAMA),
    Case(name="7B, 128 rows of 16-1k", rows=128, shortest=16, longest=1024, layers=2, **_LLAMA),
)
CPU_CASES = (
    Case(name="125M, 16 rows of 80-330", rows=16, shortest=80, longest=330, **_SMALL),
    Case(name="125M, 16 rows of 1500", rows=16, shortest=1500, longest=1500, **_SMALL),
    Case(name="125M, 1 row of 200", rows=1, shortest=200, longest=200, **_SMALL),
)
_TINY = {
    "heads": 2,
    "kv_heads": 1,
    "dim": 16,
    "layers": 1,
    "dtype": torch.float32,
    "max_request_len": 700,
}
TINY_CASES = (
    Case(name="tiny, 2 rows of 9", rows=2, shortest=9, longest=9, **_TINY),
    Case(name="tiny, 3 rows of 1-70", rows=3, shortest=1, longest=70, **_TINY),
)


class Setup:
    """Pools, a request table in no order, and a query."""

    def __init__(self, case: Case, device: torch.device) -> None:
        rng = random.Random(0)
        torch.manual_seed(0)
        self.case, self.device = case, device
        self.lens = [rng.randint(case.shortest, case.longest) for _ in range(case.rows)]
        slots = case.rows * case.longest
        self.table = torch.randperm(slots, dtype=torch.int32).view(case.rows, -1).to(device)
        shape = (slots + 1, 2 * case.kv_heads, case.dim)
        self.kv = [torch.randn(shape, device=device).to(case.dtype) for _ in range(case.layers)]
        self.int8_kv = [quantise(kv) for kv in self.kv]
        self.query = torch.randn(case.rows, case.heads, case.dim, device=device).to(case.dtype)
        self.out = torch.empty_like(self.query)
        self.workspace = Workspace(device)
        self.scale = case.dim**-0.5
        self.batch = self.make_batch()
        # as the engine's recorded steps
        bound = (case.max_request_len,) * case.rows
        self.recorded = DecodeBatch(self.batch.rows, self.batch.seq_lens, bound, slots)

    def make_batch(self) -> DecodeBatch:
        slots = self.table.numel()
        return make_decode_batch(self.table, range(self.case.rows), self.lens, padding_slot=slots)

    def ours(self, int8: bool, *, knows_lens: bool = False) -> None:
        """What a step does; on the CPU the index work of its first layer included."""
        batch = self.batch if knows_lens else self.recorded
        if not runs_triton(self.query):
            # nothing is recorded there
            batch = self.make_batch()
        for layer in range(self.case.layers):
            kv, scales = self.int8_kv[layer] if int8 else (self.kv[layer], None)
            decode_attention(
                self.query,
                kv,
                scales,
                self.table,
                batch,
                scale=self.scale,
                workspace=self.workspace,
                out=self.out,
            )

    def check(self, int8: bool, *, knows_lens: bool = False) -> None:
        """Refuse to time what is wrong."""
        self.out.fill_(float("nan"))
        self.ours(int8, knows_lens=knows_lens)
        kv, scales = self.int8_kv[-1] if int8 else (self.kv[-1], None)
        expected = decode_attention_reference(
            self.query, kv, scales, self.table, self.batch, scale=self.scale
        )
        require_close(self.out, expected, self.case.dtype)

    def gather_and_sdpa(self) -> None:
        """Padded gather into a kept workspace, then SDPA with the GQA group as query rows."""
        case, length = self.case, max(self.lens)
        lens = torch.tensor(self.lens).unsqueeze(1)
        padding = torch.arange(length) >= lens
        slots = self.table[:, :length].long().masked_fill(padding, self.table.numel()).view(-1)
        shape = (case.rows * length, 2 * case.kv_heads, case.dim)
        for kv in self.kv:
            states = self.workspace.take("states", shape, kv.dtype)
            torch.index_select(kv, 0, slots, out=states)
            key, value = states.view(case.rows, length, -1, case.dim).transpose(1, 2).chunk(2, 1)
            query = self.query.view(case.rows, case.kv_heads, -1, case.dim)
            visible = ~padding.view(case.rows, 1, 1, -1)
            functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)

    def reference(self) -> None:
        for kv in self.kv:
            decode_attention_reference(
                self.query, kv, None, self.table, self.batch, scale=self.scale
            )

    def dense_layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The same pools read as contiguous keys and values of equal rows."""
        case = self.case
        halves = [kv[:-1].view(case.rows, case.longest, 2, -1, case.dim) for kv in self.kv]
        return [
            (half[:, :, 0].transpose(1, 2).contiguous(), half[:, :, 1].transpose(1, 2).contiguous())
            for half in halves
        ]


def _peers_ms(setup: Setup, repeats: int) -> dict[str, float]:
    peers = {}
    if setup.device.type == "cpu":
        forms: dict[str, Callable[[], None]] = {
            "gather + SDPA": setup.gather_and_sdpa,
            "reference": setup.reference,
        }
        peers = {name: median_ms(f, setup.device, repeats=repeats) for name, f in forms.items()}
    if setup.case.shortest == setup.case.longest:
        query = setup.query.unsqueeze(2)
        peers |= sdpa_ms(query, setup.dense_layers(), repeats=repeats)
    return peers


def run(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """One row per case: ms of all layers for us and each peer, known_lens_ms as in steps that know
    the lengths, ratio = the best peer's ms / ours, our GB/s and the copy's of this run. `tiny`:
    only to see that it runs, also interpreted.
    """
    cases = TINY_CASES if tiny else GPU_CASES if device.type == "cuda" else CPU_CASES
    repeats = 1 if tiny else 30
    copy = copy_gb_per_s(device, num_bytes=2**12 if tiny else 2**30, repeats=repeats)
    with torch.inference_mode(), triton_everywhere() if tiny else nullcontext():
        return [row_of(case.name, partial(_measure, case, device, repeats, copy)) for case in cases]


def _measure(case: Case, device: torch.device, repeats: int, copy: float) -> dict[str, Any]:
    setup = Setup(case, device)
    for int8_kv in (False, True):
        setup.check(int8_kv)
        setup.check(int8_kv, knows_lens=True)
    ours = median_ms(lambda: setup.ours(False), device, repeats=repeats)
    known_lens = median_ms(lambda: setup.ours(False, knows_lens=True), device, repeats=repeats)
    int8 = median_ms(lambda: setup.ours(True), device, repeats=repeats)
    peers = _peers_ms(setup, repeats)
    gb_per_s = case.num_bytes(setup.lens) / ours / 1e6
    return {
        "ours_ms": ours,
        "known_lens_ms": known_lens,
        "int8_ms": int8,
        "peers_ms": peers,
        "ratio": min(peers.values()) / ours if peers else None,
        "int8_speedup": ours / int8,
        "gb_per_s": gb_per_s,
        "copy_gb_per_s": copy,
        "of_copy": gb_per_s / copy,
    }


def line(row: dict[str, Any]) -> str:
    peers = "  ".join(f"{name} {ms:.3f}" for name, ms in row["peers_ms"].items())
    return (
        f"{row['name']:24s} ours {row['ours_ms']:8.3f} ms  {row['gb_per_s']:7.1f} GB/s = "
        f"{row['of_copy']:.0%} of a copy's  lengths known {row['known_lens_ms']:8.3f} ms  "
        f"int8 KV {row['int8_ms']:8.3f} ms  {peers}"
    )


if __name__ == "__main__":
    test_and_print(run, line)
