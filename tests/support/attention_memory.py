"""Memory that attention over a full pool takes, measured: what the KV pool's size reckons with.

    python attention_memory.py

prints bytes per KV dtype of a decode step as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from lightllm_kernels.attention_batch import (
    DecodeBatch,
    PrefillBatch,
    make_decode_batch,
    make_prefill_batch,
)
from lightllm_kernels.decode_attention import decode_attention
from lightllm_kernels.prefill_attention import prefill_attention
from lightllm_kernels.workspace import Workspace
from lightllm_server.engine.host_memory import PeakMemory

__all__ = ["DIM", "DTYPES", "GROUPS", "HEADS", "NUM_SLOTS", "Attention"]

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


def decode_bytes(kv_dtype: torch.dtype) -> int:
    """What the largest decode step adds to the process's memory."""
    attention = Attention(kv_dtype)
    # what the first call of all takes is no matter of tokens
    attention.decode([5, 4])
    memory = PeakMemory()
    attention.decode(LENS)
    return memory.growth()


if __name__ == "__main__":
    print(json.dumps({str(kv_dtype): decode_bytes(kv_dtype) for kv_dtype in DTYPES}))
