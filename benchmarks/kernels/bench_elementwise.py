"""Rotary, gated activations and the KV write beside eager torch and the references.

    .venv/bin/python benchmarks/kernels/bench_elementwise.py

Without a GPU it runs every call once at tiny shapes and prints no figure.
"""

from __future__ import annotations

from typing import Any

import torch
from device_table import DeviceTable, test_and_run
from torch.nn import functional

from lightllm_kernels.gated_activation import (
    gelu_and_mul,
    gelu_and_mul_reference,
    silu_and_mul,
    silu_and_mul_reference,
)
from lightllm_kernels.rotary_embedding import rotary_embedding, rotary_embedding_reference
from lightllm_kernels.write_kv import quantise, write_kv

# tokens of a decode step and of a prefill chunk
TOKENS = (1, 256, 8192)
# query heads, KV heads, head dim, MLP size: LLaMA-3-8B
HEADS, KV_HEADS, DIM, INNER = 32, 8, 128, 14336
POSITIONS, SLOTS = 8192, 65536


def run(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Rows of name, ms of ours, torch and the reference, GB/s, share of the copy bandwidth."""
    table = DeviceTable(device, tiny)
    for tokens in (3,) if tiny else TOKENS:
        _add_rotary(table, device, tokens)
        _add_activations(table, device, tokens, 32 if tiny else INNER)
        _add_write_kv(table, device, tokens, 16 if tiny else SLOTS)
    return table.rows


def _add_rotary(table: DeviceTable, device: str, tokens: int) -> None:
    states = torch.randn(tokens, HEADS + 2 * KV_HEADS, DIM, device=device).bfloat16()
    query, key = states[:, :HEADS], states[:, HEADS : HEADS + KV_HEADS]
    both = states[:, : HEADS + KV_HEADS]
    cos, sin = torch.randn(2, POSITIONS, DIM // 2, device=device).unbind()
    positions = torch.randint(0, POSITIONS, (tokens,), device=device)
    wide = [t[positions].bfloat16().repeat(1, 2).unsqueeze(1) for t in (cos, sin)]

    def rotate_half() -> torch.Tensor:
        """As transformers does, with tables gathered before."""
        first, second = both.chunk(2, -1)
        return both * wide[0] + torch.cat([-second, first], -1) * wide[1]

    for interleaved in (False, True):
        table.add(
            f"rotary {'interleaved' if interleaved else 'neox'} {tokens} tokens",
            2 * both.numel() * both.element_size() + tokens * DIM * 4,
            lambda i=interleaved: rotary_embedding(query, key, cos, sin, positions, interleaved=i),
            {
                "torch": rotate_half,
                "reference": lambda i=interleaved: rotary_embedding_reference(
                    both, cos, sin, positions, interleaved=i
                ),
            },
        )


def _add_activations(table: DeviceTable, device: str, tokens: int, inner: int) -> None:
    gate_up = torch.randn(tokens, 2 * inner, device=device).bfloat16()
    gate, up = gate_up.chunk(2, -1)
    moved = gate_up.nbytes * 3 // 2
    table.add(
        f"silu_and_mul {tokens} × {inner}",
        moved,
        lambda: silu_and_mul(gate_up),
        {
            "torch": lambda: functional.silu(gate) * up,
            "reference": lambda: silu_and_mul_reference(gate_up),
        },
    )
    table.add(
        f"gelu_and_mul tanh {tokens} × {inner}",
        moved,
        lambda: gelu_and_mul(gate_up, approximate="tanh"),
        {
            "torch": lambda: functional.gelu(gate, approximate="tanh") * up,
            "reference": lambda: gelu_and_mul_reference(gate_up, approximate="tanh"),
        },
    )


def _add_write_kv(table: DeviceTable, device: str, tokens: int, num_slots: int) -> None:
    product = torch.randn(tokens, HEADS + 2 * KV_HEADS, DIM, device=device).bfloat16()
    key, value = product[:, HEADS:].chunk(2, 1)
    slots = torch.randperm(num_slots, device=device)[:tokens]
    kv = torch.zeros(num_slots + 1, 2 * KV_HEADS, DIM, device=device).bfloat16()
    int8, scales = kv.to(torch.int8), torch.zeros(kv.shape[:2], device=device).half()
    states = tokens * 2 * KV_HEADS * DIM * kv.element_size()

    def quantised_index_copy() -> None:
        quantised, steps = quantise(torch.cat([key, value], 1))
        int8.index_copy_(0, slots, quantised)
        scales.index_copy_(0, slots, steps)

    table.add(
        f"write_kv {tokens} tokens",
        2 * states,
        lambda: write_kv(key, value, kv, None, slots),
        {"torch": lambda: kv.index_copy_(0, slots, torch.cat([key, value], 1))},
    )
    table.add(
        f"write_kv int8 {tokens} tokens",
        states * 3 // 2 + tokens * 2 * KV_HEADS * 2,
        lambda: write_kv(key, value, int8, scales, slots),
        {"torch": quantised_index_copy},
    )


if __name__ == "__main__":
    test_and_run("test_triton_elementwise.py", run)
