"""RMS norm, RMS norm with residual and layer norm beside torch's own and the references.

    .venv/bin/python benchmarks/kernels/bench_norm.py

Without a GPU it runs every call once at tiny shapes and prints no figure.
"""

from __future__ import annotations

from typing import Any

import torch
from device_table import DeviceTable, test_and_run
from torch.nn import functional

from lightllm_kernels.layer_norm import layer_norm, layer_norm_reference
from lightllm_kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_reference

# tokens, hidden size: decode of LLaMA-7B and LLaMA-3-70B, a prefill chunk
SHAPES = ((1, 4096), (256, 4096), (256, 8192), (8192, 4096))
EPS = 1e-6


def run(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Rows of name, ms of ours, torch and the reference, GB/s, share of the copy bandwidth."""
    table = DeviceTable(device, tiny)
    for tokens, size in ((3, 64),) if tiny else SHAPES:
        states = torch.randn(2, tokens, size, device=device).bfloat16()
        hidden, residual = states.unbind()
        weight, bias = torch.randn(2, size, device=device).bfloat16().unbind()
        label, moved = f"{tokens} × {size}", hidden.nbytes
        _add_norms(table, label, moved, (hidden, residual, weight, bias))
    return table.rows


def _add_norms(
    table: DeviceTable, label: str, moved: int, tensors: tuple[torch.Tensor, ...]
) -> None:
    hidden, residual, weight, bias = tensors
    shape = weight.shape
    table.add(
        f"rms_norm {label}",
        2 * moved,
        lambda: rms_norm(hidden, weight, EPS),
        {
            "torch": lambda: functional.rms_norm(hidden, shape, weight, EPS),
            "reference": lambda: rms_norm_reference(hidden, weight, EPS),
        },
    )
    table.add(
        f"add_rms_norm {label}",
        4 * moved,
        lambda: add_rms_norm(hidden, residual, weight, EPS),
        {
            "torch": lambda: functional.rms_norm(residual.add_(hidden), shape, weight, EPS),
            "reference": lambda: rms_norm_reference(residual.add_(hidden), weight, EPS),
        },
    )
    table.add(
        f"layer_norm {label}",
        2 * moved,
        lambda: layer_norm(hidden, weight, bias, EPS),
        {
            "torch": lambda: functional.layer_norm(hidden, shape, weight, bias, EPS),
            "reference": lambda: layer_norm_reference(hidden, weight, bias, EPS),
        },
    )


if __name__ == "__main__":
    test_and_run("test_triton_elementwise.py", run)
