"""Decode attention over scattered slots, all layers of a step, beside gather + SDPA.

    .venv/bin/python benchmarks/kernels/bench_decode_attention.py

Prints ms per step, and GB/s of keys and values read against what a copy reaches on this machine.
"""

from __future__ import annotations

import random

import torch
from measure import best_ms, copy_gb_per_s, require_passing
from torch.nn import functional

from lightllm_kernels.attention_batch import make_decode_batch
from lightllm_kernels.decode_attention import decode_attention, decode_attention_reference
from lightllm_kernels.workspace import Workspace
from lightllm_kernels.write_kv import quantise

LAYERS, HEADS, KV_HEADS, DIM, SLOTS = 12, 12, 4, 64, 32768
# name -> rows, shortest, longest
LENGTHS = {
    "16 rows of 80-330": (16, 80, 330),
    "16 rows of 1500": (16, 1500, 1500),
    "1 row of 200": (1, 200, 200),
}


class Setup:
    """Pools, a request table in no order, and a query."""

    def __init__(self, rows: int, shortest: int, longest: int) -> None:
        rng = random.Random(0)
        self.lens = [rng.randint(shortest, longest) for _ in range(rows)]
        self.table = torch.randperm(SLOTS, dtype=torch.int32).view(16, -1)
        self.query = torch.randn(rows, HEADS, DIM)
        self.kv = [torch.randn(SLOTS + 1, 2 * KV_HEADS, DIM) for _ in range(LAYERS)]
        self.quantised = [quantise(kv) for kv in self.kv]
        self.workspace = Workspace()
        longest_len = max(self.lens)
        slots = self.table[:rows, :longest_len].long()
        padding = torch.arange(longest_len) >= torch.tensor(self.lens).unsqueeze(1)
        self.padded = slots.masked_fill(padding, SLOTS).view(-1)
        self.visible = ~padding.view(rows, 1, 1, -1)

    def ours(self, int8: bool) -> None:
        """What a step does, the index work of its first layer included."""
        rows = list(range(len(self.lens)))
        batch = make_decode_batch(self.table, rows, self.lens, padding_slot=SLOTS)
        for layer in range(LAYERS):
            kv, scales = self.quantised[layer] if int8 else (self.kv[layer], None)
            decode_attention(
                self.query, kv, scales, self.table, batch, scale=0.125, workspace=self.workspace
            )

    def gather_and_sdpa(self) -> None:
        """Padded gather into a kept workspace, then SDPA with the GQA group as query rows."""
        rows, length = len(self.lens), max(self.lens)
        for kv in self.kv:
            states = self.workspace.take("states", (rows * length, 2 * KV_HEADS, DIM), kv.dtype)
            torch.index_select(kv, 0, self.padded, out=states)
            key, value = states.view(rows, length, -1, DIM).transpose(1, 2).chunk(2, 1)
            query = self.query.view(rows, KV_HEADS, -1, DIM)
            functional.scaled_dot_product_attention(query, key, value, attn_mask=self.visible)

    def reference(self) -> None:
        rows = list(range(len(self.lens)))
        batch = make_decode_batch(self.table, rows, self.lens, padding_slot=SLOTS)
        for kv in self.kv:
            decode_attention_reference(self.query, kv, None, self.table, batch, scale=0.125)


def main() -> None:
    require_passing("test_attention.py")
    print(f"{torch.get_num_threads()} threads; a copy moves {copy_gb_per_s():.1f} GB/s")
    with torch.inference_mode():
        for name, shape in LENGTHS.items():
            setup = Setup(*shape)
            num_bytes = sum(setup.lens) * 2 * KV_HEADS * DIM * 4 * LAYERS
            for label, function, size in (
                ("ours, float32", lambda s=setup: s.ours(False), num_bytes),
                ("ours, int8 KV", lambda s=setup: s.ours(True), num_bytes / 4),
                ("gather + SDPA", setup.gather_and_sdpa, num_bytes),
                ("reference", setup.reference, num_bytes),
            ):
                ms = best_ms(function, 1.5)
                print(
                    f"{name:20s} {label:14s} {ms:8.2f} ms  {size / ms / 1e6:6.2f} GB/s", flush=True
                )


if __name__ == "__main__":
    main()
